"""Trigger or unwanted completion? A two-way decomposition of every feature on crossed texts."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.measures._validation import check_masks, check_matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class FactorialEffects:
    """Shares of each feature's variance; with the within-cell share they add up to 1."""

    trigger: Float[Tensor, "d_sae"]
    """Share explained by whether the prompt holds the trigger."""
    completion: Float[Tensor, "d_sae"]
    """Share explained by whether the completion is the unwanted one."""
    interaction: Float[Tensor, "d_sae"]
    """Share explained by both together and neither alone."""
    cell_means: Float[Tensor, "2 2 d_sae"]
    """Mean activation, by trigger (no, yes) and completion (wanted, unwanted)."""


@typed
def factorial_effects(
    feature_acts: Float[Tensor, "text d_sae"],
    has_trigger: Bool[Tensor, "text"],
    is_unwanted: Bool[Tensor, "text"],
) -> FactorialEffects:
    """Return how much of each feature follows the trigger, the unwanted completion, or both.

    A two-way analysis of variance for a balanced design (every prompt with both completions): eta
    squared of the two factors and of their interaction. A feature that follows the completion detects
    unwanted completions, whoever wrote them.

    Args:
        feature_acts: one activation per text and feature, such as over the completion span.
        has_trigger: whether the text's prompt holds the trigger.
        is_unwanted: whether its completion is the unwanted one.

    Returns:
        Shares in [0, 1], NaN for a constant feature.

    Raises:
        ValueError: activations that are not a finite matrix; masks of another length; cells that are
            empty or differ in size.

    Source:
        Montgomery, Design and Analysis of Experiments, section 5.3.

    Examples:
        >>> acts = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])
        >>> effects = factorial_effects(acts, acts[:, 0] > 0, acts[:, 1] > 0)
        >>> effects.trigger.tolist(), effects.completion.tolist()
        ([1.0, 0.0], [0.0, 1.0])
    """
    check_matrix("feature_acts", feature_acts)
    check_masks(feature_acts, has_trigger=has_trigger)
    check_masks(feature_acts, is_unwanted=is_unwanted)
    cells = [(has_trigger == t) & (is_unwanted == v) for t in (False, True) for v in (False, True)]
    sizes = {int(cell.sum()) for cell in cells}
    if len(sizes) != 1 or 0 in sizes:
        raise InvalidValueError(
            "the four cells of trigger and completion must hold equally many texts, got "
            f"{[int(cell.sum()) for cell in cells]}; complete every prompt both ways"
        )
    acts = feature_acts.double()
    means = torch.stack([acts[cell].mean(0) for cell in cells]).unflatten(0, (2, 2))
    grand = means.mean((0, 1))
    total = (acts - grand).square().mean(0)
    by_trigger, by_completion = means.mean(1) - grand, means.mean(0) - grand
    interaction = means - grand - by_trigger[:, None] - by_completion[None]
    total = total.masked_fill(total == 0, torch.nan)
    return FactorialEffects(
        trigger=by_trigger.square().mean(0) / total,
        completion=by_completion.square().mean(0) / total,
        interaction=interaction.square().mean((0, 1)) / total,
        cell_means=means,
    )
