"""The paper's comparisons as differences in strict BIS: between regimes, layers and dictionaries.

All scores are on the same prompts and the same resamples of them, so every difference is paired.
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
    """What distinguishes a dictionary in comparisons."""

    kind: Literal["Diff-SAE", "crosscoder"]
    recipe: str
    """How it was trained; only dictionaries trained the same way are compared with each other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A dictionary's score at one layer of one regime."""

    bis: float
    resampled: Float[Tensor, "resample"]
    """Score on every resample of the prompts."""


Key = tuple[str | None, int, str]
"""Regime, layer and name of a dictionary."""


def contrasts(
    scores: Mapping[tuple[str | None, int], Mapping[str, Scored]], trained: Mapping[str, Trained]
) -> list[ContrastRow]:
    """Compare regimes, dictionaries and layers.

    - `regimes`: the second regime's score minus the first's, for each dictionary at each layer.
    - `dictionaries`: each Diff-SAE's score minus that of the crosscoder trained the same way. Of the usual
      kind, one has the crosscoder's sparsity and number of features, one its sparsity and parameters.
    - `layers`: each layer's score minus that of the previous layer in the study.

    Args:
        scores: scores by regime and layer, then by name; scores without a counterpart are left out.
        trained: what the dictionaries are, by name.

    Returns:
        One row per comparison, positive for what the paper says is better; if several layers are compared,
        also their mean, as a row without a layer.
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
    """Yield the comparisons: kind, name, and one pair of scores per layer."""
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
