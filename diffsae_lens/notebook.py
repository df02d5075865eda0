"""What objects show of themselves in a notebook cell: HTML without scripts, network or style sheets."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape

from torch import Tensor

from diffsae_lens._display import TOKEN_LIMIT, cut, shown_tokens, visible

STRONGEST = 0.55
"""Opacity of a token at its peak: dark and light text can both be read on it."""
COLOUR = "0 114 178"


class Record:
    """A frozen dataclass that shows its fields and properties as a table."""

    def _repr_html_(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}  # type: ignore[arg-type]
        properties = {
            name: getattr(self, name)
            for name in dir(type(self))
            if isinstance(getattr(type(self), name), property)
        }
        return facts_html(type(self).__name__, shown | properties)


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Return a table of names and values; everything is escaped, what is invisible made visible.

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
    """Return text with each token on a ground as strong as its value; pointing at one gives it.

    Args:
        tokens: as decoded one by one; of a very long text the middle is left out, with a note.
        values: one a token; at most 0 stays plain.
        peak: the value of the strongest ground.

    Raises:
        ValueError: not one value a token.
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
    """Text as it may stand in a page, in an attribute, too."""
    return escape(visible(cut(text)), quote=True)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        return f"tensor of {list(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return str(value)
