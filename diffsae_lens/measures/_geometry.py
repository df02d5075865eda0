"""Which model a crosscoder's feature belongs to by its decoder; latent scaling checks that claim."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens._checks import check_finite
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed

SHARED_RANGE = (0.4, 0.6)
BASE_ONLY_BELOW, FINETUNED_ONLY_ABOVE = 0.1, 0.9


@typed
def relative_decoder_norm(
    W_dec_base: Float[Tensor, "d_sae d_model"], W_dec_finetuned: Float[Tensor, "d_sae d_model"]
) -> Float[Tensor, "d_sae"]:
    r"""Return how much larger a feature's decoder is in the fine-tuned model, 0 to 1.

        1/2 * ((||d_f|| - ||d_b||) / max(||d_f||, ||d_b||) + 1)

    0 is base-only, 1/2 shared, 1 finetuned-only. The literature bins it below 0.1, 0.4 to 0.6 and
    above 0.9. A norm of 0 does not show that a model lacks the feature: L1 training may shrink it to 0
    even if the model has it (Minder et al. 2504.02922); check with `latent_scaling`.

    Args:
        W_dec_base: decoder rows of the base model.
        W_dec_finetuned: decoder rows of the fine-tuned model, in the same normalisation.

    Returns:
        One value per feature, NaN where both norms are 0.

    Raises:
        ValueError: the two differ in shape.

    Examples:
        >>> relative_decoder_norm(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        tensor([0.8333, 0.0000])
    """
    _check_halves(W_dec_base, W_dec_finetuned)
    base, finetuned = W_dec_base.norm(dim=-1), W_dec_finetuned.norm(dim=-1)
    return 0.5 * ((finetuned - base) / torch.maximum(finetuned, base) + 1)


@typed
def decoder_cosine(
    W_dec_base: Float[Tensor, "d_sae d_model"], W_dec_finetuned: Float[Tensor, "d_sae d_model"]
) -> Float[Tensor, "d_sae"]:
    """Return the cosine between each feature's two decoder rows, -1 to 1; NaN for a norm of 0.

    Raises:
        ValueError: the two differ in shape.
    """
    _check_halves(W_dec_base, W_dec_finetuned)
    dots = (W_dec_base * W_dec_finetuned).sum(-1)
    return dots / (W_dec_base.norm(dim=-1) * W_dec_finetuned.norm(dim=-1))


def _check_halves(W_dec_base: Tensor, W_dec_finetuned: Tensor) -> None:
    if W_dec_base.shape != W_dec_finetuned.shape:
        raise InvalidValueError(
            "`W_dec_base` and `W_dec_finetuned` must have the same shape, got "
            f"{list(W_dec_base.shape)} and {list(W_dec_finetuned.shape)}"
        )
    for name, half in (("W_dec_base", W_dec_base), ("W_dec_finetuned", W_dec_finetuned)):
        if not half.is_floating_point():
            raise InvalidValueError(f"`{name}` must be floating point, got {half.dtype}")
        check_finite(name, half)


def call_by_decoder_norm(relative_norm: Float[Tensor, "d_sae"]) -> list[str]:
    """Name each feature by the literature's bins of its relative decoder norm.

    Examples:
        >>> call_by_decoder_norm(torch.tensor([0.0, 0.5, 0.7, 1.0, float("nan")]))
        ['base-only', 'shared', 'between', 'finetuned-only', 'dead']
    """
    low, high = SHARED_RANGE

    def name(value: float) -> str:
        if value != value:
            return "dead"
        if value < BASE_ONLY_BELOW:
            return "base-only"
        if value > FINETUNED_ONLY_ABOVE:
            return "finetuned-only"
        return "shared" if low <= value <= high else "between"

    return [name(value) for value in relative_norm.tolist()]
