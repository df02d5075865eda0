"""The paper's comparisons as differences of strict BIS: of regimes, of layers, of dictionaries.

All scores are of the same prompts and the same resamples of them, so every difference is paired.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffsae_lens.measures.resampling import Resampling, bootstrap_result


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A dictionary's score at one layer of one regime."""

    bis: float
    resampled: Float[Tensor, "resample"]
    """On every resample of the prompts."""

    def __sub__(self, other: "Scored") -> "Scored":
        """By how much this one is better."""
        return Scored(bis=self.bis - other.bis, resampled=self.resampled - other.resampled)


Scores = Mapping[tuple[str, int], Mapping[str, Scored]]
"""By regime and layer, by name."""


def contrasts(scores: Scores) -> list[dict[str, Any]]:
    """Compare regimes, dictionaries and layers.

    - `regimes`: the second regime's score minus the first's, of each dictionary at each layer.
    - `dictionaries`: each Diff-SAE's minus the crosscoder's that was trained as it was: of the usual kind
      one with the crosscoder's sparsity and number of features, one with its sparsity and parameters.
    - `layers`: each layer's minus that of the layer before it in the study.

    Args:
        scores: of all regimes and layers; what lacks a counterpart is left out.

    Returns:
        Rows of `kind`, `regime`, `name`, `at` (the layer or layers; `all` is their mean) and
        `difference`, positive for what the paper says is better, with its 95% interval `low` to `high`.
    """
    return [*_regimes(scores), *_dictionaries(scores), *_layers(scores)]


def _regimes(scores: Scores) -> Iterator[dict[str, Any]]:
    regimes = list(dict.fromkeys(regime for regime, _ in scores))
    for first, second in pairwise(regimes):
        shared = [layer for layer in _layers_of(scores, first) if (second, layer) in scores]
        for name in _names(scores):
            found = {
                layer: scores[second, layer][name] - scores[first, layer][name]
                for layer in shared
                if name in scores[second, layer] and name in scores[first, layer]
            }
            yield from _rows("regimes", f"{second} - {first}", name, found)


def _dictionaries(scores: Scores) -> Iterator[dict[str, Any]]:
    for regime in dict.fromkeys(regime for regime, _ in scores):
        for first in _names(scores):
            kind, is_difference, _ = first.partition("Diff-SAE")
            if not is_difference:
                continue
            for second in _names(scores):
                if second.partition("crosscoder")[:2] != (kind, "crosscoder"):
                    continue
                found = {
                    layer: scores[regime, layer][first] - scores[regime, layer][second]
                    for layer in _layers_of(scores, regime)
                    if {first, second} <= scores[regime, layer].keys()
                }
                yield from _rows("dictionaries", regime, f"{first} - {second}", found)


def _layers(scores: Scores) -> Iterator[dict[str, Any]]:
    for regime in dict.fromkeys(regime for regime, _ in scores):
        for name in _names(scores):
            for before, layer in pairwise(_layers_of(scores, regime)):
                if name in scores[regime, layer] and name in scores[regime, before]:
                    gain = scores[regime, layer][name] - scores[regime, before][name]
                    yield _row("layers", regime, name, f"{before} to {layer}", gain)


def _rows(
    kind: str, regime: str, name: str, found: Mapping[int, Scored]
) -> Iterator[dict[str, Any]]:
    for layer, difference in found.items():
        yield _row(kind, regime, name, str(layer), difference)
    if len(found) > 1:
        yield _row(kind, regime, name, "all", _mean(list(found.values())))


def _row(kind: str, regime: str, name: str, at: str, difference: Scored) -> dict[str, Any]:
    resampling = Resampling(n_resamples=len(difference.resampled))
    found = bootstrap_result(difference.bis, difference.resampled, resampling)
    values = {"difference": found.estimate, "low": found.low, "high": found.high}
    return {"kind": kind, "regime": regime, "name": name, "at": at, **values}


def _mean(scored: Sequence[Scored]) -> Scored:
    n = len(scored)
    return Scored(
        bis=sum(s.bis for s in scored) / n,
        resampled=sum((s.resampled for s in scored[1:]), scored[0].resampled) / n,
    )


def _layers_of(scores: Scores, regime: str) -> list[int]:
    return [layer for found, layer in scores if found == regime]


def _names(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for found in scores.values() for name in found))
