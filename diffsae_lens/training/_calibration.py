"""The inference threshold of BatchTopK dictionaries, set so that k features fire per held-out token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_count, check_finite, check_number
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_weights


@torch.no_grad()
@typed
def calibrate_threshold(
    sae: SAE,
    activations: Float[Tensor, "token d_in"],
    *,
    k: int | float,
    features: slice | None = None,
    chunk_size: int = 512,
) -> float:
    """Set a JumpReLU dictionary's threshold so that `k` features fire per token of `activations`.

    BatchTopK training tracks its threshold as a moving average, which is far from converged after a
    short run: with k = 2, the exported L0 was 16.7, 4.1, 1.6 and 2.6 after 10, 40, 100 and 400 steps.
    The threshold at which exactly k features fire on given tokens is known in closed form: the
    (k * n_tokens)-th largest pre-activation.

    Args:
        sae: a JumpReLU dictionary; its `threshold` is set.
        activations: held-out tokens, on the dictionary's device.
        k: target mean number of active features per token (L0).
        features: the features whose threshold is set, and among which k are to fire; None for all.
        chunk_size: number of tokens encoded at a time; bounds the memory.

    Returns:
        The mean L0 of the whole dictionary on `activations` with the new threshold.

    Raises:
        TypeError: `k` or `chunk_size` is not a number.
        ValueError: `sae` has no threshold, there are no tokens, activations of another width, weights
            or activations that are not finite, or `k` out of range. The dictionary is then unchanged.
    """
    threshold = _threshold(sae)
    _check_activations(sae, activations)
    check_weights(sae)
    chunk_size = check_count("chunk_size", chunk_size)
    chosen = slice(None) if features is None else features
    ours = threshold[chosen]
    k = check_number("k", k, low=0, high=len(ours), low_open=True)
    n_kept = max(1, round(k * len(activations)))
    largest = torch.empty(0, device=activations.device)
    with _zeroed(ours):  # encode() then returns every positive pre-activation
        for chunk in activations.split(chunk_size):
            acts = sae.encode(chunk)[:, chosen].flatten()
            largest = torch.cat([largest, acts[acts > 0]])
            if len(largest) > n_kept + 1:
                largest = largest.topk(n_kept + 1).values
    largest = largest.sort(descending=True).values
    # Halfway to the next smaller one, so that rounding on another machine changes nothing.
    enough = len(largest) > n_kept
    ours.fill_((largest[n_kept - 1] + largest[n_kept]).item() / 2 if enough else 0)
    fired = sum((sae.encode(chunk) > 0).sum().item() for chunk in activations.split(chunk_size))
    return fired / len(activations)


def _threshold(sae: SAE) -> Tensor:
    threshold = getattr(sae, "threshold", None)
    if not isinstance(threshold, Tensor):
        raise InvalidValueError(
            f"`sae` is a {sae.cfg.architecture()} dictionary, which has no threshold to calibrate"
        )
    return threshold


def _check_activations(sae: SAE, activations: Tensor) -> None:
    right = activations.ndim == 2 and activations.is_floating_point()
    if not right or activations.shape[1] != sae.cfg.d_in:
        raise InvalidValueError(
            f"`activations` must be floats of shape [token, {sae.cfg.d_in}], got {activations.dtype} of "
            f"{list(activations.shape)}; "
            "give those of the hook point that the dictionary reads"
        )
    if len(activations) == 0:
        raise InvalidValueError("`activations` holds no tokens to calibrate on")
    check_finite("activations", activations)


@contextmanager
def _zeroed(threshold: Tensor) -> Iterator[None]:
    """Set a threshold to 0 inside the context and restore it on exit, even after an error."""
    before = threshold.clone()
    threshold.zero_()
    try:
        yield
    finally:
        threshold.copy_(before)
