"""BIS on prompts that count several times, as in a resample, for many resamples at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffsae_lens.measures._bis import bis, bis_parts
from diffsae_lens.measures._validation import feature_chunks

WORK = 2**24
"""Maximum number of entries in the intermediate arrays."""

AT_ONCE = 256
"""Features processed between checks of which resamples are done."""


def weighted_bis(
    feature_acts: Float[Tensor, "prompt d_sae"],
    is_trigger: Bool[Tensor, "prompt"],
    is_benign: Bool[Tensor, "prompt"],
    weights: Int[Tensor, "resample prompt"],
    *,
    percentile: float = 0.95,
) -> Float[Tensor, "resample"]:
    """Compute `bis` on prompts repeated `weights` times, for many weightings at once.

    A feature fires on the prompts above its quantile, which are those above one of its order
    statistics; so it is enough to walk down each feature's highest activations until their weights
    exceed the number that may fire. Features that score best on the original prompts come first, and a
    resample is done once its best feature reaches the ceiling.

    Args:
        feature_acts: one activation per prompt and feature.
        is_trigger: the prompts with the trigger.
        is_benign: their benign counterparts.
        weights: how often each prompt is in each resample.
        percentile: as for `bis`.

    Returns:
        The BIS of each resample's best feature; 0 without trigger or benign prompts.
    """
    score = bis(feature_acts, is_trigger, is_benign, percentile=percentile).feature_bis
    feature_acts, is_trigger, is_benign = (t.cpu() for t in (feature_acts, is_trigger, is_benign))
    order = score.argsort(descending=True)
    varies = feature_acts.amax(0) > feature_acts.amin(0)  # a constant feature never fires
    if not varies.any():
        return torch.zeros(len(weights), dtype=torch.double)
    feature_acts = feature_acts[:, order[varies[order]]]
    weights = weights.int().cpu()
    n_prompts = weights.sum(1)
    rank = (percentile * (n_prompts - 1).double()).round(decimals=9)
    resamples = _Resamples(
        weights=weights,
        allowed=n_prompts - 1 - rank.floor().int(),
        labels=(is_trigger, is_benign),
        n_labelled=((weights * is_trigger).sum(1), (weights * is_benign).sum(1)),
    )
    # A margin over the number that may fire, in case the weights pile up elsewhere.
    depth = min(len(feature_acts), int(1.5 * resamples.allowed.max()) + 50)
    best, ceiling = torch.zeros(len(weights), dtype=torch.double), resamples.ceiling()
    for chunk in feature_chunks(feature_acts):
        for features in chunk.split(AT_ONCE):
            unfinished = (best < ceiling).nonzero().squeeze(1)
            _walk(features, depth, resamples, unfinished, best)
    return best


@dataclass(frozen=True, kw_only=True, eq=False)
class _Resamples:
    weights: Int[Tensor, "resample prompt"]
    allowed: Int[Tensor, "resample"]
    """Number of prompts above the quantile."""
    labels: tuple[Bool[Tensor, "prompt"], Bool[Tensor, "prompt"]]
    """Masks of the trigger and the benign prompts."""
    n_labelled: tuple[Int[Tensor, "resample"], Int[Tensor, "resample"]]

    def ceiling(self) -> Float[Tensor, "resample"]:
        """The score of a feature that fires as often as it may, only on trigger prompts."""
        n_trigger, n_benign = (n.double() for n in self.n_labelled)
        fired = torch.minimum(self.allowed.double().clamp(min=0), n_trigger)
        scores = bis_parts(fired, fired, torch.zeros_like(fired), n_trigger, n_benign)["bis"]
        return scores.masked_fill((n_trigger == 0) | (n_benign == 0), 0)


def _walk(
    chunk: Tensor, depth: int, resamples: _Resamples, unfinished: Tensor, best: Tensor
) -> None:
    """Raise `best` of the unfinished resamples to the scores of a chunk, `[features, prompt]`."""
    values, order = chunk.topk(depth, dim=1)
    # Where each entry's group of ties begins: a feature fires strictly above its quantile.
    first = torch.arange(depth).expand_as(values).clone()
    tied = values[:, 1:] == values[:, :-1]
    first[:, 1:][tied] = 0
    first = first.cummax(1).values
    for part in unfinished.split(max(1, WORK // (4 * order.numel()))):
        taken = resamples.weights[part][:, order]  # [resample, features, depth]
        total = taken.cumsum(-1, dtype=torch.int32)
        last = (total <= resamples.allowed[part, None, None]).sum(-1)
        short = (last == depth).any(-1)
        if depth < chunk.shape[1] and short.any():
            _walk(chunk, chunk.shape[1], resamples, part[short], best)
            part, taken, total, last = (t[~short] for t in (part, taken, total, last))
        cut = first.expand(len(taken), -1, -1).gather(-1, last[..., None].clamp(max=depth - 1))
        counts = []
        for label in (None, *resamples.labels):
            sums = total if label is None else (taken * label[order]).cumsum(-1, dtype=torch.int32)
            below = sums.gather(-1, (cut - 1).clamp(min=0)).squeeze(-1)
            counts.append(below.masked_fill(cut.squeeze(-1) == 0, 0).double())
        n_fired, n_hit, n_false_alarm = counts
        n_trigger, n_benign = (n[part, None].double() for n in resamples.n_labelled)
        scores = bis_parts(n_hit, n_fired, n_false_alarm, n_trigger, n_benign)["bis"]
        scores = scores.masked_fill((n_trigger == 0) | (n_benign == 0), 0)
        best[part] = torch.maximum(best[part], scores.amax(-1))
