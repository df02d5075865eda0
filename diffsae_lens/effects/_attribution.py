"""Which features move the log-odds of the unwanted completion, estimated by gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_count
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.dictionaries._decoding import pull_back, writer
from diffsae_lens.dictionaries._fits import FeatureIndices, check_features, check_fits
from diffsae_lens.effects._both import BothCompletions, both_completions
from diffsae_lens.effects._likelihood import check_scored
from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.pair._hooked import HookedModelPair

_ALONE = ""
"""The name of a dictionary that was given without one."""
BATCH_SIZE = 8
"""Default number of samples per pass, each with both completions."""


@overload
def attribute_features(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: FeatureIndices = (),
    batch_size: Count = BATCH_SIZE,
) -> Float[Tensor, "d_sae"]: ...


@overload
def attribute_features(
    pair: HookedModelPair,
    dictionary: Mapping[str, SAE],
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: Mapping[str, FeatureIndices] = ...,
    batch_size: Count = BATCH_SIZE,
) -> dict[str, Tensor]: ...


@typed
def attribute_features(
    pair: HookedModelPair,
    dictionary: SAE | Mapping[str, SAE],
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: FeatureIndices | Mapping[str, FeatureIndices] = (),
    batch_size: Count = BATCH_SIZE,
) -> Tensor | dict[str, Tensor]:
    """Estimate how much each feature adds to the log-odds of the unwanted completion, in nats per prompt.

    Gradient attribution: sum over tokens of f_i * <d log-odds / d activation, d_i>, the first-order
    estimate of what ablating the feature removes. Unlike a ranking by detection, a ranking by this is a
    ranking by effect.

    Several dictionaries, by name, share the passes. Each feature is then credited with what it adds while
    the other dictionaries' features are in place: an effect that passes through two layers is credited to
    features of both.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points; or several of them by name.
        samples: prompts on which the behaviour shows.
        n_steps: above 1, integrated gradients (Sundararajan et al., arXiv 1703.01365): the gradient
            is averaged over that many points between the activation and the activation with all
            features ablated, which becomes exact for the sum over one dictionary's features as the
            number of steps grows.
        ablated: features already ablated; the others are credited with what they add without them. By
            name for several dictionaries.
        batch_size: samples per pass, each with both completions.

    Returns:
        One value per feature `[d_sae]`, averaged over samples, on the CPU; positive favours the unwanted
        completion. 0 for features already ablated. By name for several dictionaries.

    Raises:
        TypeError: samples, features or counts of another type.
        ValueError: no samples, a sample beyond the context, no steps, no dictionaries, features that do
            not exist or are repeated, or a dictionary of another pair.
    """
    parts = _parts(pair, dictionary, ablated)
    samples = check_scored(pair, samples)
    found = _attributed(parts, _batches(pair, parts, samples, batch_size), n_steps=n_steps)
    return found if isinstance(dictionary, Mapping) else found[_ALONE]


@dataclass(eq=False)
class _Part:
    """One dictionary whose features are attributed."""

    dictionary: SAE
    hook_name: str
    out: Tensor
    """The features already ablated."""
    total: Tensor

    def without(self, value: Tensor, codes: Tensor, fraction: float) -> Tensor:
        """The value without a fraction of every feature, and without any of those already ablated."""
        if fraction == 0 and len(self.out) == 0:
            return value.clone()  # the value itself would not count as written
        with torch.no_grad():
            taken = fraction * codes
            taken[..., self.out] = codes[..., self.out]
            change = writer(self.dictionary, None)(value.detach(), codes, -taken)
        return value + change

    @torch.no_grad()
    def add(self, value: Tensor, codes: Tensor, gradient: Tensor, weight: float) -> None:
        """Add the features' contributions at a gradient."""
        slope = pull_back(self.dictionary, value, codes, gradient)
        self.total += weight * (codes * slope).sum((0, 1)).float().cpu()

    def mean(self, n_samples: int) -> Tensor:
        """The mean over samples."""
        self.total[self.out] = 0
        return self.total / n_samples


def _parts(pair: HookedModelPair, dictionary: Any, ablated: Any) -> dict[str, _Part]:
    """The dictionaries by name, each with its features already ablated."""
    if not isinstance(dictionary, Mapping):
        dictionary, ablated = {_ALONE: dictionary}, {_ALONE: ablated}
    elif not isinstance(ablated, Mapping):
        ablated = {} if len(ablated) == 0 else {"(without a name)": ablated}
    if not dictionary or set(ablated) - set(dictionary):
        raise InvalidValueError(
            "`dictionary` must hold one or more dictionaries by name, and `ablated` features by some of "
            f"these names, got {list(dictionary)} and {list(ablated)}"
        )
    parts = {}
    for name, one in dictionary.items():
        hook = check_fits(pair, one).name
        out = check_features(one, ablated.get(name, ()), name="ablated")
        parts[name] = _Part(
            one, hook, torch.tensor(out, dtype=torch.long), torch.zeros(one.cfg.d_sae)
        )
    return parts


