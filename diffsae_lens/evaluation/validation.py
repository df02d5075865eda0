"""Checks that every measure makes of its arguments, and the chunks it then works through.

The signatures say the same in shapes, but shapes are checked in tests alone.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Entries of a matrix worked on at a time: 16 MiB in float32, whatever its size."""


def check_matrix(name: str, matrix: Tensor) -> None:
    """Refuse what is no finite floating point matrix with a row for every prompt.

    Args:
        name: what the argument is called, for the message.
        matrix: the argument.

    Raises:
        ValueError: not 2-D, empty, not floating point, or with NaN or infinite entries.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"`{name}` must have two dimensions, none of them empty, with one row for every "
            f"prompt, got shape {list(matrix.shape)}; pool over tokens first"
        )
    if not matrix.is_floating_point():
        raise ValueError(
            f"`{name}` must be of a floating point type, got {matrix.dtype}; call .float() on it"
        )
    n_rows = max(1, CHUNK_ELEMENTS // matrix.shape[1])
    n_bad = sum(int((~rows.isfinite()).sum()) for rows in matrix.split(n_rows))
    if n_bad:
        raise ValueError(
            f"`{name}` must be finite, got {n_bad} of {matrix.numel()} entries NaN or infinite; "
            "look for an overflow in a low-precision forward pass or an empty pooling mask"
        )


def check_masks(matrix: Tensor, **masks: Tensor) -> None:
    """Refuse masks that do not sort the rows of a matrix into groups.

    Args:
        matrix: what has one row for every prompt.
        **masks: the masks by argument name.

    Raises:
        ValueError: a mask is not boolean, has the wrong length, is on another device than the
            matrix or chooses nothing; or two masks overlap.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(
                f"`{name}` must be a boolean mask, got {mask.dtype}; call .bool() on zeros and "
                "ones, or build the mask from indices"
            )
        if mask.shape != matrix.shape[:1]:
            raise ValueError(
                f"`{name}` must have one entry for each of the {matrix.shape[0]} prompts, got "
                f"shape {list(mask.shape)}; build it from the same list of prompts"
            )
        if mask.device != matrix.device:
            raise ValueError(
                f"`{name}` must be on {matrix.device} as the activations are, got {mask.device}; "
                f"call .to('{matrix.device}') on it"
            )
        if not mask.any():
            raise ValueError(
                f"`{name}` must choose at least one prompt, got none; add prompts of this group"
            )
    for first, second in itertools.combinations(masks, 2):
        n_both = int((masks[first] & masks[second]).sum())
        if n_both:
            raise ValueError(
                f"`{first}` and `{second}` must not overlap, got {n_both} prompts in both; "
                "leave each prompt in one group"
            )


def check_unit_interval(name: str, value: float, *, with_zero: bool = False) -> None:
    """Refuse a number outside the open unit interval.

    Args:
        name: what the argument is called, for the message.
        value: the argument.
        with_zero: whether 0 is allowed.

    Raises:
        ValueError: outside, or NaN.
    """
    if not (0 < value < 1 or (with_zero and value == 0)):
        bounds = "at least 0" if with_zero else "greater than 0"
        raise ValueError(
            f"`{name}` must be {bounds} and less than 1, got {value}; give a fraction, not percent"
        )


def check_count(name: str, value: int, *, at_least: int = 1) -> None:
    """Refuse a count below its least value.

    Args:
        name: what the argument is called, for the message.
        value: the argument.
        at_least: the least value.

    Raises:
        ValueError: less than that.
    """
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {value}; give a larger one")


def feature_chunks(feature_acts: Tensor) -> Iterator[Tensor]:
    """Cut `[prompt, d_sae]` into consecutive `[features, prompt]` pieces of bounded size.

    A feature's values lie side by side, as sorting wants them, in float32 at least: half precision
    is widened, which changes neither order nor ties.

    Examples:
        >>> [list(chunk.shape) for chunk in feature_chunks(torch.zeros(2**20, 6))]
        [[4, 1048576], [2, 1048576]]
    """
    dtype = torch.promote_types(feature_acts.dtype, torch.float32)
    n_features = max(1, CHUNK_ELEMENTS // feature_acts.shape[0])
    for chunk in feature_acts.split(n_features, dim=1):
        yield chunk.T.to(dtype).contiguous()
