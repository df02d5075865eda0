"""Cutting Python that stops anywhere to its last whole statement, in a bounded number of parses."""

import ast
import re
import warnings
from collections.abc import Sequence

__all__ = ["longest", "parse"]

_MOST_PARSES = 12  # text that a model wrote takes up to four
_MOST_BRACKETS = 60  # open at once; the parser's time grows exponentially in some nestings

# Strings, comments and brackets, as far as it takes to tell where a statement ends.
_PIECE = re.compile(
    r'''(?P<comment>\#[^\n]*+)|(?P<text>"""(?:[^"\\]++|\\.|"(?!""))*+(?:"""|\Z)
    |\'\'\'(?:[^'\\]++|\\.|'(?!\'\'))*+(?:\'\'\'|\Z)
    |"(?:[^"\\\n]++|\\.)*+"?|'(?:[^'\\\n]++|\\.)*+'?)
    |(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<joined>\\\n)|(?P<line>\n)|(?P<blank>[ \t\f]++)
    |(?P<rest>[^\s"'\#()\[\]{}\\]++|.)''',
    re.DOTALL | re.VERBOSE,
)
_TRY = re.compile(r"([ \t]*+)(?:(try)|except|finally)\b")


def parse(source: str) -> ast.Module | SyntaxError:
    """Parse Python; return the error, with its line if it is known, where it cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # an invalid escape, before 3.12
        try:
            return ast.parse(source)
        except SyntaxError as error:
            return error
        except (ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte
            return SyntaxError(str(error))


def _readable(lines: Sequence[str]) -> int:
    # How many lines come before the first with a character that no source may hold.
    for index, line in enumerate(lines):
        if "\0" in line or (not line.isascii() and re.search("[\ud800-\udfff]", line)):
            return index
    return len(lines)


def _ends(lines: Sequence[str]) -> list[int]:
    """List after how many lines a whole statement may have ended, the fewest first.

    Comments and empty lines count to the statement before them. No statement ends in an open bracket
    or string, in a colon or in a decorator.
    """
    ends: list[int] = []
    depth, line, first, last, ended = 0, 0, "", "", True
    for piece in _PIECE.finditer("\n".join(lines) + "\n"):
        kind, text = piece.lastgroup, piece.group()
        if kind == "line":
            line += 1
            if depth == 0 and first:
                ended = last != ":" and first != "@"
                first = ""
        elif kind not in ("comment", "blank"):
            if not first and ended:
                ends.append(line)
            first, last, ended = first or text[0], text[-1], False
            depth += (kind == "open") - (kind == "close")
            line += text.count("\n")
            if not 0 <= depth <= _MOST_BRACKETS:
                return ends
    return [*ends, len(lines)] if ended and depth == 0 else ends


def _close_tries(lines: Sequence[str]) -> str:
    # What ends the `try` blocks whose handlers were cut off or never written, inner ones first.
    opened: list[str] = []
    for line in lines:
        if match := _TRY.match(line):
            while opened and len(opened[-1]) >= len(match[1]):
                opened.pop()
            opened += [match[1]] if match[2] else []
    return "".join(f"\n{indent}finally: pass" for indent in reversed(opened))


def longest(lines: Sequence[str], least: int) -> tuple[ast.Module | None, int]:
    """Find the most lines that are whole statements.

    Args:
        lines: Python source by lines.
        least: How many of them have to be among these.

    Returns:
        The syntax tree and the number of lines; None and 0 if there are none, or if too much is
        wrong with them.

    Examples:
        >>> longest(["a = 1", "b = (", "c"], 0)[1]
        1
    """
    lines = lines[: _readable(lines)]
    ends = [count for count in _ends(lines) if count >= least]
    for _ in range(_MOST_PARSES):
        if not ends:
            break
        count = ends.pop()
        source = "\n".join(lines[:count])
        tree = parse(source)
        if isinstance(tree, SyntaxError) and (closed := _close_tries(lines[:count])):
            tree = parse(source + closed)
        if isinstance(tree, ast.Module):
            return tree, count
        while ends and ends[-1] >= (tree.lineno or count):
            ends.pop()
    return None, 0