def _batches(
    pair: HookedModelPair, parts: Mapping[str, _Part], samples: Sequence[Sample], batch_size: int
) -> Iterator[BothCompletions]:
    hooks = [part.hook_name for part in parts.values()]
    return both_completions(pair, samples, hooks, batch_size)


def _attributed(
    parts: Mapping[str, _Part], batches: Iterable[BothCompletions], *, n_steps: int = 1
) -> dict[str, Tensor]:
    """What the features of each part add to the log-odds, averaged over samples."""
    # The fractions of all features to remove, at the middle of each step.
    fractions = [0.0] if n_steps == 1 else [(i + 0.5) / n_steps for i in range(n_steps)]
    n_samples = 0
    for batch in batches:
        n_samples += len(batch.labels) // 2
        for fraction in fractions:
            _attribute(list(parts.values()), batch, fraction, 1 / n_steps)
    return {name: part.mean(n_samples) for name, part in parts.items()}


def _attribute(
    parts: Sequence[_Part], batch: BothCompletions, fraction: float, weight: float
) -> None:
    """Add to each part its features' contributions, by the gradient with a fraction of them removed."""
    seen: dict[_Part, tuple[Tensor, Tensor, Tensor]] = {}

    def hook_of(part: _Part) -> Any:
        def move(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            codes = batch.codes(part.dictionary, value)
            moved = part.without(value, codes, fraction)
            # Downstream of another part the value is already on the gradient's path.
            moved = moved if moved.requires_grad else moved.detach().requires_grad_()
            seen[part] = (value.detach(), codes, moved)
            return moved

        return part.hook_name, move

    with torch.enable_grad(), batch.pair.hooks(fwd_hooks=[hook_of(part) for part in parts]):
        score = batch.log_odds().sum()
        gradients = torch.autograd.grad(score, [seen[part][2] for part in parts])
    for part, gradient in zip(parts, gradients, strict=True):
        value, codes, _ = seen[part]
        part.add(value, codes, gradient, weight)


@overload
def greedy_order(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    n_features: int,
    n_rounds: int | None = None,
) -> list[int]: ...


@overload
def greedy_order(
    pair: HookedModelPair,
    dictionary: Mapping[str, SAE],
    samples: Sequence[Sample],
    *,
    n_features: int,
    n_rounds: int | None = None,
) -> dict[str, list[int]]: ...


@typed
def greedy_order(
    pair: HookedModelPair,
    dictionary: SAE | Mapping[str, SAE],
    samples: Sequence[Sample],
    *,
    n_features: int,
    n_rounds: int | None = None,
) -> list[int] | dict[str, list[int]]:
    """Order features greedily: each round takes those with the largest effect once earlier ones are ablated.

    Attribution with all features present misjudges features that substitute for each other, in one layer
    or in several. Each round attributes the log-odds again with the features taken so far ablated, and
    takes the next `n_features / n_rounds`.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points; or several of them by name.
        samples: prompts on which the behaviour shows.
        n_features: number of features to order, over all dictionaries together.
        n_rounds: number of attributions, at most `n_features`; by default 8, or `n_features` if smaller.

    Returns:
        The features in the order taken; fewer if no others favour the unwanted completion. By name for
        several dictionaries.

    Raises:
        TypeError, ValueError: as for `attribute_features`, or counts out of range.
    """
    parts = _parts(pair, dictionary, {} if isinstance(dictionary, Mapping) else ())
    sizes = [part.dictionary.cfg.d_sae for part in parts.values()]
    n_features = check_count("n_features", n_features, at_most=sum(sizes))
    n_rounds = check_count(
        "n_rounds", min(8, n_features) if n_rounds is None else n_rounds, at_most=n_features
    )
    samples = check_scored(pair, samples)
    batches = list(_batches(pair, parts, samples, BATCH_SIZE))
    several = {name: part.dictionary for name, part in parts.items()}
    order: dict[str, list[int]] = {name: [] for name in several}
    for i in range(n_rounds):
        found = _attributed(_parts(pair, several, order), batches)
        n_taken = n_features * (i + 1) // n_rounds - sum(map(len, order.values()))
        best = torch.cat(list(found.values())).topk(n_taken)
        for at in best.indices[best.values > 0].tolist():
            for name, size in zip(several, sizes, strict=True):
                if at < size:
                    order[name].append(at)
                    break
                at -= size
    return order if isinstance(dictionary, Mapping) else order[_ALONE]
