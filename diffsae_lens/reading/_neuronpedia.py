"""Export features to Neuronpedia: what to send, what is already there, and their labels and vectors."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import SAE
from torch.nn.functional import normalize

from diffsae_lens._disk import locked, place_of, read_json, write_json
from diffsae_lens._display import Record
from diffsae_lens._errors import FailedRunError, InvalidValueError
from diffsae_lens._extras import require
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._decoding import decoder_rows
from diffsae_lens.dictionaries._fits import check_features
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._hook import layer_of
from diffsae_lens.reading._evidence import FeatureEvidence
from diffsae_lens.reading._labels import check_evidence, check_labels
from diffsae_lens.reading._neuronpedia_client import Client, NeuronpediaTarget

_BATCH = 128  # most features that one request may have
_STEERED = ("hook_resid_pre", "hook_resid_post")


@dataclass(frozen=True, kw_only=True)
class NeuronpediaExport(Record):
    """What an export sent and what is on Neuronpedia now."""

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

    A file records what the server has confirmed. Called again after an error, it resumes from there and
    asks about a batch whose answer was lost. Features already on the server are not changed.

    Args:
        evidence: from `feature_evidence`.
        dictionary: the dictionary with the features.
        target: where to send them.
        path: the progress file; one per target.
        labels: from `label_features`; features without one get none.
        api_key: your key; by default `NEURONPEDIA_API_KEY` of the environment.

    Returns:
        The source's URL, and how much was sent.

    Raises:
        ModuleNotFoundError: the `neuronpedia` extra is not installed.
        TypeError: an argument of another type.
        ValueError: features that fire on nothing or are not the dictionary's, labels of other features, no
            key, a hook point outside the layers (for vectors: outside the residual stream), or a progress
            file of another target.
        RuntimeError: the server refused or did not answer; says how much is done.
    """
    given = check_evidence(evidence)
    indices = check_features(dictionary, [feature.feature for feature in given], name="evidence")
    features = dict(zip(indices, given, strict=True))
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
    client = Client(target, api_key)
    source = f"{layer}-{target.source_set}"
    where = {"server": target.server, "model": target.model_id, "source": source}
    with locked(path):
        done: dict[str, Any] = (
            read_json(path) if path.exists() else where | {"sent": [], "unsure": []}
        )
        if not isinstance(done, dict) or {key: done.get(key) for key in where} != where:
            raise InvalidValueError(f"{path} is not of an export to {where}; choose another path")
        try:
            client.make_source(source)
            if done["unsure"] and client.has(source, done["unsure"][0]):
                done["sent"] += done["unsure"]
            done["unsure"] = []
            left = [index for index in features if index not in set(done["sent"])]
            for start in range(0, len(left), _BATCH):
                done["unsure"] = left[start : start + _BATCH]
                write_json(path, done)
                client.send(source, [features[index] for index in done["unsure"]], labels)
                done = done | {"sent": done["sent"] + done["unsure"], "unsure": []}
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
    """The layer and the kind of hook that a dictionary reads, having checked that it can be sent."""
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
    """What each feature writes into the fine-tuned model, scaled to length 1, with its label."""
    rows, record = decoder_rows(dictionary).float().cpu(), DictionaryRecord.of(dictionary)
    rows = rows if record.spec is None else record.spec.writes(rows, "finetuned")
    rows = normalize(rows[list(features)], dim=-1).tolist()
    return {
        index: (labels.get(feature.id, ""), row)
        for (index, feature), row in zip(features.items(), rows, strict=True)
    }
