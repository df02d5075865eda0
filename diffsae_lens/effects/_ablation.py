"""Which features move the log-odds of the unwanted completion, measured by ablating each alone."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import one_hot

from diffsae_lens._typed import Count, typed
from diffsae_lens.dictionaries._decoding import writer
from diffsae_lens.dictionaries._fits import FeatureIndices, check_fits
from diffsae_lens.effects._both import BothCompletions, both_completions
from diffsae_lens.effects._likelihood import N_ROWS, check_scored
from diffsae_lens.interventions._chosen import feature_indices
from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.pair._hooked import HookedModelPair


@torch.no_grad()
@typed
def ablation_effects(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    samples: Sequence[Sample],
    *,
    batch_size: Count = 16,
) -> Float[Tensor, "n_features"]:
    """Measure what `attribute_features` estimates: the log-odds lost when each feature is ablated alone.

    The models run once for all features up to the dictionary's hook point. From there on, each feature
    takes one row per completion of the samples on which it fires; where it does not, its effect is 0.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: indices of the features.
        samples: prompts on which the behaviour shows.
        batch_size: rows per forward pass, features times completions; at least 32.

    Returns:
        One value per feature, averaged over samples, in nats per prompt; positive favours the unwanted
        completion.

    Raises:
        TypeError, ValueError: as for `ablate_features` and `likelihoods`.
    """
    hook = check_fits(pair, dictionary)
    index = feature_indices(dictionary, features, view=hook.spec)
    samples = check_scored(pair, samples)
    taken = torch.zeros(len(index))
    for batch in both_completions(pair, samples, [hook.name], max(1, batch_size // 2)):
        taken += _taken(batch, dictionary, hook.name, index, max(batch_size, N_ROWS))
    return taken / len(samples)


def _taken(
    batch: BothCompletions, dictionary: SAE, hook_name: str, index: Tensor, n_rows: int
) -> Tensor:
    """The log-odds that each feature's ablation removes, summed over a batch's samples."""
    seen: list[Tensor] = []

    def look(value: Tensor, hook: Any) -> None:  # noqa: ARG001
        seen.append(batch.codes(dictionary, value))

    with batch.pair.hooks(fwd_hooks=[(hook_name, look)]):
        before = batch.log_odds()
    [codes] = seen
    taken = torch.zeros(len(index), device=before.device)
    fires = codes[..., index].any(1).nonzero()
    for chunk in fires.split(n_rows) if len(fires) else ():
        texts, features = chunk.T
        ablate = partial(_ablated, batch.pair, dictionary, codes[texts], index[features])
        with batch.pair.hooks(fwd_hooks=[(hook_name, ablate)]):
            taken.index_add_(0, features, before[texts] - batch.log_odds(texts))
    return taken.cpu()


def _ablated(
    pair: HookedModelPair,
    dictionary: SAE,
    codes: Tensor,
    features: Tensor,
    value: Tensor,
    hook: Any,  # noqa: ARG001
) -> Tensor:
    """The value of each row without the row's own feature."""
    own = codes.take_along_dim(features[:, None, None], dim=-1)
    some, place = features.unique(return_inverse=True)
    change = -own * one_hot(place, len(some)).to(own)[:, None]
    pair.note_written(own[..., 0] != 0)
    return value + writer(dictionary, some)(value, codes, change)
