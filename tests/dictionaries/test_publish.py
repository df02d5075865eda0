"""Dictionaries on their way to the Hugging Face hub, met by a server that takes files as the hub does."""

import base64
import hashlib
import json

import huggingface_hub
import pytest
import torch
from sae_lens import SAE

from diffsae_lens._errors import FailedRunError
from diffsae_lens.dictionaries import CrosscoderSAE, CrosscoderSAEConfig
from diffsae_lens.dictionaries._publish import model_card, upload
from tests.conftest import D_MODEL, HOOKS
from tests.standin import serving

TOKEN = "hf_secret"
HOOK = f"{HOOKS[1]}.concat"


class Hub:
    """Repositories made of commits; weights come by LFS before the commit that names them."""

    def __init__(self):
        self.repositories, self.objects, self.url = {}, {}, ""

    def __call__(self, asked):
        if asked.path.startswith("/store/"):
            self.objects[asked.path.removeprefix("/store/")] = asked.body
            right = asked.path.endswith(hashlib.sha256(asked.body).hexdigest())
            return 200 if right else 400, b""
        if asked.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if asked.path == "/api/repos/create":
            repo_id = f"{asked.json['organization']}/{asked.json['name']}"
            status = 409 if repo_id in self.repositories else 200
            self.repositories.setdefault(repo_id, {})
            return status, {"url": f"{self.url}/{repo_id}"}
        if asked.path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if asked.path.endswith("/preupload/main"):
            modes = [
                {"path": f["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in asked.json["files"]
            ]  # fmt: skip
            return 200, {"files": modes}
        if asked.path == "/me/mine.git/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [
                o | {"actions": {"upload": {"href": f"{self.url}/store/{o['oid']}"}}}
                for o in asked.json["objects"]
            ]}  # fmt: skip
        if asked.path != "/api/models/me/mine/commit/main":
            return 404, {"error": "Not Found"}
        self.repositories["me/mine"] |= dict(map(self.file, asked.body.splitlines()[1:]))
        return 200, {"commitOid": "abc", "commitUrl": f"{self.url}/me/mine/commit/abc"}

    def file(self, line):
        row = json.loads(line)
        value = row["value"]
        if row["key"] == "lfsFile":
            return value["path"], self.objects[value["oid"]]
        assert row["key"] == "file"
        return value["path"], base64.b64decode(value["content"])


@pytest.fixture
def hub(monkeypatch):
    with serving(Hub()) as stand_in:
        stand_in.answer.url = stand_in.url
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()
        yield stand_in
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    sae = CrosscoderSAE(CrosscoderSAEConfig(d_in=2 * D_MODEL, d_sae=24))
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.diffsae_lens = {
        "pair": {"base": "some/base", "finetuned": "/home/me/secret/run-7"},
        "k": 3,
        "l0_held_out": 3.25,
    }
    sae.save_model(tmp_path / "cc")
    (tmp_path / "cc" / "notes.txt").write_text("mine alone")
    return tmp_path / "cc"


def test_what_is_published_is_what_was_saved_and_loads(hub, folder, tmp_path):
    address = upload({"layer-1": folder}, "me/mine", license="mit")
    assert address == f"{hub.url}/me/mine/commit/abc"
    files = hub.answer.repositories["me/mine"]
    assert set(files) == {"layer-1/cfg.json", "layer-1/sae_weights.safetensors", "README.md"}
    assert len(hub.of("/commit/")) == 1
    for name, data in files.items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    got, saved = SAE.load_from_disk(tmp_path / "got" / "layer-1"), SAE.load_from_disk(folder)
    x = torch.randn(5, 2 * D_MODEL)
    assert torch.equal(got(x), saved(x))
    upload({"layer-1": folder}, "me/mine", license="mit")  # the repository may be there


def test_the_card_says_all_that_one_needs(hub, folder):
    upload(
        {"layer-1": folder}, "me/mine", license="apache-2.0",
        variance_explained={"layer-1": {"base": 0.971, "diff": 0.5}},
    )  # fmt: skip
    card = hub.answer.repositories["me/mine"]["README.md"].decode()
    front = card.split("---")[1]
    assert 'license: "apache-2.0"' in front
    assert 'base_model: ["some/base"]' in front  # a folder is no repository
    assert (
        f"| `layer-1` | crosscoder | `{HOOK}` | 24 | 3 | 3.25 | base 0.971, diff 0.5 "
        "| some/base | run-7 |" in card
    )
    assert f"dl.load_pair('some/base', 'run-7', hook_names=['{HOOKS[1]}'])" in card
    assert 'dl.load("me/mine", sae_id="layer-1", pair=pair)' in card
    assert "/home/me" not in card


def test_names_cannot_leave_their_cell():
    config = {
        "architecture": "crosscoder", "d_sae": 4,
        "metadata": {"hook_name": HOOK, "diffsae_lens": {"pair": {
            "base": "a | b\n# Title", "finetuned": "x\n---\nlicense: none"}}},
    }  # fmt: skip
    card = model_card("me/mine", {"a": config}, license="mit")
    assert r"| a \| b\n# Title | x\n---\nlicense: none |" in card
    assert card.count("\n---\n") == 1
    assert "not recorded | not recorded | not measured" in card


@pytest.mark.parametrize(
    ("where", "failure", "message"),
    [
        ("/repos/create", (401, {"error": "no"}), "401"),
        ("/preupload/", (403, {"error": "not yours"}), "not yours"),
        ("/store/", (400, {}), "Bad request"),
        ("/commit/", (500, {"error": "down"}), "500"),
        ("/validate-yaml", (400, {"errors": [{"message": "bad licence"}]}), "bad licence"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_and_nothing_is_there(
    hub, folder, where, failure, message
):
    hub.fail = lambda asked: failure if where in asked.path else None
    with pytest.raises(FailedRunError, match=message) as raised:
        upload({"a": folder}, "me/mine", license="mit")
    text = str(raised.value)
    assert text.startswith(f"{hub.url} did not confirm the upload to 'me/mine'")
    assert "\n" not in text
    assert TOKEN not in text
    assert not hub.answer.repositories.get("me/mine")


def test_a_hub_that_is_not_there(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FailedRunError, match="did not confirm"):
        upload({"a": folder}, "me/mine", license="mit")


def test_what_cannot_be_published_is_told_before_the_hub_is_asked(hub, folder):
    for name in ("", "mine", "me/mine/x", "me/my own"):
        with pytest.raises(ValueError, match="`repo_id` must be 'owner/name'"):
            upload({"a": folder}, name, license="mit")
    with pytest.raises(ValueError, match="`license` must be an identifier"):
        upload({"a": folder}, "me/mine", license="MIT\ntags: [x]")
    with pytest.raises(ValueError, match="`variance_explained` must have names"):
        upload({"a": folder}, "me/mine", license="mit", variance_explained={"b": {}})
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="is damaged"):
        upload({"a": folder}, "me/mine", license="mit")
    assert hub.asked == []
