"""Checks of the features that an intervention acts on, and of the amounts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_number
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._fits import FeatureIndices, check_features
from diffsae_lens.pair._views import View


def listed(given: Any) -> Any:
    """Return a single item as a list of one, and several items unchanged."""
    return given if isinstance(given, Iterable) and getattr(given, "ndim", 1) else [given]


def amounts(
    name: str, amount: int | float | Sequence[int | float], dictionary: SAE, index: Tensor
) -> Tensor:
    """Return one finite number per feature."""
    flat = listed(amount)
    if isinstance(flat, str) or getattr(flat, "ndim", 1) != 1 or len(flat) not in (1, len(index)):
        raise InvalidValueError(
            f"`{name}` must be one finite number or one for each of the {len(index)} features, "
            f"got {amount!r}"
        )
    numbers = [check_number(name, number) for number in flat]
    given = torch.tensor(numbers, dtype=dictionary.W_dec.dtype, device=dictionary.W_dec.device)
    return given.expand(len(index))


def feature_indices(
    dictionary: SAE,
    features: FeatureIndices,
    *,
    view: View | None = None,
    name: str = "features",
) -> Tensor:
    """Return feature indices as a tensor; each must write something (given `view`, to the fine-tuned model).

    Raises:
        TypeError, ValueError: as for `check_features`, or a feature with a zero decoder row.
    """
    indices = check_features(dictionary, features, name=name)
    index = torch.as_tensor(indices, dtype=torch.long, device=dictionary.W_dec.device)
    written = dictionary.W_dec if view is None else view.writes(dictionary.W_dec, "finetuned")
    silent = index[~written[index].any(-1)].tolist()
    if silent:
        raise InvalidValueError(
            f"`{name}` {silent} have a zero decoder row and write nothing there; leave them out"
        )
    return index
