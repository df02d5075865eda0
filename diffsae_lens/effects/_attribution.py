"""Which features move the log-odds of the unwanted completion: estimated by gradients, and measured."""

from collections.abc import Mapping, Sequence
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
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._likelihood import (
    COMPLETIONS,
    check_scored,
    encoded,
    likelihoods,
    score_completions,
)
from diffsae_lens.interventions._chosen import feature_indices
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.interventions._features import ablate_features
from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.pair._hooked import HookedModelPair


@overload
def attribute_features(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: FeatureIndices = (),
    batch_size: Count = 8,
) -> Float[Tensor, "d_sae"]: ...


@overload
def attribute_features(
    pair: HookedModelPair,
    dictionary: Mapping[str, SAE],
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: Mapping[str, FeatureIndices] = ...,
    batch_size: Count = 8,
) -> dict[str, Tensor]: ...


@typed
def attribute_features(
    pair: HookedModelPair,
    dictionary: SAE | Mapping[str, SAE],
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: FeatureIndices | Mapping[str, FeatureIndices] = (),
    batch_size: Count = 8,
) -> Tensor | dict[str, Tensor]:
    """Estimate how much each feature adds to the log-odds of the unwanted completion, in nats per prompt.

    Gradient attribution: sum over tokens of f_i * <d log-odds / d activation, d_i>, the first-order
    estimate of what ablating the feature takes away. A ranking by it is a ranking by effect, which a
    ranking by detection is not.

    Several dictionaries, by name, share the passes. Each feature is then attributed what it adds with
    the other dictionaries' features in place: one effect that passes through two layers is attributed
    to features of both.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points; or several of them by name.
        samples: prompts on which the behaviour shows.
        n_steps: above 1, integrated gradients (Sundararajan et al., arXiv 1703.01365): the gradient
            is averaged over that many points between the activation and the activation with all
            features ablated, which is exact for all features of one dictionary together as the steps
            get many.
        ablated: features already taken out; the others are then attributed what they add without them.
            With several dictionaries by name, too.
        batch_size: samples per backward pass.

    Returns:
        One value per feature `[d_sae]`, mean over the samples, on the CPU; positive favours the unwanted
        completion. 0 for the features already taken out. With several dictionaries by name, too.

    Raises:
        TypeError: something else in place of samples, features or counts.
        ValueError: no samples, one beyond the context, no steps, no dictionaries, features that do not
            exist or are repeated, or a dictionary of another pair.
    """
    parts = _parts(pair, dictionary, ablated)
    samples = check_scored(pair, samples)
    # The fractions of all features that are taken out, at the middle of each step.
    fractions = [0.0] if n_steps == 1 else [(i + 0.5) / n_steps for i in range(n_steps)]
    for sign, which in zip((1.0, -1.0), COMPLETIONS, strict=True):
        for _, tokens, labels in encoded(pair, samples, which, batch_size, "attributing"):
            for fraction in fractions:
                _attribute(pair, list(parts.values()), tokens, labels, fraction, sign / n_steps)
    found = {name: part.mean(len(samples)) for name, part in parts.items()}
    return found if isinstance(dictionary, Mapping) else found[_ALONE]


_ALONE = ""
"""The name of a dictionary that was given without one."""


@dataclass(eq=False)
class _Part:
    """One dictionary whose features are attributed."""

    dictionary: SAE
    hook_name: str
    out: Tensor
    """The features already taken out."""
    total: Tensor

    def codes(self, value: Tensor, tokens: Tensor) -> Tensor:
        """The features' activations, 0 where the dictionary does not act."""
        codes = self.dictionary.encode(value.detach())
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        counted = DictionaryRecord.of(self.dictionary).tokens.counted(tokens, positions)
        return codes.masked_fill(~counted[..., None], 0)

    def without(self, value: Tensor, fraction: float, tokens: Tensor) -> Tensor:
        """The value without a fraction of every feature, and without those already taken out."""
        with torch.no_grad():
            codes = self.codes(value, tokens)
            taken = fraction * codes
            taken[..., self.out] = codes[..., self.out]
            change = writer(self.dictionary, None)(value.detach(), codes, -taken)
        return value + change

    @torch.no_grad()
    def add(self, value: Tensor, gradient: Tensor, tokens: Tensor, weight: float) -> None:
        """Add what the features contribute by a gradient."""
        codes = self.codes(value, tokens)
        slope = pull_back(self.dictionary, value, codes, gradient)
        self.total += weight * (codes * slope).sum((0, 1)).float().cpu()

    def mean(self, n_samples: int) -> Tensor:
        """The mean over samples."""
        self.total[self.out] = 0
        return self.total / n_samples


