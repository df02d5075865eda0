"""Cut Python that may stop anywhere to its last whole statement, in a bounded number of parses."""

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from diffsae_lens._errors import InvalidTypeError
from diffsae_lens.organisms._bounds import MOST_CHARACTERS

__all__ = ["Cut", "cut_completion", "longest", "parse", "split_lines"]

_MOST_PARSES = 12  # text that a model wrote takes up to four
_MOST_BRACKETS = 60  # open at once; the parser's time grows exponentially in some nestings

# Strings, comments and brackets, as far as needed to tell where a statement ends.
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
    """Parse Python; if it does not parse, return the error, with its line if known."""
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
    # The number of lines before the first with a character that is not allowed in source.
    for index, line in enumerate(lines):
        if "\0" in line or (not line.isascii() and re.search("[\ud800-\udfff]", line)):
            return index
    return len(lines)


def _ends(lines: Sequence[str]) -> list[int]:
    """Return the numbers of lines after which a whole statement may have ended, the fewest first.

    Comments and empty lines belong to the statement before them. No statement ends inside a bracket or
    string, with a colon or with a decorator.
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
    # Code that ends the `try` blocks whose handlers were cut off or never written, inner ones first.
    opened: list[str] = []
    for line in lines:
        if match := _TRY.match(line):
            while opened and len(opened[-1]) >= len(match[1]):
                opened.pop()
            opened += [match[1]] if match[2] else []
    return "".join(f"\n{indent}finally: pass" for indent in reversed(opened))


def longest(lines: Sequence[str], least: int) -> tuple[ast.Module | None, int]:
    """Find the largest number of leading lines that are whole statements.

    Args:
        lines: Lines of Python source.
        least: Minimum number of lines to keep.

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


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A prompt with the part of its completion that is whole statements."""

    tree: ast.Module
    first_line: int
    """Line, counted from one, on which the completion begins."""
    kept_lines: int
    """Lines of the completion that are in the tree."""


def split_lines(source: str) -> list[str]:
    """Split source into lines as Python counts them."""
    return source.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def cut_completion(prompt: str, completion: str) -> Cut | str:
    r"""Cut what a model wrote after a prompt to what can be judged.

    It is cut after its last whole statement (a `try` whose handlers are missing is closed) and before the
    first statement that leaves the top-level function or class in which the prompt stops.

    Returns:
        What is left, or a sentence on why there is nothing to judge.

    Raises:
        TypeError: If either is not a string.

    Examples:
        >>> cut_completion("def f():\n    a =", " 1\n    b = (2,").kept_lines
        1
    """
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str):
            raise InvalidTypeError(f"{name} must be a str, got {type(text).__name__}")
    if len(prompt) + len(completion) > MOST_CHARACTERS:
        return f"Prompt and completion exceed {MOST_CHARACTERS:,} characters."
    first = len(split_lines(prompt))
    lines = split_lines(prompt + completion)
    prompt_lines = first if split_lines(prompt)[-1].strip() else first - 1
    tree, kept = longest(lines, prompt_lines)
    while kept > prompt_lines and not lines[kept - 1].strip():
        kept -= 1
    if tree is None or (kept < first and completion.strip()):
        return "No whole statement of the completion parses."
    left = _leave(tree, prompt_lines)
    if left is not None:
        kept = len("\n".join(lines[: left - 1]).rstrip().split("\n"))
    kept_lines = max(0, kept - first + 1) if completion.strip() else 0
    return Cut(tree=tree, first_line=first, kept_lines=kept_lines)


def _leave(tree: ast.Module, prompt_lines: int) -> int | None:
    # Drop what follows the function or class in which the prompt stops; returns the line where it began.
    starts = [
        min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        for node in tree.body
    ]
    home = [node for node, start in zip(tree.body, starts, strict=True) if start <= prompt_lines]
    if not home or not hasattr(home[-1], "body") or len(home) == len(tree.body):
        return None
    tree.body = list(home)
    return starts[len(home)]
