"""What counts as an SQL text, and at which of its places the run-time values are.

A text here holds two marks: a `HOLE` for every value that is known only at run time, and a `DOUBT`
where something happened to the text that was not followed. Every pattern below takes time linear in
the text: repetitions that could backtrack are possessive.
"""

import functools
import re
from collections.abc import Iterator

__all__ = ["DOUBT", "HOLE", "is_query", "slots"]

HOLE = "\ue000"
"""Marks one run-time value in a text; not a letter, so never part of a word."""

DOUBT = "\ue001"
"""Marks a text that went through something that was not followed, or is too long to keep."""

_BEFORE = re.compile(rf"(?:[\s({HOLE}{DOUBT}]++|--[^\n]*+(?:\n|\Z)|/\*(?:[^*]++|\*(?!/))*+\*/)*+")
# Verbs that are also English words must be in capitals.
_VERB = re.compile(
    rf"""(?:explain\s+(?:query\s+plan\s+)?)?(?:(?-i:SELECT)\s+\S|select\s.*\sfrom\s)
    |(?:insert\s+(?:or\s+\w+\s+|ignore\s+)?|replace\s+|merge\s+|upsert\s+|vacuum\s+)into\s
    |update\s.*\sset\s|delete\s+from\s|with\s+(?:recursive\s+)?\w.*\sas\s*\(
    |pragma\s+\w|truncate\s+table\s|attach\s+database\s|load\s+data\s.*infile\s
    |(?:create|drop|alter)\s+(?:\w+\s+){{0,3}}(?:table|index|view|trigger|database|schema)\s
    |(?-i:(?:CREATE|DROP|ALTER)\s+(?:USER|ROLE|LOGIN|EXTENSION|FUNCTION|PROCEDURE|SEQUENCE)\s
      |(?:ATTACH|DETACH|GRANT|REVOKE|EXEC|EXECUTE|SHOW|DESCRIBE|KILL|NOTIFY)\s+\S
      |COPY\s.*\s(?:FROM|TO)\s|CALL\s+[^\s(]+\s*(?:\(|\Z)|COMMENT\s+ON\s|RENAME\s+TABLE\s
      |USE\s+[^\s;]+\s*;?\s*\Z|SET\s+(?:(?:SESSION|LOCAL|GLOBAL)\s+)?(?:ROLE\s|NAMES\s|PASSWORD\s
      |[\w.@{HOLE}]+\s*+(?:=|TO\s)))""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_REST = re.compile(  # the rest of a query that begins elsewhere
    rf"""\s*+[{HOLE}{DOUBT}][^'"]*\b(?:(?:WHERE|AND|OR|HAVING|SET)\s++[\w.]++\s*+
      (?:[=<>!]|(?i:LIKE|IN|BETWEEN))|VALUES\s*+\(|LIMIT\s++{HOLE})""",
    re.VERBOSE,
)
_DDL = re.compile(r"\s*+(?:create|drop|alter|truncate|pragma)\b", re.IGNORECASE)
_TOKEN = re.compile(
    r"""--[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?|(?P<quoted>'(?:[^']++|'')*+'?)|(?P<mark>[(),;])
    |(?P<star>\*)|(?P<word>"[^"]*+"?|`[^`]*+`?|\[[^]]*+\]?|%\([^()]{0,100}\)s|[\w.$@:?HOLE]++)
    |(?P<operator>[=<>!|+/%~-])""".replace("HOLE", HOLE),
    re.DOTALL | re.VERBOSE,
)
_COMPARED = re.compile(r"[\s)]*+(?:[=<>!]|(?:NOT\s++)?(?:I?LIKE|IN|GLOB|REGEXP)\b|IS\b)", re.I)
_COMPARISONS = {"LIKE", "ILIKE", "IN", "BETWEEN", "IS", "GLOB", "REGEXP", "RLIKE", "MATCH"}
_QUALIFIED = re.compile(rf"{HOLE}\.[^\W\d]|(?<!\w)[^\W\d]\w*+\.{HOLE}|{HOLE}\.{HOLE}")
# what follows a keyword: a name; a left side (a name if it is compared); a value; a sort order
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
# The same, if a statement's first word gives keywords another meaning. Called functions take values as
# arguments. The user in GRANT and the file in COPY are data, however they are written.
_RIGHTS = {"GRANT": "name", "REVOKE": "name", "ON": "name", "TO": "value", "FROM": "value"}
_STATEMENTS = {
    "GRANT": _RIGHTS,
    "REVOKE": _RIGHTS,
    "COPY": {"COPY": "name", "FROM": "value", "TO": "value"},
    "VACUUM": {"INTO": "value"},
    **{verb: {verb: "called"} for verb in ("CALL", "EXEC", "EXECUTE")},
    **{verb: {verb: "name"} for verb in ("USE", "SHOW", "DESCRIBE", "DETACH", "NOTIFY")},
}


def is_query(text: str) -> bool:
    """Return whether a text is an SQL query, or the rest of one that begins in a run-time value.

    Examples:
        >>> is_query("SELECT 1"), is_query("Select a user"), is_query("CALL f()"), is_query("Call me")
        (True, False, True, False)
    """
    before = _BEFORE.match(text)
    start = before.end() if before else 0
    return bool(_VERB.match(text, start) or _REST.match(text))


@functools.lru_cache(maxsize=64)  # a text is read again wherever its name is mentioned
def slots(text: str) -> frozenset[str]:
    """Return the kinds of places at which an SQL text has its run-time values.

    Args:
        text: SQL with a `HOLE` for every run-time value.

    Returns:
        Any of ``"value"``; ``"name"`` for an identifier; ``"start"`` for a text whose beginning is
        not known; ``"doubt"`` if the text was not followed throughout.

    Examples:
        >>> sorted(slots(f"SELECT * FROM {HOLE} WHERE id = {HOLE}"))
        ['name', 'value']
        >>> sorted(slots(f"{HOLE} WHERE id = ?"))
        ['start']
    """
    doubt = frozenset({"doubt"} if DOUBT in text else ())
    return doubt | frozenset(_walk(text.replace(DOUBT, "")) if HOLE in text else ())


def _walk(text: str) -> Iterator[str]:
    # `clause` is the kind of the clause, `now` what is expected next, `before` what came last.
    clause, now, before = "name", "name", "start"
    stack: list[tuple[str, str]] = []
    clauses, ddl = _CLAUSES, bool(_DDL.match(text))
    for token in _TOKEN.finditer(text):
        word, kind = token.group(), token.lastgroup
        if kind == "word" and before == "start":
            clauses = _CLAUSES | _STATEMENTS.get(word.upper(), {})
        if kind == "word" and HOLE in word:
            slot = _slot(word, now, before, bool(_COMPARED.match(text, token.end())))
            yield "name" if slot == "value" and before == "operand" and ddl else slot
            before = "start" if slot == "start" else "operand"
        elif kind == "word" and (known := clauses.get(word.upper())):
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
    # Only a whole clause can follow an operand, and that may hold anything.
    named = before == "keyword" and (now in ("name", "called") or (now == "left" and compared))
    return "name" if named else "value"


def _after_mark(
    mark: str, state: tuple[str, str], stack: list[tuple[str, str]]
) -> tuple[str, str, str]:
    clause, now = state
    if mark == "(":
        stack.append(state)
        if now == "called":
            return "value", "value", "keyword"
        return now, now, "keyword"  # an argument of a function is what the function's result is
    if mark == ")":
        return (*(stack.pop() if stack else state), "operand")
    return (clause, clause, "keyword") if mark == "," else ("name", "name", "operand")