def _parts(pair: HookedModelPair, dictionary: Any, ablated: Any) -> dict[str, _Part]:
    """The dictionaries by name, each with what is already taken out of it."""
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


def _attribute(
    pair: HookedModelPair,
    parts: Sequence[_Part],
    tokens: Tensor,
    labels: Tensor,
    fraction: float,
    weight: float,
) -> None:
    """Add to each part what its features contribute by the gradient at one fraction taken out."""
    values: dict[_Part, tuple[Tensor, Tensor]] = {}

    def hook_of(part: _Part) -> Any:
        def move(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            moved = part.without(value, fraction, tokens)
            # Below another part the value is on the gradient's path already.
            moved = moved if moved.requires_grad else moved.detach().requires_grad_()
            values[part] = (value.detach(), moved)
            return moved

        return part.hook_name, move

    with torch.enable_grad(), pair.hooks(fwd_hooks=[hook_of(part) for part in parts]):
        score = score_completions(pair, tokens, labels).sum()
        gradients = torch.autograd.grad(score, [values[part][1] for part in parts])
    for part, gradient in zip(parts, gradients, strict=True):
        part.add(values[part][0], gradient, tokens, weight)


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
    """Order features so that each round takes those with the most effect once the others are gone.

    Attribution with all features present misjudges those that stand in for each other, in one layer or
    in several. Each round attributes the log-odds again with what is taken already ablated, and takes
    the next `n_features / n_rounds`.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points; or several of them by name.
        samples: prompts on which the behaviour shows.
        n_features: how many features to order, in all dictionaries together.
        n_rounds: attributions, at most `n_features`; by default 8, or `n_features` if that is fewer.

    Returns:
        The features, the first to be taken first; fewer if no others favour the unwanted completion.
        With several dictionaries, those of each by name.

    Raises:
        TypeError, ValueError: as for `attribute_features`, or sizes that cannot be.
    """
    parts = _parts(pair, dictionary, {} if isinstance(dictionary, Mapping) else ())
    sizes = [part.dictionary.cfg.d_sae for part in parts.values()]
    n_features = check_count("n_features", n_features, at_most=sum(sizes))
    n_rounds = check_count(
        "n_rounds", min(8, n_features) if n_rounds is None else n_rounds, at_most=n_features
    )
    several = {name: part.dictionary for name, part in parts.items()}
    order: dict[str, list[int]] = {name: [] for name in several}
    for i in range(n_rounds):
        found = attribute_features(pair, several, samples, ablated=order)
        n_taken = n_features * (i + 1) // n_rounds - sum(map(len, order.values()))
        best = torch.cat(list(found.values())).topk(n_taken)
        for at in best.indices[best.values > 0].tolist():
            for name, size in zip(several, sizes, strict=True):
                if at < size:
                    order[name].append(at)
                    break
                at -= size
    return order if isinstance(dictionary, Mapping) else order[_ALONE]


@typed
def ablation_effects(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    samples: Sequence[Sample],
    *,
    batch_size: Count = 16,
) -> Float[Tensor, "n_features"]:
    """Measure what `attribute_features` estimates: each feature ablated alone, the log-odds it takes.

    Up to the dictionary's hook the models run once for all features; from there on each takes two passes
    per sample, so choose few samples.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: indices of the features.
        samples: prompts on which the behaviour shows.
        batch_size: rows of a forward pass, features times samples; at least 32.

    Returns:
        One value per feature, mean over the samples, in nats per prompt; positive favours the unwanted
        completion.

    Raises:
        TypeError, ValueError: as for `ablate_features` and `likelihoods`.
    """
    view = check_fits(pair, dictionary).spec
    features = feature_indices(dictionary, features, view=view).tolist()
    under: dict[str, Edit | None] = {"": None}
    under |= {str(f): ablate_features(pair, dictionary, [f]) for f in features}
    found = likelihoods(pair, samples, under=under, batch_size=batch_size)
    means = torch.stack([scored.log_odds.mean() for scored in found.values()])
    return means[0] - means[1:]
