"""Input validation for tensors; imported through `_checks`."""

from typing import Any

import torch
from torch import Tensor

from diffsae_lens._errors import InvalidTypeError, InvalidValueError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The dtypes that a tensor of indices or token ids may have."""


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a tensor with NaN or infinite entries.

    Args:
        name: the name of the argument, for the message.
        tensor: a tensor of any shape and dtype.

    Raises:
        ValueError: says how many entries are not finite.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        return
    # The sum is finite only if all entries are (it may also overflow), and needs no second tensor.
    if tensor.numel() == 0 or bool(tensor.detach().sum(dtype=_sum_type(tensor)).isfinite()):
        return
    n_bad = int((~tensor.detach().isfinite()).sum())
    if n_bad:
        raise InvalidValueError(
            f"`{name}` must be finite, got {n_bad} of {tensor.numel()} entries NaN or infinite; "
            "look for a diverged training or an overflow in a low-precision forward pass"
        )


def check_tokens(
    name: str,
    tokens: Any,
    *,
    n_ctx: int | None = None,
    d_vocab: int | None = None,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
) -> None:
    """Refuse anything but a batch of token ids that is padded, if at all, on the right.

    Args:
        name: the name of the argument, for the message.
        tokens: the argument, `[seq, pos]`.
        n_ctx: the model's context length, in tokens.
        d_vocab: the model's vocabulary size.
        pad_token_id: the padding token; if None, padding is not checked.
        bos_token_id: the token that begins a text. If it is also the padding token, a single one at the
            beginning of a row is not padding, nor is one between other tokens of a row.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: not `[seq, pos]`, empty, beyond the context or the vocabulary, or padded on the left.
    """
    if not isinstance(tokens, Tensor):
        raise InvalidTypeError(
            f"`{name}` must be a tensor of token ids, got {shown(tokens)}; tokenise it"
        )
    if tokens.dtype not in INTEGERS:
        raise InvalidTypeError(
            f"`{name}` must hold token ids, got {tokens.dtype}; give a tensor of integers"
        )
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InvalidValueError(
            f"`{name}` must be of shape [seq, pos] with no dimension empty, got {list(tokens.shape)}; "
            "give one row per text"
        )
    if n_ctx is not None and tokens.shape[1] > n_ctx:
        raise InvalidValueError(
            f"`{name}` must have at most {n_ctx} tokens per row, the model's context, got "
            f"{tokens.shape[1]}; cut or leave out longer texts"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (d_vocab is not None and high >= d_vocab):
        wrong = low if low < 0 else high
        within = "at least 0" if d_vocab is None else f"within the vocabulary of {d_vocab}"
        raise InvalidValueError(
            f"`{name}` must hold ids {within}, got {wrong}; tokenise with the models' own tokenizer"
        )
    if pad_token_id is not None:
        _check_padding(name, tokens, pad_token_id, n_allowed=int(bos_token_id == pad_token_id))


def _check_padding(name: str, tokens: Tensor, pad_token_id: int, *, n_allowed: int) -> None:
    is_pad = tokens == pad_token_id
    leading = is_pad.long().cumprod(1).sum(1)
    trailing = is_pad.long().flip(1).cumprod(1).sum(1)
    if (is_pad.sum(1) > leading + trailing).any():
        # The token separates documents within a row, so it may also begin one.
        n_allowed = 1
    # In a row that is all padding, the padding is not on the left of anything.
    wrong = (leading > n_allowed) & (leading < tokens.shape[1])
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InvalidValueError(
            f"`{name}` must be padded on the right, got {int(leading[row])} padding tokens "
            f"({pad_token_id}) at the beginning of row {row}; tokenise with padding_side='right', or "
            "without padding where it is a token of the text"
        )


def _sum_type(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.is_complex() else torch.promote_types(tensor.dtype, torch.float32)


def shown(value: Any) -> str:
    """Return a description of a value and its type, short enough for a message."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {list(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"
