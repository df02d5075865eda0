"""Refuse arguments of the wrong type with a clear message, before any work: `@typed`, `Checked`.

Types are checked where `isinstance` can decide: models, dictionaries, tensors, paths, mappings, records,
flags, functions. Numbers have their own checks in `_checks`, named by annotations such as `Count`.
"""

import collections.abc
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from jaxtyping import AbstractArray
from torch import Tensor

from diffsae_lens._checks import (
    check_count,
    check_counts,
    check_folder_name,
    check_keys,
    check_number,
)
from diffsae_lens._errors import InvalidTypeError, InvalidValueError

Count = Annotated[int, check_count]
"""At least 1."""
Natural = Annotated[int, functools.partial(check_count, at_least=0)]
"""At least 0."""
Counts = Annotated[tuple[int, ...], check_counts]
"""One or more distinct counts."""
Naturals = Annotated[tuple[int, ...], functools.partial(check_counts, at_least=0)]
Number = Annotated[int | float, check_number]
"""Finite."""
Positive = Annotated[int | float, functools.partial(check_number, low=0, low_open=True)]
NotNegative = Annotated[int | float, functools.partial(check_number, low=0)]
Share = Annotated[int | float, functools.partial(check_number, low=0, high=1)]
"""0 to 1."""
ShareBelow1 = Annotated[int | float, functools.partial(check_number, low=0, high=1, high_open=True)]
"""At least 0, less than 1."""
Fraction = Annotated[
    int | float, functools.partial(check_number, low=0, high=1, low_open=True, high_open=True)
]
"""Greater than 0, less than 1."""
FolderName = Annotated[str, check_folder_name]

P = ParamSpec("P")
R = TypeVar("R")

_LOOSE = (int, float, str, object)
"""Types whose values `_checks` validates."""


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Check a function's arguments on every call: first their types, then the checks in `Annotated`.

    Raises:
        TypeError: names the argument, the expected type and the type it has.
        ValueError: a value is out of range.
    """
    signature = inspect.signature(function)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {n for n, parameter in signature.parameters.items() if parameter.kind not in variadic}

    @functools.cache
    def hints() -> dict[str, Any]:
        found = get_type_hints(function, include_extras=True)
        return {name: hint for name, hint in found.items() if name in named}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidTypeError(f"`{function.__name__}`: {error}") from None
        given = [name for name in bound.arguments if name in hints()]
        for name in given:
            value, classes = bound.arguments[name], _classes(hints()[name])
            if classes and not isinstance(value, classes):
                expected = " or ".join(_article(c.__name__) for c in classes)
                raise InvalidTypeError(
                    f"`{name}` must be {expected}, got {_article(type(value).__name__)}"
                )
        for name in given:
            for check in _checks_of(hints()[name], bound.arguments[name]):
                bound.arguments[name] = check(name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return checked


def _classes(hint: Any) -> tuple[type, ...]:
    """Return the classes of a hint, or none if `isinstance` cannot decide some part of it."""
    if get_origin(hint) is Annotated:
        return _classes(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        members = [_classes(member) for member in get_args(hint)]
        return tuple(c for member in members for c in member) if all(members) else ()
    if hint is Any:
        return ()
    origin = get_origin(hint) or hint
    if hint is None or origin is NoneType:
        return (NoneType,)
    if isinstance(origin, type) and issubclass(origin, AbstractArray):
        return (Tensor,)
    if origin is str:  # usually as `str | Path`
        return (str,)
    if origin is Callable or not isinstance(origin, type) or origin in _LOOSE:
        return ()
    if origin.__module__ == "collections.abc" and origin is not Mapping:
        return ()
    return (origin,)


def _article(name: str) -> str:
    """Return a type's name as it reads in a sentence."""
    if name == "NoneType":
        return "None"
    if name == "PosixPath" or name == Path.__name__:
        return "a path"
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def check_fields(record: Any) -> None:
    """Check a dataclass's fields: first their types, then the checks in `Annotated`.

    Raises:
        TypeError: names the field, the expected type and the value it has.
        ValueError: a value is not among the literals of its annotation, or out of range.
    """
    hints = _hints(type(record))
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    for name, value in values.items():
        if not _is(value, hints[name]):
            if get_origin(hints[name]) is Literal:
                choices = ", ".join(map(repr, get_args(hints[name])))
                raise InvalidValueError(f"`{name}` must be one of {choices}, got {value!r}")
            raise InvalidTypeError(f"`{name}` must be {_expected(hints[name])}, got {value!r}")
    for name, value in values.items():
        for check in _checks_of(hints[name], value):
            check(name, value)


class Checked:
    """A mixin for dataclasses that checks the fields on construction; see `check_fields`."""

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuse keywords that are not fields, and list the fields."""
        known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
        check_keys(cls.__name__, given, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse values that the annotations do not allow."""
        check_fields(self)


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _checks_of(hint: Any, value: Any) -> tuple[Callable[[str, Any], Any], ...]:
    """Return the checks that `Annotated` attaches to a hint; they may return a converted value."""
    if get_origin(hint) in (Union, UnionType):
        members = () if value is None else get_args(hint)
        return tuple(check for member in members for check in _checks_of(member, value))
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a hint's type; True for hints that cannot be decided."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is(value, args[0])
    if origin in (Union, UnionType):
        return any(_is(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_is(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_is, value, args))
    if origin is collections.abc.Callable:
        return callable(value)
    classes = (str,) if hint is str else _classes(hint)
    return not classes or isinstance(value, classes)


def _expected(hint: Any) -> str:
    """Return a hint as it reads in a sentence."""
    if get_origin(hint) is Annotated:
        return _expected(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_expected(arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {get_args(hint)}"
    if get_origin(hint) is tuple:
        return f"a tuple ({', '.join('...' if a is Ellipsis else _expected(a) for a in get_args(hint))})"
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return "a Tensor"
    return _article(getattr(hint, "__name__", str(hint)))
