"""Display of text from models and users: nothing invisible, nothing endless.

Every page, table and figure shows such text through `visible`; objects render themselves in a notebook
cell as HTML without scripts, network or style sheets. Imports nothing from the package.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape

from torch import Tensor

LIMIT = 20_000
"""Maximum characters of one text shown on a page."""
TOKEN_LIMIT = 500
"""Maximum characters of one token shown on a page."""
STRONGEST = 0.55
"""Opacity of a token's background at its peak: dark and light text are both readable on it."""
COLOUR = "0 114 178"

# What Unicode calls default ignorable outside the control and format categories: it draws nothing, or
# changes how its neighbour is drawn (variation selectors, which can carry hidden text).
_IGNORABLE = (
    range(0x034F, 0x0350), range(0x115F, 0x1161), range(0x17B4, 0x17B6), range(0x180B, 0x1810),
    range(0x3164, 0x3165), range(0xFE00, 0xFE10), range(0xFFA0, 0xFFA1), range(0xE0000, 0xE1000),
)  # fmt: skip


class _Escapes(dict[int, int | str]):
    """A table for `str.translate` that fills itself on demand; one of all characters takes long to build."""

    def __missing__(self, code: int) -> int | str:
        category = unicodedata.category(chr(code))
        hidden = category[0] == "C" or category in ("Zl", "Zp")
        hidden = hidden or any(code in part for part in _IGNORABLE)
        self[code] = _escape(code) if hidden else code
        return self[code]


def _escape(code: int) -> str:
    return chr(code).encode("unicode_escape").decode("ascii")


_LINES = _Escapes({ord(c): ord(c) for c in "\n\t"})
_LINE = _Escapes()


def visible(text: str) -> str:
    r"""Return the text with an escape for each character that a reader would not see.

    Python escapes replace control characters except line breaks and tabs, format characters (zero-width
    ones, bidirectional marks, overrides and isolates, byte order marks), lone surrogates, private-use and
    unassigned code points, line and paragraph separators, fillers and variation selectors. The result
    can be encoded as UTF-8. A backslash stays a single backslash, so that code remains readable.

    Examples:
        >>> print(visible("SELECT\x1b[8m 1\u202e"))
        SELECT\x1b[8m 1\u202e
    """
    return text.translate(_LINES)


def one_line(text: str) -> str:
    r"""Return `visible` text on one line, with line breaks and tabs escaped too.

    Examples:
        >>> print(one_line("a\tb\nc"))
        a\tb\nc
    """
    return text.translate(_LINE)


def cut(text: str, limit: int = LIMIT) -> str:
    """Return both ends of a text that is too long, with a note of how much is left out in between.

    Args:
        text: a text of any length.
        limit: maximum number of characters kept.

    Examples:
        >>> cut("0123456789", 4)
        '01 [... 6 characters left out ...] 89'
    """
    if len(text) <= limit:
        return text
    n_head = limit // 2
    tail = text[len(text) - (limit - n_head) :]
    return f"{text[:n_head]} [... {len(text) - limit:,} characters left out ...] {tail}"


def shown_tokens(
    tokens: Sequence[str], *, limit: int = LIMIT, per_line: int = 1
) -> list[tuple[int | None, str]]:
    r"""Return the tokens to show, each with its index: all of them, or both ends of a long text.

    Args:
        tokens: the tokens of a text, decoded one at a time.
        limit: total room in characters; each token takes its length plus one.
        per_line: characters that a line break counts for.

    Returns:
        Index and `visible` text of each token. `(None, note)` replaces the tokens left out.

    Examples:
        >>> shown_tokens(["a", "\x00", "b", "c"], limit=6)
        [(0, 'a'), (None, '[... 2 tokens left out, 2 characters ...]'), (3, 'c')]
    """
    texts = [visible(cut(token, TOKEN_LIMIT)) for token in tokens]
    costs = [len(text) + 1 + (per_line - 1) * text.count("\n") for text in texts]
    pairs = list[tuple[int | None, str]](enumerate(texts))
    if sum(costs) <= limit:
        return pairs
    n_head = _n_within(costs, limit // 2)
    n_tail = min(_n_within(reversed(costs), limit // 2), len(tokens) - n_head)
    end = len(tokens) - n_tail
    n_characters = sum(map(len, tokens[n_head:end]))
    note = f"[... {end - n_head:,} tokens left out, {n_characters:,} characters ...]"
    return [*pairs[:n_head], (None, note), *pairs[end:]]


def _n_within(costs: Iterable[int], limit: int) -> int:
    """Return how many leading items fit within the limit."""
    n = 0
    for cost in costs:
        limit -= cost
        if limit < 0:
            break
        n += 1
    return n


class Record:
    """A mixin for frozen dataclasses that renders their fields and properties as a table."""

    def _repr_html_(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}  # type: ignore[arg-type]
        properties = {
            name: getattr(self, name)
            for name in dir(type(self))
            if isinstance(getattr(type(self), name), property)
        }
        return facts_html(type(self).__name__, shown | properties)


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Return an HTML table of names and values, with everything escaped and the invisible made visible.

    Examples:
        >>> facts_html("BIS", {"ceiling": 0.4, "hook": "<b>"}).count("&lt;b&gt;")
        1
    """
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{_html(name)}</th>'
        f'<td style="text-align:left">{_html(_text(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    caption = f'<caption style="text-align:left"><b>{_html(title)}</b></caption>'
    return f"<table>{caption}<tbody>{rows}</tbody></table>"


def tokens_html(tokens: Sequence[str], values: Sequence[float], peak: float) -> str:
    """Return text with each token on a background as strong as its value; hovering shows the value.

    Args:
        tokens: the tokens, decoded one at a time; the middle of a very long text is left out, with a note.
        values: one value per token; tokens with values of 0 or less have no background.
        peak: the value with the strongest background.

    Raises:
        ValueError: there is not exactly one value per token.
    """
    pairs = list(zip(tokens, values, strict=True))
    spans = []
    for i, shown in shown_tokens(tokens):
        if i is None:
            spans.append(f"<i>{escape(shown)}</i>")
            continue
        token, value = pairs[i]
        share = min(max(value / peak, 0.0), 1.0) if peak > 0 else 0.0
        title = _html(f"token {i} {cut(token, TOKEN_LIMIT)!r}: {value:.3f}")
        text = escape(shown.replace("\n", "↵\n"))
        ground = f' style="background:rgb({COLOUR} / {STRONGEST * share:.3f})"' if share else ""
        spans.append(f'<span title="{title}"{ground}>{text}</span>')
    return f'<pre style="white-space:pre-wrap">{"".join(spans)}</pre>'


def _html(text: str) -> str:
    """Return text that is safe in a page, attributes included."""
    return escape(visible(cut(text)), quote=True)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        return f"tensor of {list(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return str(value)
