"""The paper's comparisons as differences of strict BIS: of regimes, of layers, of dictionaries.

All scores are of the same prompts and the same resamples of them, so every difference is paired.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from diffsae_lens.measures._resampling import Resampling, bootstrap_result
from diffsae_lens.results import ContrastRow


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a dictionary is, as far as it is compared."""

    kind: Literal["Diff-SAE", "crosscoder"]
    recipe: Literal["published", "tokens"]
    """How it was trained; only dictionaries that were trained alike are compared with each other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A dictionary's score at one layer of one regime."""

    bis: float
    resampled: Float[Tensor, "resample"]
    """On every resample of the prompts."""

    def __sub__(self, other: "Scored") -> "Scored":
        """By how much this one is better."""
        return Scored(bis=self.bis - other.bis, resampled=self.resampled - other.resampled)


Scores = Mapping[tuple[str | None, int], Mapping[str, Scored]]
"""By regime and layer, by name."""


def contrasts(scores: Scores, trained: Mapping[str, Trained]) -> list[ContrastRow]:
    """Compare regimes, dictionaries and layers.

    - `regimes`: the second regime's score minus the first's, of each dictionary at each layer.
    - `dictionaries`: each Diff-SAE's minus the crosscoder's that was trained as it was: of the usual kind
      one with the crosscoder's sparsity and number of features, one with its sparsity and parameters.
    - `layers`: each layer's minus that of the layer before it in the study.

    Args:
        scores: of all regimes and layers; what lacks a counterpart is left out.
        trained: what the dictionaries are, by name.

    Returns:
        A row per comparison, positive for what the paper says is better.
    """
    return [*_regimes(scores), *_dictionaries(scores, trained), *_layers(scores)]


def _regimes(scores: Scores) -> Iterator[ContrastRow]:
    regimes = list(dict.fromkeys(regime for regime, _ in scores))
    for first, second in pairwise(regimes):
        shared = [layer for layer in _layers_of(scores, first) if (second, layer) in scores]
        for name in _names(scores):
            found = {
                layer: scores[second, layer][name] - scores[first, layer][name]
                for layer in shared
                if name in scores[second, layer] and name in scores[first, layer]
            }
            about = {"dictionary": name, "minus_dictionary": name, "regime": second}
            yield from _rows("regimes", found, name=name, **about, minus_regime=first)


def _dictionaries(scores: Scores, trained: Mapping[str, Trained]) -> Iterator[ContrastRow]:
    for regime in dict.fromkeys(regime for regime, _ in scores):
        for first in _names(scores):
            if trained[first].kind != "Diff-SAE":
                continue
            alike = Trained(kind="crosscoder", recipe=trained[first].recipe)
            for second in _names(scores):
                if trained[second] != alike:
                    continue
                found = {
                    layer: scores[regime, layer][first] - scores[regime, layer][second]
                    for layer in _layers_of(scores, regime)
                    if {first, second} <= scores[regime, layer].keys()
                }
                about = {"dictionary": first, "minus_dictionary": second, "regime": regime}
                name = f"{first} - {second}"
                yield from _rows("dictionaries", found, name=name, **about, minus_regime=regime)


def _layers(scores: Scores) -> Iterator[ContrastRow]:
    for regime in dict.fromkeys(regime for regime, _ in scores):
        for name in _names(scores):
            for before, layer in pairwise(_layers_of(scores, regime)):
                if name in scores[regime, layer] and name in scores[regime, before]:
                    gain = scores[regime, layer][name] - scores[regime, before][name]
                    yield _row(
                        gain, kind="layers", name=name, dictionary=name, minus_dictionary=name,
                        regime=regime, minus_regime=regime, layer=layer, minus_layer=before,
                    )  # fmt: skip


def _rows(
    kind: Literal["regimes", "dictionaries"], found: Mapping[int, Scored], **about: Any
) -> Iterator[ContrastRow]:
    for layer, difference in found.items():
        yield _row(difference, kind=kind, layer=layer, minus_layer=layer, **about)
    if len(found) > 1:
        mean = _mean(list(found.values()))
        yield _row(mean, kind=kind, layer=None, minus_layer=None, **about)


def _row(difference: Scored, **about: Any) -> ContrastRow:
    resampling = Resampling(n_resamples=len(difference.resampled))
    found = bootstrap_result(difference.bis, difference.resampled, resampling)
    return ContrastRow(**about, difference=found.estimate, low=found.low, high=found.high)


def _mean(scored: Sequence[Scored]) -> Scored:
    n = len(scored)
    return Scored(
        bis=sum(s.bis for s in scored) / n,
        resampled=sum((s.resampled for s in scored[1:]), scored[0].resampled) / n,
    )


def _layers_of(scores: Scores, regime: str | None) -> list[int]:
    return [layer for found, layer in scores if found == regime]


def _names(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for found in scores.values() for name in found))
