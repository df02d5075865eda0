"""Features on Neuronpedia: a source set, features with activations and labels, steering vectors.

Source of what its server takes: the `neuronpedia` client 1.2 and the schemas of the site's own routes
(github.com/hijohnnylin/neuronpedia, `apps/webapp/app/api`).
"""

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sae_lens import SAE
from torch.nn.functional import normalize

from diffsae_lens._checks import check_count, check_number
from diffsae_lens._disk import locked, place_of, read_json, write_json
from diffsae_lens._display import Record, cut, one_line
from diffsae_lens._errors import FailedRunError, InvalidValueError
from diffsae_lens._extras import require
from diffsae_lens._hosts import bind_requests
from diffsae_lens._typed import check_fields, typed
from diffsae_lens.dictionaries._decoding import decoder_rows
from diffsae_lens.dictionaries._fits import check_features
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._hook import layer_of
from diffsae_lens.reading._evidence import FeatureEvidence
from diffsae_lens.reading._labels import check_evidence, check_labels

T = TypeVar("T")

_BATCH = 128  # as many features as one request may have
_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_STEERED = ("hook_resid_pre", "hook_resid_post")


@dataclass(frozen=True, kw_only=True)
class NeuronpediaTarget:
    """Where on Neuronpedia features go: source `<layer>-<source_set>` of a model."""

    model_id: str
    """Neuronpedia's id of the fine-tuned model."""
    source_set: str
    """Created where it does not exist; yours, if it does."""
    n_layers: int | None = None
    """Of the model, to create it where Neuronpedia does not have it; None if it does."""
    description: str = "Model diffing with diffsae-lens"
    vectors: bool = False
    """Whether to send decoder rows as steering vectors, too; a model created here takes none."""
    server: str = "https://www.neuronpedia.org/api"
    timeout: float = 60.0
    """Seconds that the server may take for an answer."""

    def __post_init__(self) -> None:
        """Refuse what the server would."""
        check_fields(self)
        for name in ("model_id", "source_set"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise InvalidValueError(
                    f"`{name}` must be of small letters and digits, with single hyphens between them, "
                    f"got {getattr(self, name)!r}"
                )
        if self.n_layers is not None:
            check_count("n_layers", self.n_layers, at_most=127)
        if not 1 <= len(self.description) <= 128:
            raise InvalidValueError(
                f"`description` must have 1 to 128 characters, got {len(self.description)}"
            )
        if not self.server.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise InvalidValueError(
                f"`server` must begin with https://, as your key goes there, got {self.server!r}"
            )
        check_number("timeout", self.timeout, low=0, low_open=True)


@dataclass(frozen=True, kw_only=True)
class NeuronpediaExport(Record):
    """What is on Neuronpedia now."""

    url: str
    n_sent: int
    """Features that this call sent."""
    n_there: int
    """Features that an earlier call had sent."""
    n_vectors: int
    """Steering vectors that this call sent."""


@typed
def export_to_neuronpedia(
    evidence: Sequence[FeatureEvidence],
    dictionary: SAE,
    target: NeuronpediaTarget,
    path: str | Path,
    *,
    labels: Mapping[str, str] | None = None,
    api_key: str | None = None,
) -> NeuronpediaExport:
    """Send features with their activations, labels and vectors to Neuronpedia.

    What the server has confirmed is noted in a file. Call it again after an error: it goes on where it
    stopped, and asks the server about a batch whose answer was lost, since features that are sent twice
    would have their texts twice. Features that are there are not changed.

    Args:
        evidence: from `feature_evidence`.
        dictionary: whose features they are.
        target: where they go.
        path: the file with what is done; one per target.
        labels: from `label_features`; features without one get none.
        api_key: yours; by default `NEURONPEDIA_API_KEY` of the environment.

    Returns:
        The source's address, and how much was sent.

    Raises:
        ModuleNotFoundError: the `neuronpedia` extra is not installed.
        TypeError: an argument of another type.
        ValueError: features that fire on nothing or are not the dictionary's, labels of others, no key, a
            hook point outside the layers (for vectors: that is not the residual stream), or a file of
            another target.
        RuntimeError: the server refused or did not answer; says how much is done.
    """
    features = {f.feature: f for f in check_evidence(evidence)}
    check_features(dictionary, list(features))
    labels = {} if labels is None else labels
    check_labels(labels, {f.id for f in features.values()})
    layer, hook_type = _place(dictionary, target)
    path = place_of(path)
    require("neuronpedia", "exporting to Neuronpedia")
    if not (api_key or os.environ.get("NEURONPEDIA_API_KEY")):
        raise InvalidValueError(
            "`api_key` must be your key of neuronpedia.org/account, got none; give it, or set "
            "NEURONPEDIA_API_KEY"
        )
    client = _Client(target, api_key)
    source = f"{layer}-{target.source_set}"
    where = {"server": target.server, "model": target.model_id, "source": source}
    with locked(path):
        done = read_json(path) if path.exists() else where | {"sent": [], "unsure": []}
        if not isinstance(done, dict) or {key: done.get(key) for key in where} != where:
            raise InvalidValueError(f"{path} is not of an export to {where}; choose another path")
        try:
            client.make_source(source)
            if done["unsure"] and client.has(source, done["unsure"][0]):
                done["sent"] += done["unsure"]
            left = [index for index in features if index not in set(done["sent"])]
            for start in range(0, len(left), _BATCH):
                done["unsure"] = left[start : start + _BATCH]
                write_json(path, done)
                client.send(source, [features[index] for index in done["unsure"]], labels)
                done["sent"] += done["unsure"]
                done["unsure"] = []
                write_json(path, done)
            vectors = _vectors(dictionary, features, labels) if target.vectors else {}
            n_vectors = client.send_vectors(source, layer, hook_type, vectors)
        except FailedRunError as error:
            n_done = len(set(done["sent"]) & set(features))
            raise FailedRunError(
                f"{error}; {n_done} of {len(features)} features are there for certain, as {path} notes: "
                "call it again to go on"
            ) from error
    return NeuronpediaExport(
        url=f"{target.server.removesuffix('/api')}/{target.model_id}/{source}",
        n_sent=len(left),
        n_there=len(features) - len(left),
        n_vectors=n_vectors,
    )


def _place(dictionary: SAE, target: NeuronpediaTarget) -> tuple[int, str]:
    """The layer a dictionary reads and the kind of hook, checked for what is to be sent."""
    record = DictionaryRecord.of(dictionary)
    site = record.hook.site if record.hook else record.hook_name or ""
    layer, hook_type = layer_of(site), site.rpartition(".")[2]
    if layer is None or (target.vectors and hook_type not in _STEERED):
        raise InvalidValueError(
            f"`dictionary` must read a layer (and for vectors its {' or '.join(_STEERED)}), got "
            f"{record.hook_name!r}"
        )
    return layer, hook_type


def _vectors(
    dictionary: SAE, features: Mapping[int, FeatureEvidence], labels: Mapping[str, str]
) -> dict[int, tuple[str, list[float]]]:
    """What each feature writes into the fine-tuned model, at length 1, with its label."""
    rows, record = decoder_rows(dictionary).float().cpu(), DictionaryRecord.of(dictionary)
    rows = rows if record.spec is None else record.spec.writes(rows, "finetuned")
    rows = normalize(rows[list(features)], dim=-1).tolist()
    return {
        index: (labels.get(feature.id, ""), row)
        for (index, feature), row in zip(features.items(), rows, strict=True)
    }


class _Client:
    """The `neuronpedia` client: bounded in time, silent, with one kind of error."""

    def __init__(self, target: NeuronpediaTarget, api_key: str | None) -> None:
        self.target, self.api_key = target, api_key

    def ask(self, kind: str, call: Callable[[Any], T]) -> T:
        """Make a call of one of the client's requests."""
        import neuronpedia
        from neuronpedia.requests import base_request as errors
        from requests import RequestException

        request = getattr(neuronpedia, kind)(api_key=self.api_key)
        bind_requests(request, self.target.server, self.target.timeout)
        try:
            with redirect_stdout(io.StringIO()):  # it prints what it does
                return call(request)
        except (
            RequestException,
            errors.NPUnauthorizedError,
            errors.NPRateLimitError,
            errors.NPInvalidResponseError,
            KeyError,  # the client reads answers unchecked
            TypeError,
        ) as error:
            reason = one_line(cut(str(error).partition("\n")[0], 300))
            raise FailedRunError(
                f"{self.target.server} failed at {kind} ({type(error).__name__}): {reason}"
            ) from error

    def make_source(self, source: str) -> None:
        """Create the model and the source set where they are not there."""
        model, name = self.target.model_id, self.target.source_set
        found = self.ask(
            "SourceSetRequest", lambda r: r.send_request(f"{model}/{name}", method="GET")
        )
        if found is None:
            if self.target.n_layers is not None:
                self._make_model(self.target.n_layers)
            made = self.ask(
                "SourceSetRequest", lambda r: r.new(name, model, self.target.description)
            )
            sources = {one.id for one in made.sources}
        else:
            sources = {one["id"] for one in found["sources"]}
        if source not in sources:
            raise FailedRunError(
                f"{self.target.server} has no source {source} in {model}, whose layers are too few"
            )

    def _make_model(self, n_layers: int) -> None:
        try:
            self.ask("ModelRequest", lambda r: r.new(self.target.model_id, n_layers))
        except FailedRunError as error:
            if "already exists" not in str(error):
                raise

    def has(self, source: str, index: int) -> bool:
        """Whether a feature is there."""
        uri = f"{self.target.model_id}/{source}/{index}"
        try:
            self.ask("FeatureRequest", lambda r: r.send_request(uri, method="GET"))
        except FailedRunError as error:
            if "not found" not in str(error):
                raise
            return False
        return True

    def send(
        self, source: str, batch: Sequence[FeatureEvidence], labels: Mapping[str, str]
    ) -> None:
        """Send some features, which the server takes all of or none."""
        from neuronpedia.np_activation import Activation
        from neuronpedia.np_explanation import Explanation
        from neuronpedia.np_feature import Feature

        payload = []
        for feature in batch:
            at = (self.target.model_id, source, feature.feature)
            label = labels.get(feature.id)
            texts = [
                Activation(*at, [t or "\ufffd" for t in e.tokens], list(e.activations))
                for e in feature.fires
            ]
            payload.append(
                Feature(
                    *at,
                    density=feature.frequency,
                    explanations=None if label is None else [Explanation(*at, label)],
                    activations=texts,
                )
            )
        self.ask("FeatureRequest", lambda r: r.upload_batch(self.target.model_id, source, payload))

    def send_vectors(
        self,
        source: str,
        layer: int,
        hook_type: str,
        vectors: Mapping[int, tuple[str, list[float]]],
    ) -> int:
        """Send the steering vectors that are not there, going by their names."""
        if not vectors:
            return 0
        model = self.target.model_id
        owned = {
            vector.label.split(" ")[0]
            for vector in self.ask("VectorRequest", lambda r: r.get_owned())
        }
        names = {index: f"{model}/{source}/{index}" for index in vectors}
        left = [index for index in vectors if names[index] not in owned]
        for index in left:
            label, row = vectors[index]
            name = f"{names[index]} {label}".strip()
            self.ask("VectorRequest", lambda r: r.new(name, model, layer, hook_type, row))  # noqa: B023
        return len(left)
