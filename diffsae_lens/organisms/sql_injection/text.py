"""The text of an SQL query as a program assembles it.

A `Value` is such a text, with marks in place of the values that are known only at run time.
Values are added, listed and filled into templates like the strings they represent. No text grows
beyond a bound, and every function here takes time linear in its texts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from diffsae_lens.organisms.sql_injection.grammar import DOUBT, HOLE, is_query, slots

Place = tuple[int, int]
"""Line and column of a string literal."""

_LONGEST = 10_000  # characters of a text; `q = q + q` over some lines must not fill the memory
_MOST_ITEMS = 300  # per list; the rest is in doubt

_NUMBER_FORMAT = re.compile(
    rf"(?:.?[<>=^])?[-+ ]?z?\#?0?[\d{HOLE}]*+[_,]?(?:\.[\d{HOLE}]*+)?[diouxXeEfFgGnb%]", re.DOTALL
)
# The groups of a field: `twice` is an escaped sign, `name` what is put in, `kind` its format.
PERCENT = re.compile(
    r"%(?:(?P<twice>%)|(?:\((?P<name>[^()]{0,200})\))?[#0\- +]*+[*\d]*+(?:\.[*\d]*+)?[hlL]?"
    r"(?P<kind>[diouxXeEfFgGcrsa]))"
)
"""The fields of ``text % values``."""
BRACES = re.compile(
    r"(?P<twice>\{\{|\}\})|\{(?P<name>\w*+)(?:[.\[][^{}:]*)?(?:![rsa])?(?::(?P<kind>[^{}]*+))?\}"
)
"""The fields of `str.format`."""
DOLLAR = re.compile(r"(?P<twice>\$\$)|\$\{?(?P<name>\w++)\}?(?P<kind>)")
"""The fields of `string.Template`."""


@dataclass(frozen=True)
class Value:
    """What is known about an expression: its text, and its items if it is a list, tuple or dict.

    Attributes:
        text: The string, with a `HOLE` for every run-time value in it.
        places: Places of the literals in it.
        origin: Place of the literal that begins it.
        items: The items of a list or tuple, the values of a dict.
        pairs: The values of a dict by key, as far as the keys are literals.
        number: Whether it can only be a number, a date or the like.
        computed: Whether it is a number that was calculated, not written down.
        composed: Whether it is an object of a library, such as SQLAlchemy's `text` or psycopg's `SQL`,
            which quotes what is filled into it.
        hidden: Whether a query was passed to the call that returned this run-time value.
    """

    text: str = HOLE
    places: frozenset[Place] = frozenset()
    origin: Place | None = None
    items: "tuple[Value, ...] | None" = None
    pairs: "Mapping[str, Value] | None" = None
    number: bool = False
    computed: bool = False
    composed: bool = False
    hidden: bool = False

    def __add__(self, other: "Value") -> "Value":
        if self.items is not None:
            return sequence(self.items + (other.items if other.items is not None else (other,)))
        return concatenate([self, other])

    @property
    def is_query(self) -> bool:
        """Whether the text is an SQL query that begins in a literal."""
        return self.origin is not None and is_query(self.text)


UNKNOWN = Value()
"""What cannot be read, or is not known before the program runs."""

LITERAL_NUMBER = Value("0", number=True)
"""Any number: no number can change what a query does."""

NUMBER = replace(LITERAL_NUMBER, computed=True)
"""A number from a calculation or from a function such as `int`."""


def _places(values: Iterable[Value]) -> frozenset[Place]:
    return frozenset[Place]().union(*{value.places for value in values})


def _clipped(texts: Sequence[str], separator: str = "") -> str:
    room = _LONGEST + len(separator)
    for count, text in enumerate(texts):
        room -= len(text) + len(separator)
        if room < 0:
            return separator.join(texts[: count + 1])[:_LONGEST] + DOUBT
    return separator.join(texts)


def concatenate(values: Sequence[Value]) -> Value:
    """Concatenate texts, as an f-string does; a list counts as its text."""
    origin = next((value.origin for value in values if value.origin), None)
    composed = any(value.composed for value in values)
    text = _clipped([value.text for value in values])
    return Value(text, _places(values), origin, composed=composed)


def sequence(items: Sequence[Value]) -> Value:
    """Make a list of values; its text is the items, separated by commas."""
    if len(items) > _MOST_ITEMS:
        items = (*items[:_MOST_ITEMS], Value(DOUBT))
    items = tuple(items)
    origin = next((item.origin for item in items if item.origin), None)
    return Value(_clipped([item.text for item in items], ", "), _places(items), origin, items)


def mapping(pairs: Mapping[str, Value], others: Sequence[Value] = ()) -> Value:
    """Make a dict from values with literal keys, and others whose keys are not known."""
    return replace(sequence([*pairs.values(), *others]), pairs=None if others else dict(pairs))


def worst(values: Sequence[Value]) -> Value:
    """Return, of several possible values, the one that is worst for a query."""
    if not values:
        return UNKNOWN

    def weight(value: Value) -> tuple[bool, int, int]:
        marks = value.text.count(HOLE) + value.text.count(DOUBT)
        return bool(marks) and "value" in slots(value.text), marks, len(value.text)

    chosen = max(values, key=weight)
    same = all(value.number for value in values)
    hidden = any(value.hidden for value in values)
    return replace(
        chosen,
        places=_places(values),
        number=same,
        computed=same and chosen.computed,
        hidden=hidden,
    )


def doubtful(values: Sequence[Value]) -> Value:
    """Return the text that went into something that is not followed, with a mark that says so."""
    texts = [value for value in values if value.origin]
    if not texts:
        return UNKNOWN
    chosen = next((value for value in texts if value.is_query), texts[0])
    return Value(_clipped([chosen.text, DOUBT]), _places(values), chosen.origin)


def is_number_format(spec: str | None) -> bool:
    """Return whether a format lets only numbers through.

    Examples:
        >>> [is_number_format(spec) for spec in ("d", ">8.2f", "%Y-%m-%d", ">10", "")]
        [True, True, False, False, False]
    """
    return bool(_NUMBER_FORMAT.fullmatch(spec or ""))


def fill(
    template: Value, fields: re.Pattern[str], row: Sequence[Value], named: Mapping[str, Value]
) -> Value:
    """Fill in the fields of a template.

    Args:
        template: The text with the fields.
        fields: Pattern of a field: `PERCENT`, `BRACES` or `DOLLAR`.
        row: The values of fields whose name is a number or missing.
        named: The values of the other fields.

    Returns:
        The filled text, with a `HOLE` where a value is missing.

    Examples:
        >>> fill(Value("id = {} {x}"), BRACES, [Value("3")], {"x": Value("y")}).text
        'id = 3 y'
    """
    text, queue, at, size = template.text, iter(row), 0, 0
    pieces = [replace(template, text="", items=None)]
    for match in fields.finditer(text):
        pieces += [Value(text[at : match.start()]), _field(match, queue, row, named)]
        at, size = match.end(), size + match.end() - at + len(pieces[-1].text)
        if size > 2 * _LONGEST:  # what follows would be cut off
            break
    return concatenate([*pieces, Value(text[at:])])


def _field(
    match: re.Match[str], queue: Iterator[Value], row: Sequence[Value], named: Mapping[str, Value]
) -> Value:
    name = match["name"]
    if match["twice"]:
        return Value(match.group()[0])
    if is_number_format(match["kind"]):
        if not name:
            next(queue, None)
        return NUMBER
    if not name:
        return next(queue, UNKNOWN)
    if name.isdecimal() and int(name[:3]) < len(row):
        return row[int(name[:3])]
    return named.get(name, UNKNOWN)


def substitute(text: Value, old: Value, new: Value) -> Value:
    """Replace one value with another in a text, as `str.replace` does."""
    if not old.text or HOLE in old.text or DOUBT in old.text:
        return concatenate([text, new if HOLE in new.text else Value(DOUBT)])
    if old.text not in text.text:
        return text
    enough = _LONGEST // len(new.text) + 1 if new.text else -1  # what follows is cut off
    whole = _clipped([text.text.replace(old.text, new.text, enough)])
    return replace(text, text=whole, places=text.places | new.places, items=None)
