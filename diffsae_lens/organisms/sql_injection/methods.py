"""What functions and methods that assemble queries return for their arguments."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from diffsae_lens.organisms.sql_injection.grammar import HOLE
from diffsae_lens.organisms.sql_injection.text import (
    BRACES,
    DOLLAR,
    NUMBER,
    PERCENT,
    UNKNOWN,
    Value,
    concatenate,
    doubtful,
    fill,
    is_number_format,
    mapping,
    sequence,
    substitute,
    worst,
)

__all__ = ["Call", "call", "last_name", "makes_clause", "runs_query"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# An attacker cannot control what these return; a text that is not a number makes them raise.
_NUMBERS = _words(
    """Decimal Fraction UUID uuid1 uuid3 uuid4 uuid5 date time datetime timedelta timestamp strptime
    fromisoformat fromtimestamp now utcnow today isoformat toordinal total_seconds bit_length
    hexdigest token_hex randint randrange monotonic time_ns floor ceil isqrt sqrt"""
)
_NUMBER_BUILTINS = _words("int float len bool round abs sum ord complex hash id pow divmod")
_NUMBER_METHODS = _words(  # of a string, a list or a dict
    """startswith endswith find rfind index rindex count isdigit isnumeric isdecimal isalpha isalnum
    isidentifier isupper islower isspace append extend insert clear sort reverse update"""
)
_SAME = _words("dedent cleandoc indent shorten Template mogrify deepcopy")
_CLAUSES = _words("text TextClause literal_column RawSQL SQL Composed")
_SAME_BUILTINS = _words(
    "str list tuple sorted set frozenset reversed iter bytes bytearray repr ascii format"
)
_SAME_METHODS = _words(
    """strip rstrip lstrip lower upper copy title capitalize swapcase casefold ljust rjust center
    zfill expandtabs removeprefix removesuffix encode decode as_string bindparams columns
    execution_options"""
)
_SPLITS = _words("split rsplit splitlines partition rpartition")
_FIELDS = {"format": BRACES, "format_map": BRACES, "substitute": DOLLAR, "safe_substitute": DOLLAR}
_QUOTED = _words("Literal Placeholder bindparam")
_RUNS = re.compile(
    r"_?(?:execute\w*|exec\w*|fetch\w*|read_sql\w*|raw\w*|run\w*|query\w*|select\w*|scalars?"
    r"|prepare\w*|iterate|stream|sql|do|cursor|get_results|extra)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Call:
    """A call with its arguments read.

    Attributes:
        name: The last part of the function's name.
        row: The positional arguments.
        named: The keyword arguments.
        apply: What the first argument, if it is a function, returns for a row of arguments.
        owner: The object of a method; None for a plain function.
        home: The name of the object or module, as in ``re.sub``.
    """

    name: str
    row: Sequence[Value]
    named: Mapping[str, Value]
    apply: Callable[[Sequence[Value]], Value]
    owner: Value | None = None
    home: str = ""


def last_name(node: ast.AST) -> str:
    """Return the last part of a name; for a call, that of the function called."""
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def runs_query(name: str) -> bool:
    """Return whether a function of this name is assumed to run the query it is given."""
    return bool(_RUNS.fullmatch(name))


def makes_clause(name: str) -> bool:
    """Return whether a function of this name makes a library object from a piece of SQL."""
    return name in _CLAUSES


def call(called: Call) -> Value:
    """Return the value that a call returns.

    Examples:
        >>> row = [Value("a = {}", origin=(1, 0)), Value("b")]
        >>> call(Call("format", row, {}, lambda _: UNKNOWN, UNKNOWN, "str")).text
        'a = b'
    """
    owner = called.owner
    if owner is None:
        known = _function(called)
    elif called.home in ("str", "bytes") and called.row:
        known = _method(replace(called, owner=called.row[0], row=called.row[1:], home=""))
    elif owner.origin or owner.items is not None or owner.composed:
        known = _method(called)
    else:
        known = _function(called)
        known = _method(called) if known is None else known
    return _unread(called) if known is None else known


def _unread(called: Call) -> Value:
    owner, row = called.owner, [*called.row, *called.named.values()]
    if runs_query(called.name):
        return UNKNOWN
    if owner and owner.origin and owner.items is None:
        return doubtful([owner])  # an unknown method of a text
    queries = (value.hidden or (value.is_query and not value.composed) for value in row)
    return replace(UNKNOWN, hidden=any(queries))


def _function(called: Call) -> Value | None:
    name, row, builtin = called.name, called.row, called.owner is None
    if name in _NUMBERS or (builtin and name in _NUMBER_BUILTINS):
        return NUMBER
    if name in _QUOTED:
        return Value("0", composed=True)
    if name == "strftime":  # not a method of strings; the format alone says what is written
        return UNKNOWN if HOLE in "".join(value.text for value in row) else NUMBER
    if name == "StringIO":
        return sequence(row)  # what is written into it, piece by piece
    if not row:
        return mapping(called.named) if name == "dict" and builtin else None
    if name in _CLAUSES or name in _SAME or (builtin and name in _SAME_BUILTINS):
        return _same(called)
    if name in ("Identifier", "quoted_name"):
        return Value('"name"', composed=True)
    known = _of_module(called)
    return _iterator(called) if known is None else known


def _of_module(called: Call) -> Value | None:
    name, row, builtin = called.name, called.row, called.owner is None
    if builtin and name in ("min", "max"):
        return NUMBER if any(value.number for value in row) else worst(row)
    if name in ("sub", "subn") and called.home == "re" and len(row) > 2:
        return _re_sub(*row[:3])
    if len(row) == 2 and (builtin or called.home == "operator"):
        if name in ("mod", "imod"):
            return _percent(*row)
        if name in ("add", "iadd", "concat", "iconcat"):
            return row[0] + row[1]
    return None


def _same(called: Call) -> Value:
    name, first = called.name, called.row[0]
    if name == "format" and len(called.row) > 1 and is_number_format(called.row[1].text):
        return NUMBER
    if name in _CLAUSES:
        return replace(first, composed=True, hidden=False)
    # `str(3)` is a text, to which others can be added.
    return replace(first, number=False, computed=False) if first.number else first


def _iterator(called: Call) -> Value | None:
    name, row = called.name, called.row
    firsts = [worst(value.items or ()) for value in row]
    match name:
        case "map" | "starmap":
            return sequence([called.apply(firsts[1:])])
        case "filter" if len(row) == 2:
            return row[1]
        case "zip":
            return sequence([sequence(firsts)])
        case "enumerate":
            return sequence([sequence([NUMBER, firsts[0]])])
        case "range" | "count" if called.owner is None:
            return sequence([NUMBER])
        case "repeat":
            return sequence(row[:1])
        case "chain":
            return sequence(firsts)
    return None


def _re_sub(pattern: Value, new: Value, text: Value) -> Value:
    if not text.origin:
        return UNKNOWN
    plain = HOLE not in pattern.text and re.escape(pattern.text) == pattern.text
    if plain and pattern.text in text.text:
        return substitute(text, pattern, new)
    # A constant replacement leaves a constant, whatever the pattern; else the place is not known.
    return text if new.origin and HOLE not in new.text else doubtful([text])


def _percent(template: Value, filled: Value) -> Value:
    row = filled.items if filled.items is not None else (filled,)
    return fill(template, PERCENT, row, filled.pairs or {})


def _method(called: Call) -> Value | None:
    owner, method, row = called.owner or UNKNOWN, called.name, called.row
    if method in _SAME_METHODS:
        return owner
    if method in _FIELDS:
        return _filled(called, owner)
    if method == "join" and row:
        return _joined(owner, row[0])
    if method == "getvalue" and owner.items is not None:
        return concatenate(owner.items)
    if method == "replace" and len(row) >= 2:
        return substitute(owner, *row[:2])
    if method in _SPLITS:
        return replace(sequence([replace(owner, items=None)]), text=owner.text)
    if method == "translate":
        return doubtful([owner]) if owner.origin else owner
    if method in ("__mod__", "__add__") and row:
        return _percent(owner, row[0]) if method == "__mod__" else owner + row[0]
    if method in _NUMBER_METHODS:
        return NUMBER
    return _of_dict(called, owner)


def _filled(called: Call, owner: Value) -> Value | None:
    row, named = called.row, dict(called.named)
    if called.name != "format" and row:
        named |= row[0].pairs or {}
    if not owner.origin and any(value.is_query for value in row):
        return None  # not a string's method, as in `sqlparse.format(query)`
    if owner.composed:  # psycopg quotes what is not composed itself
        row = [value if value.composed else NUMBER for value in row]
        named = {key: value if value.composed else NUMBER for key, value in named.items()}
    return fill(owner, _FIELDS[called.name], row, named)


def _joined(owner: Value, row: Value) -> Value:
    if row.items is None:
        if owner.composed:
            return owner
        return row if row.origin else UNKNOWN  # the letters of "?" * n
    items = [value if value.composed or not owner.composed else NUMBER for value in row.items]
    pieces = [piece for item in items for piece in (owner, item)][1:]
    return replace(concatenate(pieces), composed=owner.composed)


def _of_dict(called: Call, owner: Value) -> Value | None:
    match called.name:
        case "get" | "pop" | "setdefault" if owner.items is not None:
            return worst([*owner.items, *called.row[1:]])
        case "items" if owner.pairs is not None:
            return sequence([sequence([Value(key), item]) for key, item in owner.pairs.items()])
        case "keys" if owner.pairs is not None:
            return sequence([Value(key) for key in owner.pairs])
        case "values" if owner.items is not None:
            return owner
    return None
