"""What a feature writes, which `W_dec` alone does not determine for every dictionary.

Some dictionaries divide a feature's activation by its decoder norm (TopK with
`rescale_acts_by_decoder_norm`), others restore each token's norm
(`normalize_activations="constant_norm_rescale"`). The effect of a change in codes on the activation is then
the difference between two calls of `decode`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._views import VIEWS

Written = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A map from `(value, codes, change)` to what changing some features' codes adds, `[..., d_in]`: a hook
point's value `[..., d_in]`, its codes `[..., d_sae]` and the changes in those codes `[..., feature]`."""

_ROWS_AT_ONCE = 1024


def writer(dictionary: SAE, index: Tensor | None) -> Written:
    """Return a function that computes what a change in some features' codes writes, `[..., d_in]`.

    Args:
        dictionary: the dictionary with the features.
        index: indices of the features; None for all of them.
    """
    if decodes_linearly(dictionary):
        if index is None:
            return lambda value, codes, change: change @ dictionary.W_dec  # noqa: ARG005
        return lambda value, codes, change: change @ dictionary.W_dec[index]  # noqa: ARG005

    def written(value: Tensor, codes: Tensor, change: Tensor) -> Tensor:
        changed = codes.clone()
        changed[..., slice(None) if index is None else index] += change
        return _decode(dictionary, value, changed) - _decode(dictionary, value, codes)

    return written


def pull_back(
    dictionary: SAE,
    value: Float[Tensor, "*row d_in"],
    codes: Float[Tensor, "*row d_sae"],
    gradient: Float[Tensor, "*row d_in"],
) -> Float[Tensor, "*row d_sae"]:
    """Return the gradient with respect to the codes, given the one with respect to what they write."""
    if decodes_linearly(dictionary):
        return gradient @ dictionary.W_dec.T
    with torch.enable_grad():
        leaf = codes.detach().requires_grad_()
        (pulled,) = torch.autograd.grad(_decode(dictionary, value, leaf), leaf, gradient)
    return pulled


@torch.no_grad()
def decoder_rows(dictionary: SAE) -> Float[Tensor, "d_sae d_in"]:
    """Return what each feature writes at activation 1.

    Where decoding restores each token's norm, the rows are those before that step: what a feature writes
    at a token is then a multiple of its row, with the same factor for all features.
    """
    if decodes_linearly(dictionary) or restores_norms(dictionary):
        return dictionary.W_dec.detach()
    W_dec = dictionary.W_dec
    nothing = dictionary.decode(torch.zeros_like(W_dec[:1, :1]).expand(1, len(W_dec)))
    rows = []
    for index in torch.arange(len(W_dec), device=W_dec.device).split(_ROWS_AT_ONCE):
        codes = torch.zeros(len(index), len(W_dec), dtype=W_dec.dtype, device=W_dec.device)
        codes[torch.arange(len(index)), index] = 1
        rows.append(dictionary.decode(codes) - nothing)
    return torch.cat(rows)


def decoder_halves(
    dictionary: SAE,
) -> tuple[Float[Tensor, "d_sae d_model"], Float[Tensor, "d_sae d_model"]]:
    """Return a crosscoder's decoder per model, in the space it was trained in.

    The two models' norms can be compared in that space, not in raw activations.

    Raises:
        ValueError: the dictionary is not a crosscoder, or restores each token's norm.
    """
    base, finetuned = scales_by_model(dictionary)
    if restores_norms(dictionary):
        raise InvalidValueError(
            "`dictionary` must write as much on every token, got `normalize_activations="
            f"{dictionary.cfg.normalize_activations!r}`, with which norms cannot be compared"
        )
    W_dec, view = decoder_rows(dictionary), VIEWS["concat"]
    return view.writes(W_dec, "base") / base, view.writes(W_dec, "finetuned") / finetuned


def scales_by_model(dictionary: SAE) -> tuple[float, float]:
    """Return what each model's activations were divided by in training; 1 if they were not.

    Raises:
        ValueError: the dictionary is not a crosscoder.
    """
    record = DictionaryRecord.of(dictionary)
    if not record.is_crosscoder:
        raise InvalidValueError(
            f"`dictionary` must be a crosscoder, got {type(dictionary).__name__}, which has one "
            "decoder and not one for each model"
        )
    base, finetuned = record.scales
    return base, finetuned


def restores_norms(dictionary: SAE) -> bool:
    """Whether decoding restores the norm that encoding removed from each token."""
    return dictionary.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")


@torch.no_grad()
def decodes_linearly(dictionary: SAE) -> bool:
    """Whether a feature writes its activation times its row of `W_dec`, on every token.

    Tested on random codes rather than looked up, so it also works for custom architectures.
    """
    if restores_norms(dictionary):
        return False
    W_dec = dictionary.W_dec
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(1, len(W_dec), generator=generator).to(W_dec)
    with_codes, without = dictionary.decode(codes), dictionary.decode(torch.zeros_like(codes))
    error = (with_codes - without - codes @ W_dec).float().norm()
    # The rounding error of adding the bias and subtracting it again.
    rounding = torch.finfo(W_dec.dtype).eps * (with_codes.float().norm() + without.float().norm())
    return bool(error <= 8 * rounding)


def _decode(dictionary: SAE, value: Tensor, codes: Tensor) -> Tensor:
    if restores_norms(dictionary):
        dictionary.encode(value)  # decoding consumes the norms that encoding stored
    return dictionary.decode(codes)
