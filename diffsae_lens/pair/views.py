"""What a pair's virtual hook points show of two activations, and what a write to them means."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """How a virtual hook point is read off the two activations, and what a write to it means."""

    read: Callable[[Tensor, Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]
    """`(value, base) -> finetuned`."""
    width: int = 1
    """d_in as a multiple of d_model."""
    needs_base: bool = True


def _wide(activation: Tensor) -> Tensor:
    """At least float32: differences are 0.3 to 5% of the variance, less than bfloat16 resolves."""
    return activation.to(torch.promote_types(activation.dtype, torch.float32))


VIEWS: dict[str, View] = {
    "base": View(lambda base, finetuned: base, lambda value, base: value),  # noqa: ARG005
    "finetuned": View(
        lambda base, finetuned: finetuned,  # noqa: ARG005
        lambda value, base: value,  # noqa: ARG005
        needs_base=False,
    ),
    "diff": View(
        lambda base, finetuned: _wide(finetuned) - _wide(base),
        lambda value, base: _wide(base) + value,
    ),
    "concat": View(
        lambda base, finetuned: torch.cat([_wide(base), _wide(finetuned)], dim=-1),
        lambda value, base: value[..., base.shape[-1] :],
        width=2,
    ),
}
