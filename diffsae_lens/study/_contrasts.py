"""The paper's comparisons as differences of strict BIS: of regimes, of layers, of dictionaries.

All scores are of the same prompts and the same resamples of them, so every difference is paired.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from diffsae_lens.measures._resampling import Resampling, bootstrap_result
from diffsae_lens.results import ContrastRow


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a dictionary is, as far as it is compared."""

    kind: Literal["Diff-SAE", "crosscoder"]
    recipe: str
    """How it was trained; only dictionaries that were trained alike are compared with each other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A dictionary's score at one layer of one regime."""

    bis: float
    resampled: Float[Tensor, "resample"]
    """On every resample of the prompts."""


Key = tuple[str | None, int, str]
"""Regime, layer and name of a dictionary."""


def contrasts(
    scores: Mapping[tuple[str | None, int], Mapping[str, Scored]], trained: Mapping[str, Trained]
) -> list[ContrastRow]:
    """Compare regimes, dictionaries and layers.

    - `regimes`: the second regime's score minus the first's, of each dictionary at each layer.
    - `dictionaries`: each Diff-SAE's minus the crosscoder's that was trained as it was: of the usual kind
      one with the crosscoder's sparsity and number of features, one with its sparsity and parameters.
    - `layers`: each layer's minus that of the layer before it in the study.

    Args:
        scores: by regime and layer, by name; what lacks a counterpart is left out.
        trained: what the dictionaries are, by name.

    Returns:
        A row per comparison, positive for what the paper says is better; where several layers are
        compared, their mean as a row without a layer.
    """
    flat = {(*at, name): score for at, of_at in scores.items() for name, score in of_at.items()}
    rows: list[ContrastRow] = []
    for kind, name, pairs in _compared(list(flat), trained):
        found: list[tuple[float, Tensor]] = []
        for one, other in pairs:
            if one not in flat or other not in flat:
                continue
            found.append(
                (flat[one].bis - flat[other].bis, flat[one].resampled - flat[other].resampled)
            )
            about: dict[str, Any] = {"kind": kind, "name": name, "dictionary": one[2]}
            about |= {"minus_dictionary": other[2], "regime": one[0], "minus_regime": other[0]}
            rows.append(_row(*found[-1], layer=one[1], minus_layer=other[1], **about))
        if len(found) > 1:
            bis = sum(bis for bis, _ in found) / len(found)
            resampled = sum((r for _, r in found[1:]), found[0][1]) / len(found)
            rows.append(_row(bis, resampled, layer=None, minus_layer=None, **about))
    return rows


def _compared(
    keys: list[Key], trained: Mapping[str, Trained]
) -> Iterator[tuple[str, str, list[tuple[Key, Key]]]]:
    """What is compared with what: a kind, a name, and one pair per layer."""
    regimes = list(dict.fromkeys(regime for regime, _, _ in keys))
    layers = list(dict.fromkeys(layer for _, layer, _ in keys))
    names = list(dict.fromkeys(name for _, _, name in keys))
    for (before, after), name in product(pairwise(regimes), names):
        yield "regimes", name, [((after, n, name), (before, n, name)) for n in layers]
    for regime, one, other in product(regimes, names, names):
        alike = Trained(kind="crosscoder", recipe=trained[one].recipe)
        if trained[one].kind == "Diff-SAE" and trained[other] == alike:
            pairs = [((regime, n, one), (regime, n, other)) for n in layers]
            yield "dictionaries", f"{one} - {other}", pairs
    for regime, name in product(regimes, names):
        of_regime = dict.fromkeys(n for r, n, _ in keys if r == regime)
        for before, after in pairwise(of_regime):
            yield "layers", name, [((regime, after, name), (regime, before, name))]


def _row(bis: float, resampled: Tensor, **about: Any) -> ContrastRow:
    found = bootstrap_result(bis, resampled, Resampling(n_resamples=len(resampled)))
    return ContrastRow(**about, difference=found.estimate, low=found.low, high=found.high)
