"""The views of a pair's virtual hook points: how each reads two activations and writes them back."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from diffsae_lens._errors import InvalidValueError

Side = Literal["base", "finetuned"]
"""One of a pair's two models."""


class View(ABC):
    """How a virtual hook point is computed from two activations, and how to interpret a dictionary on it."""

    n_models: ClassVar[int] = 1
    """Number of models whose activations a value concatenates: `d_in` is `n_models * d_model`."""
    needs_base: ClassVar[bool] = True
    """Whether the base model has to run for this view."""
    compares: ClassVar[bool] = False
    """Whether a value says how the two models differ."""

    @abstractmethod
    def read(self, base: Tensor | None, finetuned: Tensor) -> Tensor:
        """Return the view's value for the two activations; `base` may be None if not needed."""

    @abstractmethod
    def write(self, value: Tensor, base: Tensor | None) -> Tensor:
        """Return the activation that the fine-tuned model continues with once `value` is written."""

    def of_base(self, base: Tensor) -> Tensor:
        """Return what a dictionary on this view reads if only the base's activation exists."""
        return base

    def writes(self, values: Tensor, side: Side) -> Tensor:
        """Return the columns of decoder rows or reconstructions that belong to one model.

        Raises:
            ValueError: the base's columns of a view that does not hold both models.
        """
        if side == "base":
            raise InvalidValueError(
                "`side` must be 'finetuned', since a dictionary on one activation or difference has "
                "no columns for the base, got 'base'; use one on `.concat`"
            )
        return values

    def difference(self, values: Tensor) -> Tensor:  # noqa: ARG002
        """Return the difference finetuned - base that decoder rows or values imply.

        Raises:
            ValueError: a view that does not compare the two models.
        """
        raise self._of_one_model()

    def with_difference(self, value: Tensor, difference: Tensor) -> Tensor:  # noqa: ARG002
        """Return a value with another difference finetuned - base, keeping the base in `value`.

        Raises:
            ValueError: a view that does not compare the two models.
        """
        raise self._of_one_model()

    def with_more(self, value: Tensor, addend: Tensor) -> Tensor:
        """Return a value with `addend` added to what the fine-tuned model continues with."""
        return value + addend

    def swapped(self, value: Tensor) -> Tensor:  # noqa: ARG002
        """Return the value of the same activations with the roles of the two models swapped.

        Raises:
            ValueError: a view that does not compare the two models.
        """
        raise self._of_one_model()

    def _of_one_model(self) -> ValueError:
        return InvalidValueError(
            "a value must compare the two models, got one of a single model; use `.diff` or `.concat`"
        )


class _Base(View):
    """The base's activation."""

    @override
    def read(self, base: Tensor | None, finetuned: Tensor) -> Tensor:
        return _there(base)

    @override
    def write(self, value: Tensor, base: Tensor | None) -> Tensor:
        return value


class _Finetuned(View):
    """The fine-tuned model's activation."""

    needs_base = False

    @override
    def read(self, base: Tensor | None, finetuned: Tensor) -> Tensor:
        return finetuned

    @override
    def write(self, value: Tensor, base: Tensor | None) -> Tensor:
        return value


class _Diff(View):
    """finetuned - base."""

    compares = True

    @override
    def read(self, base: Tensor | None, finetuned: Tensor) -> Tensor:
        return _wide(finetuned) - _wide(_there(base))

    @override
    def write(self, value: Tensor, base: Tensor | None) -> Tensor:
        return _wide(_there(base)) + value

    @override
    def difference(self, values: Tensor) -> Tensor:
        return values

    @override
    def with_difference(self, value: Tensor, difference: Tensor) -> Tensor:
        return difference

    @override
    def swapped(self, value: Tensor) -> Tensor:
        return -value


class _Concat(View):
    """[base ; finetuned], the input of a crosscoder."""

    n_models = 2
    compares = True

    @override
    def read(self, base: Tensor | None, finetuned: Tensor) -> Tensor:
        return torch.cat([_wide(_there(base)), _wide(finetuned)], dim=-1)

    @override
    def write(self, value: Tensor, base: Tensor | None) -> Tensor:
        return value[..., _there(base).shape[-1] :]

    @override
    def of_base(self, base: Tensor) -> Tensor:
        return torch.cat([base, base], dim=-1)

    @override
    def writes(self, values: Tensor, side: Side) -> Tensor:
        return values.chunk(2, dim=-1)[side == "finetuned"]

    @override
    def difference(self, values: Tensor) -> Tensor:
        base, finetuned = values.chunk(2, dim=-1)
        return finetuned - base

    @override
    def with_difference(self, value: Tensor, difference: Tensor) -> Tensor:
        base = self.writes(value, "base")
        return torch.cat([base, base + difference], dim=-1)

    @override
    def with_more(self, value: Tensor, addend: Tensor) -> Tensor:
        base, finetuned = value.chunk(2, dim=-1)
        return torch.cat([base, finetuned + addend], dim=-1)

    @override
    def swapped(self, value: Tensor) -> Tensor:
        base, finetuned = value.chunk(2, dim=-1)
        return torch.cat([finetuned, base], dim=-1)


def _there(base: Tensor | None) -> Tensor:
    if base is None:
        raise InvalidValueError("`base` must be the base's activation for this view, got None")
    return base


def _wide(activation: Tensor) -> Tensor:
    """Promote to at least float32: differences are 0.3 to 5% of the variance, too little for bfloat16."""
    return activation.to(torch.promote_types(activation.dtype, torch.float32))


VIEWS: dict[str, View] = {
    "base": _Base(),
    "finetuned": _Finetuned(),
    "diff": _Diff(),
    "concat": _Concat(),
}
"""Every view, by the suffix of its virtual hook points' names."""
