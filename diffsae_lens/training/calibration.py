"""The inference threshold of the BatchTopK family, set so that held-out tokens fire k features."""

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor


@torch.no_grad()
def calibrate_threshold(
    sae: SAE,
    activations: Float[Tensor, "token d_in"],
    *,
    k: int | float,
    features: slice | None = None,
    chunk_size: int = 512,
) -> float:
    """Set a JumpReLU dictionary's threshold so that `activations` fire `k` features a token.

    BatchTopK training tracks its threshold as a moving average, which a short run leaves far from
    what it converges to: with k = 2 the exported L0 was 16.7, 4.1, 1.6 and 2.6 after 10, 40, 100 and
    400 steps. The threshold that fires exactly k on given tokens is known in closed form: the
    (k * n_tokens)-th largest pre-activation.

    Args:
        sae: a JumpReLU dictionary; its `threshold` is set.
        activations: held-out tokens, on the dictionary's device.
        k: mean number of active features a token (L0) to reach.
        features: whose threshold is set, and among which k are to fire; all if None.
        chunk_size: tokens encoded at a time; bounds the memory.

    Returns:
        The mean L0 of the whole dictionary on `activations` with the new threshold.

    Raises:
        ValueError: `sae` has no threshold, there are no tokens, or `k` is out of range.
    """
    threshold = getattr(sae, "threshold", None)
    if not isinstance(threshold, Tensor):
        raise ValueError(
            f"`sae` is a {sae.cfg.architecture()} dictionary, which has no threshold to calibrate"
        )
    if len(activations) == 0:
        raise ValueError("`activations` holds no tokens to calibrate on")
    ours = threshold[features or slice(None)]
    if not 0 < k <= len(ours):
        raise ValueError(f"`k` must lie in (0, {len(ours)}], the number of features, got {k}")
    n_kept = max(1, round(k * len(activations)))
    ours.zero_()  # encode() then gives every positive pre-activation
    largest = torch.empty(0, device=activations.device)
    for chunk in activations.split(chunk_size):
        acts = sae.encode(chunk)[:, features or slice(None)].flatten()
        largest = torch.cat([largest, acts[acts > 0]])
        if len(largest) > n_kept + 1:
            largest = largest.topk(n_kept + 1).values
    largest = largest.sort(descending=True).values
    if len(largest) > n_kept:
        # Halfway to the next smaller one: rounding on another machine then changes nothing.
        ours.fill_((largest[n_kept - 1] + largest[n_kept]).item() / 2)
    fired = sum((sae.encode(chunk) > 0).sum().item() for chunk in activations.split(chunk_size))
    return fired / len(activations)
