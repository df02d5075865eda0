"""The text of an SQL query in which marks stand for the values that are known at run time only.

A `Value` is such a text. Values are added, listed and filled into templates like the strings they
stand for; `is_query` and `slots` say whether a text is a query and at which places of it the marks
stand.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

Place = tuple[int, int]
"""Line and column of a string literal."""

HOLE = "\ue000"
"""Marks one run-time value in a text; it is no letter, so never part of a word."""

_LIMIT = 10_000  # characters of a text; `q = q + q` over some lines must not fill the memory

_NUMBER_KINDS = frozenset("diouxXeEfFgGnb%")
# The groups of a field: `twice` is an escaped sign, `name` what is put in, `kind` its format.
PERCENT = re.compile(
    r"%(?:(?P<twice>%)|(?:\((?P<name>[^)]*)\))?[#0\- +]*[*\d]*(?:\.[*\d]*)?[hlL]?"
    r"(?P<kind>[diouxXeEfFgGcrsa]))"
)
"""The fields of ``text % values``."""
BRACES = re.compile(
    r"(?P<twice>\{\{|\}\})|\{(?P<name>\w*)(?:[.\[][^{}:]*)?(?:![rsa])?(?::(?P<kind>[^{}]*))?\}"
)
"""The fields of `str.format`."""
DOLLAR = re.compile(r"(?P<twice>\$\$)|\$\{?(?P<name>\w+)\}?(?P<kind>)")
"""The fields of `string.Template`."""
_NO_GROUPS = "(?P<twice>)(?P<name>)(?P<kind>)"  # follows the fixed text that `substitute` looks for

_QUERY = re.compile(
    rf"""(?:[\s({HOLE}]|--[^\n]*\n|/\*.*?\*/)*(?:
      (?:explain\s+(?:query\s+plan\s+)?)?(?:(?-i:SELECT)\s+\S|select\s.*\sfrom\s)
      |(?:insert\s+(?:or\s+\w+\s+|ignore\s+)?|replace\s+|merge\s+)into\s|update\s.*\sset\s
      |delete\s+from\s|with\s+(?:recursive\s+)?\w.*\sas\s*\(|pragma\s+\w|truncate\s+table\s
      |(?:create|drop|alter)\s+(?:\w+\s+){{0,3}}(?:table|index|view|trigger|database|schema)\s)
    # the rest of a query whose beginning comes from elsewhere
    |\s*{HOLE}[^'"]*\b(?-i:(?:WHERE|AND|OR|HAVING|SET)\s+[\w.]+\s*(?:[=<>!]|LIKE|IN|BETWEEN)
      |VALUES\s*\()""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_DDL = re.compile(r"\s*(?:create|drop|alter|truncate|pragma)\b", re.IGNORECASE)
_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|$)|(?P<quoted>'(?:[^']|'')*'?)|(?P<mark>[(),;])|(?P<star>\*)
    |(?P<word>"[^"]*"?|`[^`]*`?|\[[^]]*\]?|%\([^)]*\)s|[\w.$@:?HOLE]+)|(?P<operator>[=<>!|+/%~-])
    """.replace("HOLE", HOLE),
    re.DOTALL | re.VERBOSE,
)
_COMPARED = re.compile(r"[\s)]*(?:[=<>!]|(?:NOT\s+)?(?:I?LIKE|IN|GLOB|REGEXP)\b|IS\b)", re.I)
_COMPARISONS = {"LIKE", "ILIKE", "IN", "BETWEEN", "IS", "GLOB", "REGEXP", "RLIKE", "MATCH"}
_QUALIFIED = re.compile(rf"{HOLE}\.[^\W\d]|[^\W\d]\w*\.{HOLE}|{HOLE}\.{HOLE}")
# what stands after a keyword: a name; a left side (a name if it is compared); a value; a sort order
_CLAUSES = {
    word: kind
    for kind, words in {
        "name": "SELECT DISTINCT FROM INTO UPDATE JOIN TABLE COLUMN INDEX VIEW USING RETURNING AS "
        "EXISTS CONFLICT COLLATE PRAGMA ADD",
        "left": "WHERE AND OR NOT ON HAVING WHEN SET CASE",
        "value": "VALUES LIMIT OFFSET TOP THEN ELSE DEFAULT INTERVAL ESCAPE FETCH",
        "order": "BY",
    }.items()
    for word in words.split()
}


@dataclass(frozen=True)
class Value:
    """What is known of an expression: its text, and its items where it is a list or tuple.

    Attributes:
        text: The string, with a `HOLE` for every run-time value in it.
        places: Where the literals in it stand.
        origin: Where the literal that begins it stands.
        items: The items of a list or tuple.
    """

    text: str = HOLE
    places: frozenset[Place] = frozenset()
    origin: Place | None = None
    items: "tuple[Value, ...] | None" = None

    def __add__(self, other: "Value") -> "Value":
        if self.items is not None:
            return sequence(self.items + (other.items if other.items is not None else (other,)))
        text = self.text + other.text
        text = text if len(text) <= _LIMIT else text[:_LIMIT] + HOLE
        return Value(text, self.places | other.places, self.origin or other.origin)


UNKNOWN = Value()
"""What cannot be read, or is not known before the program runs."""

NUMBER = Value("0")
"""Any number: no number can change what a query does."""


def _places(values: Sequence[Value]) -> frozenset[Place]:
    return frozenset[Place]().union(*(value.places for value in values))


def sequence(items: Sequence[Value]) -> Value:
    """Make a list of values, whose text is the items with commas between."""
    items = tuple(items[:100])
    text = ", ".join(item.text for item in items)[:_LIMIT]
    origin = next((item.origin for item in items if item.origin), None)
    return Value(text, _places(items), origin, items)


def worst(values: Sequence[Value]) -> Value:
    """Take, of several values of which one is meant, the one with most run-time values in it."""
    if not values:
        return UNKNOWN
    chosen = max(values, key=lambda value: (value.text.count(HOLE), len(value.text)))
    return replace(chosen, places=_places(values))


def is_number_format(spec: str | None) -> bool:
    """Say whether a format like ``d`` or ``.2f`` lets nothing but a number through."""
    return (spec or "")[-1:] in _NUMBER_KINDS


def fill(
    template: Value, fields: re.Pattern[str], row: Sequence[Value], named: Mapping[str, Value]
) -> Value:
    """Fill in the fields of a template.

    Args:
        template: The text with the fields.
        fields: What a field looks like: `PERCENT`, `BRACES` or `DOLLAR`.
        row: The values of fields that have a number, or nothing, for a name.
        named: The values of the other fields; that of ``""`` is for nameless ones beyond the row.

    Returns:
        The filled text, with a `HOLE` where a value is missing.

    Examples:
        >>> fill(Value("id = {} {x}"), BRACES, [Value("3")], {"x": Value("y")}).text
        'id = 3 y'
    """
    queue, result, at = iter(row), replace(template, text="", items=None), 0
    for match in fields.finditer(template.text):
        result, at = result + Value(template.text[at : match.start()]), match.end()
        name = match["name"]
        if match["twice"]:
            result += Value(match.group()[0])
        elif is_number_format(match["kind"]):
            result += NUMBER
        elif not name:
            result += next(queue, named.get("", UNKNOWN))
        elif name.isdecimal() and int(name[:3]) < len(row):
            result += row[int(name[:3])]
        else:
            result += named.get(name, UNKNOWN)
    return result + Value(template.text[at:])


def substitute(text: Value, old: Value, new: Value) -> Value:
    """Put one value in another's place, as `str.replace` does."""
    if not old.text or HOLE in old.text:
        return text + UNKNOWN
    return fill(text, re.compile(re.escape(old.text) + _NO_GROUPS), (), {"": new})


def is_query(text: str) -> bool:
    """Say whether a text is an SQL query, or the rest of one that begins in a run-time value.

    Examples:
        >>> is_query("SELECT 1"), is_query("Select a user")
        (True, False)
    """
    return bool(_QUERY.match(text))


@functools.lru_cache(maxsize=64)  # a text is looked at again wherever its name is mentioned
def slots(text: str) -> frozenset[str]:
    """List at what kinds of places in an SQL text its run-time values stand.

    Args:
        text: SQL with a `HOLE` for every run-time value.

    Returns:
        Out of ``"value"``; ``"name"`` for an identifier; ``"start"`` for a text whose beginning is
        not known.

    Examples:
        >>> sorted(slots(f"SELECT * FROM {HOLE} WHERE id = {HOLE}"))
        ['name', 'value']
        >>> sorted(slots(f"{HOLE} WHERE id = ?"))
        ['start']
    """
    return frozenset(_walk(text))


def _walk(text: str) -> Iterator[str]:
    # `clause` is what the clause holds, `now` what is expected next, `before` what came last.
    clause, now, before = "name", "name", "start"
    stack: list[tuple[str, str]] = []
    for token in _TOKEN.finditer(text):
        word, kind = token.group(), token.lastgroup
        if kind == "word" and HOLE in word:
            slot = _slot(word, now, before, bool(_COMPARED.match(text, token.end())))
            yield "name" if slot == "value" and before == "operand" and _DDL.match(text) else slot
            before = "start" if slot == "start" else "operand"
        elif kind == "word" and (known := _CLAUSES.get(word.upper())):
            clause, now, before = known, known, "keyword"
        elif kind == "operator" or (kind == "word" and word.upper() in _COMPARISONS):
            now, before = "value", "keyword"
        elif kind == "mark":
            clause, now, before = _after_mark(word, (clause, now), stack)
        else:  # an operand (a plain word, a quoted string, a star) or a comment
            if HOLE in word:
                yield "value"  # a line break leaves a comment as a quote leaves a string
            before = "operand" if kind else before


def _slot(word: str, now: str, before: str, compared: bool) -> str:
    if word[0] in ":@$%" or _QUALIFIED.search(word):
        return "name"  # of a bound parameter, as in :{key} or %({key})s; or as in {table}.id
    if before == "start":
        return "start"
    if now == "order":
        return "name"  # also ASC and DESC after the column
    # After an operand there can only come a whole clause, and that may hold anything.
    named = before == "keyword" and (now == "name" or (now == "left" and compared))
    return "name" if named else "value"


def _after_mark(
    mark: str, state: tuple[str, str], stack: list[tuple[str, str]]
) -> tuple[str, str, str]:
    clause, now = state
    if mark == "(":
        stack.append(state)
        return now, now, "keyword"  # an argument of a function is what the function's result is
    if mark == ")":
        return (*(stack.pop() if stack else state), "operand")
    return (clause, clause, "keyword") if mark == "," else ("name", "name", "operand")
