"""Features on their way to Neuronpedia, met by a server that checks them as Neuronpedia's own does."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE

from diffsae_lens._errors import FailedRunError
from diffsae_lens.reading import FeatureEvidence, NeuronpediaTarget, export_to_neuronpedia
from diffsae_lens.results import FeatureExample
from tests.conftest import D_MODEL, HOOKS
from tests.standin import serving

D_SAE = 300
KEY = "sk-np-secret"


def dictionary(view="diff", hook=HOOKS[1]):
    d_in = D_MODEL * (2 if view == "concat" else 1)
    sae = SAE.from_dict({
        "architecture": "crosscoder" if view == "concat" else "jumprelu", "d_in": d_in,
        "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "metadata": {"hook_name": f"{hook}.{view}"},
    })  # fmt: skip
    sae.W_dec.data = torch.randn(D_SAE, d_in, generator=torch.Generator().manual_seed(0))
    return sae


def evidence(n=3):
    example = FeatureExample(
        group="text", start=2, tokens=["a", "", "\u202e<script>"], activations=[0.0, 0.5, 2.0]
    )
    return [
        FeatureEvidence(
            dictionary="diff", feature=2 * i, layer=1, frequency=0.25, fires=(example,) * 2
        )
        for i in range(n)
    ]


class Neuronpedia:
    """The part of the site that is written to: what it holds, and what it refuses.

    Re-derived from the schemas of its routes, not from the client.
    """

    def __init__(self, models=("my-model",), n_layers=2, dimension=D_MODEL):
        self.models = dict.fromkeys(models, n_layers)
        self.dimension = dimension
        self.sets, self.features, self.vectors = {}, {}, []

    def __call__(self, asked):
        if asked.headers.get("x-api-key") != KEY:
            return 401, {"error": "This endpoint requires authorization."}
        if asked.path.startswith("/api/source-set/") and asked.method == "GET":
            return 200, self.sets.get(asked.path.removeprefix("/api/source-set/"))
        if asked.path.startswith("/api/feature/") and asked.method == "GET":
            place = asked.path.removeprefix("/api/feature/")
            found = place in self.features
            return (200, self.features[place]) if found else (404, {"error": "Not Found"})
        route = {
            "/api/model/new": self.model, "/api/source-set/new": self.source_set,
            "/api/feature/upload-batch": self.batch, "/api/vector/new": self.vector,
            "/api/vector/list-owned": self.owned,
        }[asked.path]  # fmt: skip
        try:
            return 200, route(asked.json if asked.body else None)
        except (AssertionError, KeyError) as error:
            return 400, {"error": str(error)}

    def model(self, body):
        assert set(body) == {"id", "layers", "displayName", "url"}
        assert body["id"] not in self.models, "Model already exists"
        assert 1 <= body["layers"] <= 127
        self.models[body["id"]] = body["layers"]
        return body | {"website": None}

    def source_set(self, body):
        assert set(body) == {"name", "modelId", "description", "url"}
        assert re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", body["name"])
        assert body["modelId"] in self.models, "Model not found"
        place = f"{body['modelId']}/{body['name']}"
        assert place not in self.sets, "Source set name already exists for this model."
        sources = [
            {"id": f"{i}-{body['name']}", "modelId": body["modelId"], "setName": body["name"]}
            for i in range(self.models[body["modelId"]])
        ]
        self.sets[place] = body | {"urls": [""], "sources": sources}
        return self.sets[place]

    def batch(self, body):
        assert set(body) == {"modelId", "source", "features"}
        assert 1 <= len(body["features"]) <= 128
        for feature in body["features"]:
            assert isinstance(feature["index"], int)
            assert 0 <= feature["density"] <= 1
            assert feature["activations"], "activations must have at least 1 items"
            for text in feature["activations"]:
                assert len(text["tokens"]) == len(text["values"]) >= 1
                assert all(text["tokens"]), "tokens is a required field"
                assert all(map(math.isfinite, text["values"]))
            assert all(1 <= len(e["text"]) <= 512 for e in feature["explanations"])
            place = f"{body['modelId']}/{body['source']}/{feature['index']}"
            assert place not in self.features, "its texts would be there twice"
            self.features[place] = feature
        return {"message": f"{len(body['features'])} features created."}

    def vector(self, body):
        assert body["hookType"] in ("hook_resid_pre", "hook_resid_post")
        assert -100 <= body["vectorDefaultSteerStrength"] <= 100
        assert len(body["vector"]) == self.dimension, "Vector dimension does not match"
        self.vectors.append(body)
        vector = {"modelId": body["modelId"], "source": "1-neuronpedia-resid-post", "index": "9",
                  "label": body["vectorLabel"], "hookName": body["hookType"],
                  "values": body["vector"], "defaultSteerStrength": 10}  # fmt: skip
        return {"url": "https://x", "vector": vector}

    def owned(self, body):
        return {"vectors": [
            {"modelId": v["modelId"], "layer": "1-x", "index": "9", "vectorLabel": v["vectorLabel"],
             "hookName": v["hookType"], "vector": v["vector"], "vectorDefaultSteerStrength": 10}
            for v in self.vectors
        ]}  # fmt: skip


@pytest.fixture
def site():
    with serving(Neuronpedia()) as stand_in:
        yield stand_in


@pytest.fixture
def target(site):
    return NeuronpediaTarget(
        model_id="my-model", source_set="diffs", server=f"{site.url}/api", timeout=5.0
    )


def test_features_arrive_with_their_texts_and_labels(site, target, tmp_path, capsys):
    found = evidence()
    done = export_to_neuronpedia(
        found, dictionary(), target, tmp_path / "done.json",
        labels={found[1].id: "angle brackets"}, api_key=KEY,
    )  # fmt: skip
    assert (done.n_sent, done.n_there, done.n_vectors) == (3, 0, 0)
    assert done.url == f"{site.url}/my-model/1-diffs"
    assert list(site.answer.features) == [f"my-model/1-diffs/{i}" for i in (0, 2, 4)]
    sent = site.answer.features["my-model/1-diffs/2"]
    assert sent["activations"][0]["tokens"] == ["a", "\ufffd", "\u202e<script>"]
    assert sent["activations"][0]["values"] == [0.0, 0.5, 2.0]
    assert [e["text"] for e in sent["explanations"]] == ["angle brackets"]
    assert site.answer.features["my-model/1-diffs/0"]["explanations"] == []
    assert KEY not in (tmp_path / "done.json").read_text()
    assert capsys.readouterr().out == ""


def test_a_second_call_sends_what_is_new_and_nothing_twice(site, target, tmp_path):
    path = tmp_path / "done.json"
    export_to_neuronpedia(evidence(2), dictionary(), target, path, api_key=KEY)
    done = export_to_neuronpedia(evidence(3), dictionary(), target, path, api_key=KEY)
    assert (done.n_sent, done.n_there) == (1, 2)
    assert len(site.of("/source-set/new")) == 1
    with pytest.raises(ValueError, match="not of an export to .*choose another path"):
        other = replace(target, source_set="others")
        export_to_neuronpedia(evidence(1), dictionary(), other, path, api_key=KEY)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((500, {"error": "down"}), "Server error occurred: 500"),
        ((429, {}), "exceeded the API rate limit"),
        ((400, b"<html>"), "failed at FeatureRequest"),
        ((200, b"<html>"), "invalid JSON"),
        ((302, b""), "failed at FeatureRequest"),
        (0.6, "timed out"),
    ],
    ids=["500", "429", "400", "not json", "elsewhere", "time-out"],
)
def test_what_fails_half_way_is_said_and_goes_on(site, target, tmp_path, failure, message):
    target, path = replace(target, timeout=0.3), tmp_path / "done.json"
    site.fail = lambda asked: failure if len(site.of("/upload-batch")) == 2 else None
    with pytest.raises(FailedRunError, match=message) as raised:
        export_to_neuronpedia(evidence(140), dictionary(), target, path, api_key=KEY)
    text = str(raised.value)
    assert "128 of 140 features are there for certain" in text
    assert "\n" not in text
    assert KEY not in text
    site.fail = lambda asked: None
    done = export_to_neuronpedia(evidence(140), dictionary(), target, path, api_key=KEY)
    # What arrived though its answer was lost is not sent again: the server refuses a second time.
    assert done.n_sent == (0 if isinstance(failure, float) else 12)
    assert len(site.answer.features) == 140
    assert json.loads(path.read_text())["unsure"] == []


def test_a_wrong_key_and_none_are_told_before_anything_is_sent(site, target, tmp_path, monkeypatch):
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    arguments = (evidence(), dictionary(), target, tmp_path / "done.json")
    with pytest.raises(ValueError, match="`api_key` must be your key"):
        export_to_neuronpedia(*arguments)
    assert site.asked == []
    with pytest.raises(FailedRunError, match=r"NPUnauthorizedError.* 0 of 3 features"):
        export_to_neuronpedia(*arguments, api_key="wrong")
    assert site.answer.features == {}


def test_nobody_there(target, tmp_path):
    nowhere = replace(target, server="http://127.0.0.1:9/api")
    with pytest.raises(FailedRunError, match="ConnectionError"):
        export_to_neuronpedia(evidence(), dictionary(), nowhere, tmp_path / "x", api_key=KEY)


def test_a_model_that_is_not_there_is_made_on_request(site, target, tmp_path):
    path = tmp_path / "done.json"
    new = replace(target, model_id="new-model")
    with pytest.raises(FailedRunError, match="Model not found"):
        export_to_neuronpedia(evidence(), dictionary(), new, path, api_key=KEY)
    export_to_neuronpedia(evidence(), dictionary(), replace(new, n_layers=3), path, api_key=KEY)
    assert site.answer.models["new-model"] == 3
    known = replace(target, n_layers=2)
    export_to_neuronpedia(evidence(), dictionary(), known, tmp_path / "other", api_key=KEY)
    short = replace(new, model_id="short", n_layers=1)
    with pytest.raises(FailedRunError, match="no source 1-diffs in short"):
        export_to_neuronpedia(evidence(), dictionary(), short, tmp_path / "short", api_key=KEY)


@pytest.mark.parametrize("view", ["diff", "concat"])
def test_vectors_are_what_the_finetuned_model_is_given(site, target, tmp_path, view):
    target, sae = replace(target, vectors=True), dictionary(view)
    found, path = evidence(2), tmp_path / "done.json"
    done = export_to_neuronpedia(found, sae, target, path, labels={found[0].id: "x"}, api_key=KEY)
    assert done.n_vectors == 2
    for index, sent in zip((0, 2), site.answer.vectors, strict=True):
        row = sae.W_dec[index, -D_MODEL:].detach()
        torch.testing.assert_close(torch.tensor(sent["vector"]), row / row.norm())
        assert (sent["layerNumber"], sent["hookType"]) == (1, "hook_resid_post")
    assert site.answer.vectors[0]["vectorLabel"] == "my-model/1-diffs/0 x"
    assert export_to_neuronpedia(found, sae, target, path, api_key=KEY).n_vectors == 0


def test_what_does_not_fit_is_refused_before_anything_is_asked(site, target, tmp_path):
    def send(found, sae=dictionary(), to=target):  # noqa: B008
        export_to_neuronpedia(found, sae, to, tmp_path / "done.json", api_key=KEY)

    silent = replace(evidence()[0], fires=())
    with pytest.raises(ValueError, match="fires on none of its texts"):
        send([silent])
    with pytest.raises(ValueError, match="comes twice"):
        send(evidence()[:1] * 2)
    with pytest.raises(ValueError, match="`evidence`"):
        send([replace(evidence()[0], feature=D_SAE)])
    with pytest.raises(ValueError, match="must read a layer"):
        send(evidence(), dictionary(hook="embed.hook_out"))
    with pytest.raises(ValueError, match="for vectors its hook_resid_pre"):
        send(evidence(), dictionary(hook="blocks.1.hook_mlp_out"), replace(target, vectors=True))
    assert site.asked == []


@pytest.mark.parametrize(
    "setting",
    [{"model_id": "Big"}, {"source_set": "a--b"}, {"server": "http://neuronpedia.org/api"},
     {"timeout": 0.0}, {"n_layers": 0}, {"description": ""}],
)  # fmt: skip
def test_settings_that_the_server_would_refuse(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must"):
        NeuronpediaTarget(**({"model_id": "a", "source_set": "b"} | setting))
