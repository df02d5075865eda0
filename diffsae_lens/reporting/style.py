"""How figures and report look: colours that colour-blind readers tell apart, and one style."""

import functools
import io
from collections.abc import Callable
from typing import Any

import matplotlib.figure
import matplotlib.style
from matplotlib.colors import to_rgb
from matplotlib.font_manager import findfont, get_font

INK, MUTED, FAINT = "#1f2328", "#5c6570", "#d5d9de"

# Okabe and Ito's blue, vermillion and green; the latter two a shade darker, so that white text on
# them keeps a contrast of 4.5.
BLUE, VERMILLION, GREEN = "#0072B2", "#B84E00", "#00795C"
_BY_KIND = {"diff-sae": BLUE, "crosscoder": VERMILLION}

WIDTH = 9.0
"""Of every figure, inches; at 100 dots an inch all text can be read."""

MONOSPACE = "DejaVu Sans Mono"
"""Comes with matplotlib."""
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
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
    """A figure that shows itself in a notebook cell, whether pyplot was imported or not."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, facecolor="white")
        return buffer.getvalue()


def dictionary_colour(name: str) -> str:
    """Return the colour of a dictionary's kind, which its name begins with.

    Examples:
        >>> dictionary_colour("diff-sae-24")
        '#0072B2'
    """
    return _BY_KIND.get(name.lower().rpartition("-")[0], GREEN)


def tint(colour: str, share: float) -> tuple[float, float, float]:
    """Mix a colour into white; `share` 0 is white and 1 the colour."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def needs_light_ink(background: tuple[float, float, float]) -> bool:
    """Whether white text has more contrast on a background than `INK` has (WCAG 2 luminance)."""
    light = _luminance(background) + 0.05
    return 1.05 / light > light / (_luminance(to_rgb(INK)) + 0.05)


def _luminance(rgb: tuple[float, float, float]) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in our style whatever the user's is, and leave the user's as it was."""

    @functools.wraps(plot)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.style.context(["default", _STYLE]):
            return plot(*args, **kwargs)

    return wrapper


def drawable(text: str, keep: str = "") -> str:
    """The text with a mark for each character that the font lacks (matplotlib would warn)."""
    font = get_font(findfont(MONOSPACE))
    return "".join(c if c in keep or font.get_char_index(ord(c)) else "\ufffd" for c in text)
