"""The look of figures and reports: one style, and colours that colour-blind readers can tell apart."""

import functools
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.figure
import matplotlib.style
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

from diffsae_lens._display import one_line
from diffsae_lens.results import DictionaryKind, DictionaryRow

INK, MUTED, FAINT = "#1f2328", "#5c6570", "#d5d9de"

# Okabe and Ito's blue, vermillion and green; the latter two are a shade darker, so that white text on
# them keeps a contrast of 4.5.
BLUE, VERMILLION, GREEN = "#0072B2", "#B84E00", "#00795C"
SERIES = (BLUE, VERMILLION, GREEN)
"""Colours of the series in one panel, in turn; controls are grey."""
_BY_KIND: dict[DictionaryKind, str] = {"Diff-SAE": BLUE, "crosscoder": VERMILLION, "SAE": GREEN}
TRIGGER, BENIGN = "#fdeac8", "#eceff2"
"""Background colours for what is said in the trigger's place."""

WIDTH = 9.0
"""Width of every figure in inches; at 100 dots per inch all text is legible."""

MONOSPACE = "DejaVu Sans Mono"
"""Comes with matplotlib, as does `SANS`."""
SANS = "DejaVu Sans"
_STYLE: dict[str, Any] = {
    "font.family": SANS,
    "font.size": 10,
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


class Figure(matplotlib.figure.Figure):
    """A figure that displays itself in a notebook cell, whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=100)


def png(figure: matplotlib.figure.Figure, *, dpi: int = 200) -> bytes:
    """Return the figure as a PNG file; by default at twice its displayed size."""
    buffer = io.BytesIO()
    # Without the software's name, the same results give the same bytes.
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def dictionary_colours(dictionaries: Iterable[DictionaryRow]) -> dict[str, str]:
    """Return the colour of each dictionary by name, one colour per kind; green for any other name."""
    return defaultdict(lambda: GREEN, {row.name: _BY_KIND[row.kind] for row in dictionaries})


def css_colour(colour: str) -> str:
    """Return a colour as the arguments of CSS `rgb()`."""
    return " ".join(str(round(255 * part)) for part in to_rgb(colour))


def tint(colour: str, share: float) -> tuple[float, float, float]:
    """Mix a colour into white; `share` 0 is white and 1 the colour."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def needs_light_ink(background: tuple[float, float, float]) -> bool:
    """Return whether white text has more contrast on a background than `INK` (WCAG 2 luminance)."""
    light = _luminance(background) + 0.05
    return 1.05 / light > light / (_luminance(to_rgb(INK)) + 0.05)


def _luminance(rgb: tuple[float, float, float]) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in our style regardless of the user's, and leave the user's unchanged."""

    @functools.wraps(plot)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.style.context(["default", _STYLE]):
            return plot(*args, **kwargs)

    return wrapper


def drawable(text: str, family: str = SANS) -> str:
    """Return the text with a mark for each character that the font lacks (matplotlib would warn)."""
    glyphs = _glyphs(family)
    return "".join(c if c == "\n" or ord(c) in glyphs else "\ufffd" for c in text)


def label(text: str, width: int | float = 20) -> str:
    r"""Return a name as figures show it: on one line, invisible characters escaped, shortened in the middle.

    Args:
        text: text of any length and content.
        width: room for the text, in ems (the font size).

    Examples:
        >>> print(label("a\n$b"))
        a\n$b
        >>> label("crosscoder-" + 5000 * "x" + "-24", 10)
        'crossco…xxxx-24'
    """
    n_most = int(width / _LEAST_EMS) + 1  # bounds the characters measured of a long name
    head, tail = (drawable(one_line(part)) for part in (text[:n_most], text[-n_most:]))
    if len(text) > n_most or sum(map(_ems, head)) > width:
        room = (width - _ems("…")) / 2
        head = f"{_within(head, room)}…{_within(tail[::-1], room)[::-1]}"
    # matplotlib leaves labels that begin with an underscore out of legends.
    return f" {head}" if head.startswith("_") else head


_LEAST_EMS = 0.25
"""Smallest width counted for a character: combining marks have no width, but still take time."""


def _within(text: str, width: int | float) -> str:
    """Return the longest beginning of the text that fits into the width."""
    for i, c in enumerate(text):
        width -= _ems(c)
        if width < 0:
            return text[:i]
    return text


@functools.cache
def _ems(character: str) -> float:
    """Return the width of a character in the bold font, which is the wider one."""
    font = _font(SANS, "bold")
    font.set_size(100.0, 72.0)
    return max(_LEAST_EMS, font.load_char(ord(character)).linearHoriAdvance / 65536 / 100)


@functools.cache
def _glyphs(family: str) -> frozenset[int]:
    """Return the characters that a family has in both regular and bold."""
    regular, bold = (_font(family, weight).get_charmap() for weight in ("normal", "bold"))
    return frozenset(regular) & frozenset(bold)


@functools.cache
def _font(family: str, weight: str) -> FT2Font:
    """Return a separate font object: matplotlib's are shared, and their size is state."""
    return FT2Font(findfont(FontProperties(family=family, weight=weight)))
