"""How well a feature ranks one group of prompts above another, without a fixed threshold.

Ties count as ties. That matters: a sparse feature is 0 on most prompts. Prompts in neither group do
not count, so unlike BIS these measures do not depend on the mix of groups (average precision depends
on that of the two named ones).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffsae_lens._typed import ShareBelow1, typed
from diffsae_lens.measures._validation import check_masks, check_matrix, feature_chunks


@typed
def auroc(
    feature_acts: Float[Tensor, "prompt d_sae"],
    is_positive: Bool[Tensor, "prompt"],
    is_negative: Bool[Tensor, "prompt"],
) -> Float[Tensor, "d_sae"]:
    """Compute every feature's area under the ROC curve.

    This is the probability that a random positive prompt has a greater activation than a random
    negative one, with ties counting half. In [0, 1]; 0.5 is chance and 1 is perfect. Below 0.5 the
    feature is lower on the positives.

    Args:
        feature_acts: one activation per prompt and feature.
        is_positive: the prompts that should come first, such as those with the trigger.
        is_negative: the prompts that should come last. Prompts in neither mask do not count.

    Returns:
        One value per feature, float64 on the CPU.

    Raises:
        ValueError: activations that are not a finite floating-point matrix; masks that are not boolean, of
            the wrong length, on another device, empty or overlapping.

    Source:
        Mann and Whitney (1947); equal to `sklearn.metrics.roc_auc_score`.

    Examples:
        >>> feature_acts = torch.tensor([[3.0], [1.0], [1.0], [0.0]])
        >>> is_positive = torch.tensor([True, True, False, False])
        >>> auroc(feature_acts, is_positive, ~is_positive).item()
        0.875
    """

    def score(positive: Tensor, negative: Tensor) -> Tensor:
        n_below = torch.searchsorted(negative, positive)
        n_not_above = torch.searchsorted(negative, positive, right=True)
        twice_wins = (n_below + n_not_above).sum(dim=1).cpu().double()
        return twice_wins / (2 * positive.shape[1] * negative.shape[1])

    return _per_feature(score, feature_acts, is_positive, is_negative)


@typed
def average_precision(
    feature_acts: Float[Tensor, "prompt d_sae"],
    is_positive: Bool[Tensor, "prompt"],
    is_negative: Bool[Tensor, "prompt"],
) -> Float[Tensor, "d_sae"]:
    """Compute every feature's average precision.

    The mean, over the positive prompts, of the precision among all prompts whose activation is at
    least as great: sum_n (R_n - R_{n-1}) P_n over the distinct activations in descending order.
    In (0, 1], higher is better; a constant feature scores the share of positives.

    Arguments and errors are those of `auroc`; one value per feature, float64 on the CPU.

    Source:
        Equal to `sklearn.metrics.average_precision_score`.

    Examples:
        >>> feature_acts = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
        >>> is_positive = torch.tensor([True, True, False, False])
        >>> round(average_precision(feature_acts, is_positive, ~is_positive).item(), 4)
        0.8333
    """

    def score(positive: Tensor, negative: Tensor) -> Tensor:
        n_hit = positive.shape[1] - torch.searchsorted(positive, positive)
        n_false_alarm = negative.shape[1] - torch.searchsorted(negative, positive)
        n_hit, n_false_alarm = n_hit.cpu().double(), n_false_alarm.cpu()
        return (n_hit / (n_hit + n_false_alarm)).mean(dim=1)

    return _per_feature(score, feature_acts, is_positive, is_negative)


@typed
def recall_at_fpr(
    feature_acts: Float[Tensor, "prompt d_sae"],
    is_positive: Bool[Tensor, "prompt"],
    is_negative: Bool[Tensor, "prompt"],
    *,
    max_fpr: ShareBelow1 = 0.01,
) -> Float[Tensor, "d_sae"]:
    """Compute every feature's largest recall at a bounded false positive rate.

    The feature fires where its activation is greater than a threshold; of all thresholds with
    (negatives that it fires on) / (negatives) <= `max_fpr`, the one with the greatest recall
    counts. In [0, 1], higher is better. Unlike BIS it has no ceiling below 1. The threshold is set on
    the scored prompts, which is optimistic with few negatives.

    Errors are those of `auroc`; one value per feature, float64 on the CPU.

    Args:
        feature_acts: one activation per prompt and feature.
        is_positive: the prompts on which it should fire.
        is_negative: the prompts on which it should not.
        max_fpr: the largest share of negatives on which it may fire, in [0, 1); with 0 it may fire on
            none.

    Source:
        The point of `sklearn.metrics.roc_curve` with the largest fpr <= `max_fpr`.

    Examples:
        >>> feature_acts = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
        >>> is_positive = torch.tensor([True, True, False, False])
        >>> recall_at_fpr(feature_acts, is_positive, ~is_positive).item()
        0.5
    """

    def score(positive: Tensor, negative: Tensor) -> Tensor:
        # 0.29 * 100 is 28.999999999999996
        n_allowed = math.floor(round(max_fpr * negative.shape[1], 9))
        # Firing strictly above the first negative that may not fire is the best one can do.
        threshold = negative[:, -1 - n_allowed, None]
        return (positive > threshold).cpu().double().mean(dim=1)

    return _per_feature(score, feature_acts, is_positive, is_negative)


def _per_feature(
    score: Callable[[Tensor, Tensor], Tensor],
    feature_acts: Tensor,
    is_positive: Tensor,
    is_negative: Tensor,
) -> Float[Tensor, "d_sae"]:
    """Apply `score` to the two groups' sorted activations, `[features, prompt]`, chunk by chunk."""
    check_matrix("feature_acts", feature_acts)
    check_masks(feature_acts, is_positive=is_positive, is_negative=is_negative)
    scores = []
    for chunk in feature_chunks(feature_acts):
        positive = chunk[:, is_positive].sort(dim=1).values
        negative = chunk[:, is_negative].sort(dim=1).values
        scores.append(score(positive, negative))
    return torch.cat(scores)
