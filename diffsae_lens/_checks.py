"""Input validation: one check per kind of argument, each a single line at the call site.

Every check raises a message that says what was expected, what was got and what to do; `name` is what
the message calls the argument. Imports only `_tensor_checks`, whose names it re-exports, so that every
module may use it.
"""

import math
import numbers
import os
from collections.abc import Collection, Iterable
from typing import Any

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._tensor_checks import INTEGERS, check_finite, check_tokens, shown

__all__ = [
    "INTEGERS", "MAX_NAME_BYTES", "check_callable", "check_choice", "check_count", "check_counts",
    "check_finite", "check_folder_name", "check_indices", "check_items", "check_keys", "check_list",
    "check_number", "check_texts", "check_tokens", "shown",
]  # fmt: skip

MAX_NAME_BYTES = 200
"""Maximum bytes in a folder name; file systems allow 255, and we append suffixes."""
_RESERVED = (".partial", ".lock")


def check_count(name: str, value: Any, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Return any kind of integer (Python, NumPy, zero-dimensional tensor) as an int.

    Raises:
        TypeError: `value` is not an integer; True and 1.0 are not.
        ValueError: `value` is outside the range.
    """
    count = _integer(value)
    if count is None:
        raise InvalidTypeError(
            f"`{name}` must be an integer, got {shown(value)}; give a whole number"
        )
    if count < at_least:
        raise InvalidValueError(
            f"`{name}` must be at least {at_least}, got {count}; give a larger one"
        )
    if at_most is not None and count > at_most:
        raise InvalidValueError(
            f"`{name}` must be at most {at_most}, got {count}; give a smaller one"
        )
    return count


def check_counts(name: str, values: Any, *, at_least: int = 1) -> tuple[int, ...]:
    """Return one or more distinct counts.

    Raises:
        TypeError: not a sequence of whole numbers.
        ValueError: empty, or a number is out of range or repeated.
    """
    if not isinstance(values, tuple | list):
        raise InvalidTypeError(f"`{name}` must be a tuple of whole numbers, got {values!r}")
    if not values:
        raise InvalidValueError(f"`{name}` must hold at least one number, got none")
    for value in values:
        check_count(name, value, at_least=at_least)
    if len(set(values)) < len(values):
        raise InvalidValueError(f"`{name}` must hold each number once, got {values}")
    return tuple(values)


def check_number(
    name: str,
    value: Any,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return any kind of finite real number as a float; an open bound excludes the bound itself.

    Raises:
        TypeError: `value` is not a real number; True is not.
        ValueError: `value` is NaN, infinite or outside the range.
    """
    number = _real(value)
    if number is None:
        raise InvalidTypeError(f"`{name}` must be a number, got {shown(value)}; give a real number")
    bounds = []
    if low is not None:
        bounds.append(f"{'greater than' if low_open else 'at least'} {low:g}")
    if high is not None:
        bounds.append(f"{'less than' if high_open else 'at most'} {high:g}")
    too_low = low is not None and (number < low or (low_open and number == low))
    too_high = high is not None and (number > high or (high_open and number == high))
    if not math.isfinite(number) or too_low or too_high:
        expected = " and ".join(bounds) or "finite"
        raise InvalidValueError(
            f"`{name}` must be {expected}, got {number}; give a number in that range"
        )
    return number


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: lists the choices.
    """
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        known = ", ".join(repr(choice) for choice in choices)
        raise InvalidValueError(
            f"`{name}` must be one of {known}, got {shown(value)}; choose one of them"
        )


def check_folder_name(name: str, value: Any) -> str:
    """Return a name that can be used as a folder name.

    Raises:
        TypeError: not a string.
        ValueError: empty, `.` or `..`; begins with a dot; contains a separator, a NUL or another control
            character; has a suffix that the package reserves; too long.
    """
    if not isinstance(value, str):
        raise InvalidTypeError(f"`{name}` must be a string, got {shown(value)}; name the folder")
    problem = None
    if not value.strip():
        problem = "a name that is not empty"
    elif any(c in "/\\" or ord(c) < 32 for c in value) or (os.altsep or "/") in value:
        problem = "a name without separators and control characters"
    elif value.startswith("."):
        problem = "a name that does not begin with a dot"
    elif value.endswith(_RESERVED) or ".damaged" in value:
        problem = "a name that does not end in .partial, .lock or .damaged, which are kept for this package"
    elif len(value.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        problem = f"a name of at most {MAX_NAME_BYTES} bytes"
    if problem:
        raise InvalidValueError(
            f"`{name}` must be {problem}, got {shown(value)}; it becomes a folder, choose another"
        )
    return value


def check_callable(name: str, value: Any) -> None:
    """Refuse a value that is not callable.

    Raises:
        TypeError: not a function.
    """
    if not callable(value):
        raise InvalidTypeError(
            f"`{name}` must be a function, got {shown(value)}; give what can be called"
        )


def check_keys(name: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuse unknown keywords.

    Raises:
        TypeError: names the unknown keywords and lists the known ones.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidTypeError(
            f"`{name}` has no keyword {', '.join(f'`{key}`' for key in unknown)}; it takes "
            f"{', '.join(sorted(known))}"
        )


def check_list(name: str, items: Any, of: str, *, alone: tuple[type, ...] = ()) -> list[Any]:
    """Return a collection as a list, without checking its items; `of` names them in the message.

    Raises:
        TypeError: not a collection; a string, a mapping, or a single item (of a type in `alone`).
    """
    if isinstance(items, (str, bytes, dict, *alone)) or not isinstance(items, Iterable):
        raise InvalidTypeError(
            f"`{name}` must be a list of {of}, got {shown(items)}; put it in a list"
        )
    return list(items)


def check_items(
    name: str,
    items: Any,
    kind: type | tuple[type, ...],
    *,
    allow_empty: bool = False,
    of: str | None = None,
) -> list[Any]:
    """Return a collection of records of one or several types as a list.

    Raises:
        TypeError: not a collection, or contains something of another type.
        ValueError: empty.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    of = of or " or ".join(k.__name__ for k in kinds)
    items = check_list(name, items, of, alone=kinds)
    for i, item in enumerate(items):
        if not isinstance(item, kinds):
            raise InvalidTypeError(
                f"`{name}` must be a list of {of}, got {shown(item)} at {i}; leave it out"
            )
    if not items and not allow_empty:
        raise InvalidValueError(f"`{name}` is empty; give a list of {of}")
    return items


def check_texts(name: str, texts: Any, *, allow_empty: bool = False) -> list[str]:
    """Return texts as a list.

    Raises:
        TypeError: a single string, which would be read character by character; not a collection;
            contains something that is not a string.
        ValueError: empty.
    """
    if isinstance(texts, str | bytes):
        raise InvalidTypeError(
            f"`{name}` must be a list of texts, got the single text {shown(texts)}; put it in a list"
        )
    return check_items(name, texts, str, allow_empty=allow_empty, of="texts")


def check_indices(name: str, indices: Any, n: int, *, repeated: bool = False) -> list[int]:
    """Return indices (a list, tuple, range, array or tensor) as a list of ints.

    Each must be at least 0 and less than `n`.

    Raises:
        TypeError: not a collection; contains something that is not an integer, such as True or 1.5.
        ValueError: an index is out of range, or repeated where that is not allowed.
    """
    items = check_list(name, indices, "indices") if getattr(indices, "ndim", 1) == 1 else None
    if items is None:
        raise InvalidTypeError(
            f"`{name}` must have one dimension, got {shown(indices)}; give a flat list of indices"
        )
    found: list[int] = []
    for i, item in enumerate(items):
        index = _integer(item)
        if index is None:
            raise InvalidTypeError(
                f"`{name}` must hold integers, got {shown(item)} at {i}; give indices "
                "(of a mask: mask.nonzero().flatten())"
            )
        if not 0 <= index < n:
            raise InvalidValueError(
                f"`{name}` must hold indices in [0, {n}), got {index}; they do not wrap around"
            )
        found.append(index)
    if not repeated and len(set(found)) != len(found):
        twice = next(index for index in found if found.count(index) > 1)
        raise InvalidValueError(
            f"`{name}` must not be repeated, got {twice} twice; leave one of them out"
        )
    return found


def _scalar(value: Any) -> Any:
    """Return a zero-dimensional array as a Python number."""
    is_array = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_array else value


def _integer(value: Any) -> int | None:
    value = _scalar(value)
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if is_integer else None


def _real(value: Any) -> float | None:
    value = _scalar(value)
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if is_real else None
