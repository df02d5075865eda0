"""Refuse an argument of another type in a sentence, before a function begins: `@typed`.

Only what can be told by `isinstance` is looked at: models, dictionaries, tensors, paths, mappings,
records, flags, functions. Numbers, texts and choices have checks of their own in `_checks`, which say more.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxtyping import AbstractArray
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_LOOSE = (int, float, str, object)
"""Types whose values `_checks` looks at."""


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Check the types of a function's arguments when it is called.

    Raises:
        TypeError: names the argument, what it must be and what it is.
    """
    signature = inspect.signature(function)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)

    @functools.cache
    def wanted() -> dict[str, tuple[type, ...]]:
        hints = get_type_hints(function)
        classes = {
            name: _classes(hints[name])
            for name, parameter in signature.parameters.items()
            if name in hints and parameter.kind not in variadic
        }
        return {name: found for name, found in classes.items() if found}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            classes = wanted().get(name)
            if classes is not None and not isinstance(value, classes):
                expected = " or ".join(_article(c.__name__) for c in classes)
                raise TypeError(
                    f"`{name}` must be {expected}, got {_article(type(value).__name__)}"
                )
        return function(*args, **kwargs)

    return checked


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes of a hint, none if any of it cannot be told by `isinstance`."""
    if get_origin(hint) in (Union, UnionType):
        members = [_classes(member) for member in get_args(hint)]
        return tuple(c for member in members for c in member) if all(members) else ()
    origin = get_origin(hint) or hint
    if hint is None or origin is NoneType:
        return (NoneType,)
    if isinstance(origin, type) and issubclass(origin, AbstractArray):
        return (Tensor,)
    if origin is str:  # next to a path
        return (str,)
    if origin is Callable or not isinstance(origin, type) or origin in _LOOSE:
        return ()
    if origin.__module__ == "collections.abc" and origin is not Mapping:
        return ()
    return (origin,)


def _article(name: str) -> str:
    """A type's name as it reads in a sentence."""
    if name == "NoneType":
        return "None"
    if name == "PosixPath" or name == Path.__name__:
        return "a path"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
