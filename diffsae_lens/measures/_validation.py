"""Checks of matrices and masks that every measure makes, and the chunks it then works through.

The signatures state the same shapes, but those are checked only in tests. Checks of single numbers and
the like are in `diffsae_lens._checks`.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffsae_lens._checks import check_finite
from diffsae_lens._errors import InvalidTypeError, InvalidValueError

CHUNK_ELEMENTS = 2**22
"""Matrix entries processed at a time: 16 MiB in float32, whatever the matrix's size."""


def check_matrix(name: str, matrix: Tensor) -> None:
    """Refuse anything but a finite floating-point matrix with one row per prompt.

    Args:
        name: the argument's name, for the message.
        matrix: the argument.

    Raises:
        ValueError: not 2-D, empty, not floating point, or with NaN or infinite entries.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidValueError(
            f"`{name}` must have two dimensions, none of them empty, with one row for every "
            f"prompt, got shape {list(matrix.shape)}; pool over tokens first"
        )
    if not matrix.is_floating_point():
        raise InvalidValueError(
            f"`{name}` must be of a floating point type, got {matrix.dtype}; call .float() on it"
        )
    check_finite(name, matrix)


def check_masks(matrix: Tensor, **masks: Tensor) -> None:
    """Refuse masks that do not sort the rows of a matrix into groups.

    Args:
        matrix: the matrix, with one row per prompt.
        **masks: the masks by argument name.

    Raises:
        ValueError: a mask is not boolean, has the wrong length, is on another device than the
            matrix or selects nothing; or two masks overlap.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise InvalidValueError(
                f"`{name}` must be a boolean mask, got {mask.dtype}; call .bool() on zeros and "
                "ones, or build the mask from indices"
            )
        if mask.shape != matrix.shape[:1]:
            raise InvalidValueError(
                f"`{name}` must have one entry for each of the {matrix.shape[0]} prompts, got "
                f"shape {list(mask.shape)}; build it from the same list of prompts"
            )
        if mask.device != matrix.device:
            raise InvalidValueError(
                f"`{name}` must be on {matrix.device} as the activations are, got {mask.device}; "
                f"call .to('{matrix.device}') on it"
            )
        if not mask.any():
            raise InvalidValueError(
                f"`{name}` must choose at least one prompt, got none; add prompts of this group"
            )
    for first, second in itertools.combinations(masks, 2):
        n_both = int((masks[first] & masks[second]).sum())
        if n_both:
            raise InvalidValueError(
                f"`{first}` and `{second}` must not overlap, got {n_both} prompts in both; "
                "leave each prompt in one group"
            )


def activation_batches(batches: Tensor | Iterable[Any], d_in: int) -> Iterator[Tensor]:
    """Yield batches of activations, `[token, d_in]`, each checked; a single tensor is one batch.

    Args:
        batches: the activations.
        d_in: input width of the dictionary that reads them.

    Raises:
        TypeError: a batch that is not a tensor.
        ValueError: a batch of another shape, not floating point, or with NaN or infinite entries.
    """
    if not isinstance(batches, Iterable):
        raise InvalidTypeError(
            f"`batches` must be tensors, got {type(batches).__name__}; give activations [token, d_in]"
        )
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        if not isinstance(batch, Tensor):
            raise InvalidTypeError(
                f"`batches` must hold tensors, got {type(batch).__name__}; give activations [token, d_in]"
            )
        if batch.ndim != 2 or batch.shape[1] != d_in or not batch.is_floating_point():
            raise InvalidValueError(
                f"`batches` must be floating point of shape [token, {d_in}], got {batch.dtype} "
                f"{list(batch.shape)}; flatten sequences and positions, and give the activations of the "
                "hook point that the dictionary reads"
            )
        check_finite("batches", batch)
        yield batch


def feature_chunks(feature_acts: Tensor) -> Iterator[Tensor]:
    """Cut `[prompt, d_sae]` into consecutive `[features, prompt]` pieces of bounded size.

    A feature's values are contiguous, for sorting, and at least float32: widening half precision changes
    neither order nor ties.

    Examples:
        >>> [list(chunk.shape) for chunk in feature_chunks(torch.zeros(2**20, 6))]
        [[4, 1048576], [2, 1048576]]
    """
    dtype = torch.promote_types(feature_acts.dtype, torch.float32)
    n_features = max(1, CHUNK_ELEMENTS // feature_acts.shape[0])
    for chunk in feature_acts.split(n_features, dim=1):
        yield chunk.T.to(dtype).contiguous()
