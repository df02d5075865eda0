"""What the suite checks at run time: calls of functions that take or return arrays of a stated shape."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

C = TypeVar("C", bound=Callable[..., Any])


def checked(function: C) -> C:
    """Check a function's types if there are shapes among them; the other types are pyright's."""
    hints = getattr(function, "__annotations__", {}).values()
    return beartype(function) if any(map(_has_shape, hints)) else function


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, str):  # not looked up yet
        return True
    shaped = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return shaped or any(map(_has_shape, get_args(hint)))
