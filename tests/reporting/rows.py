"""Valid rows of any type: a test names the fields it is about, the rest are filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from diffsae_lens.results import Row

R = TypeVar("R", bound=Row)
_EMPTY: dict[Any, Any] = {
    str: "", int: 0, float: 0.0, bool: False, Mapping: {}, Sequence: (), dict: {}, tuple: (), list: [],
}  # fmt: skip


def make(row: type[R], **given: Any) -> R:
    """A row with the fields that are given; others that are required are empty or 0."""
    hints = get_type_hints(row)
    filled = {
        field.name: _filler(hints[field.name])
        for field in fields(row)
        if field.default is MISSING and field.default_factory is MISSING
    }
    return row(**filled | given)


def _filler(hint: Any) -> Any:
    origin, of = get_origin(hint) or hint, get_args(hint)
    if origin is UnionType:
        return None if NoneType in of else _filler(of[0])
    return of[0] if origin is Literal else _EMPTY[origin]
