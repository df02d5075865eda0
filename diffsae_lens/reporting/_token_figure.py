"""The figure of the chosen features' activations on every token of the minimal pair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle

from diffsae_lens._display import shown_tokens
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.reporting._lookup import check_one_place, said_text
from diffsae_lens.reporting._style import (
    INK,
    MONOSPACE,
    MUTED,
    WIDTH,
    Figure,
    dictionary_colours,
    drawable,
    label,
    needs_light_ink,
    styled,
    tint,
)
from diffsae_lens.results import ExamplePrompt
from diffsae_lens.study._results import Results

_COLUMNS = 80  # characters per line of code; longer lines are wrapped
_TEXT_WIDTH, _LINE_HEIGHT, _LEFT, _HEADING = 7.2, 0.21, 1.05, 0.75  # inches
_LEFT_EMS = 6.5  # width of what is said, left of the code
_MOST_LINES = 60  # per prompt
_MOST_HEIGHT = 300  # inches: matplotlib refuses more than 2 ** 16 dots, at 200 per inch


@dataclass(frozen=True)
class _Piece:
    """The part of a token that is on one line."""

    token: int | None
    """Index of the token; None for the note about what is left out."""
    line: int
    column: int
    text: str


def _lay_out(tokens: Sequence[str], n_lines: int) -> Iterator[_Piece]:
    """Set tokens as code, with an arrow for each line break at the end of its line.

    If a prompt takes more lines, its middle is left out.
    """
    line = column = 0
    spaced = [token.replace("\t", "    ") for token in tokens]
    for i, token in shown_tokens(spaced, limit=n_lines * _COLUMNS, per_line=_COLUMNS):
        parts = drawable(token.replace("\n", "↵\n"), MONOSPACE).split("\n")
        for j, part in enumerate(parts):
            if j:
                line, column = line + 1, 0
            while part:
                if column == _COLUMNS:
                    line, column = line + 1, 0
                piece, part = part[: _COLUMNS - column], part[_COLUMNS - column :]
                yield _Piece(i, line, column, piece)
                column += len(piece)


@styled
@typed
def plot_tokens(results: Results) -> Figure:
    """Draw the chosen features' activations on every token of the minimal pair.

    Each dictionary has a panel with the prompts as code, one under the other, and each token's background
    coloured by its activation. A panel's prompts share the scale, which starts at 0.

    Args:
        results: results of one place; its `example` is drawn.

    Returns:
        The figure.

    Raises:
        ValueError: there are no prompts, prompts of several places, or not one activation per token.
    """
    check_one_place(results)
    prompts, names = example_prompts(results)
    colours = dictionary_colours(results.dictionaries)
    room = (_MOST_HEIGHT / len(names) - _HEADING) / _LINE_HEIGHT / len(prompts) - 2
    most = max(1, min(_MOST_LINES, int(room)))
    blocks = [list(_lay_out(prompt.tokens, most)) for prompt in prompts]
    n_lines = [1 + max((piece.line for piece in block), default=0) for block in blocks]
    panel = (sum(n_lines) + len(blocks) - 1) * _LINE_HEIGHT
    height = len(names) * (panel + _HEADING)
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    for i, name in enumerate(names):
        bottom = height - (i + 1) * (panel + _HEADING) + 0.25
        place = (_LEFT / WIDTH, bottom / height, _TEXT_WIDTH / WIDTH, panel / height)
        ax = figure.add_axes(place)
        ax.set(xlim=(0, _COLUMNS), ylim=(panel / _LINE_HEIGHT, 0))
        ax.set_axis_off()
        ax.set_title(f"{label(name, 35)}, feature {prompts[0].feature_idx[name]}")
        scale = _scale(colours[name], [p.activations[name] for p in prompts])
        first = 0
        for prompt, block, n in zip(prompts, blocks, n_lines, strict=True):
            _draw_tokens(ax, block, prompt.activations[name], scale, first)
            said = label(said_text(prompt.said), _LEFT_EMS)
            ax.text(-1, first + 0.5, said, ha="right", va="center", weight="bold")
            first += n + 1
        left = (_LEFT + _TEXT_WIDTH + 0.08) / WIDTH
        bar = figure.add_axes((left, place[1], 0.012, place[3]))
        figure.colorbar(scale, cax=bar, label="feature activation").outline.set_visible(False)
    return figure


def example_prompts(results: Results) -> tuple[Sequence[ExamplePrompt], list[str]]:
    """Return the prompts of the minimal pair and the names of the dictionaries read on them.

    Raises:
        ValueError: there are no prompts, or not one activation per token for each dictionary.
    """
    prompts = results.example
    if not prompts:
        raise InvalidValueError("`results` has no prompts in `example`")
    names = list(prompts[0].activations)
    for prompt in prompts:
        of = f"the prompt with {said_text(prompt.said)!r:.80} in `example`"
        if list(prompt.activations) != names or not names:
            raise InvalidValueError(
                f"{of} must have activations of {names}, got {[*prompt.activations]}"
            )
        for name in names:
            n_tokens, n_values = len(prompt.tokens), len(prompt.activations[name])
            if n_tokens != n_values:
                raise InvalidValueError(
                    f"{of} has {n_tokens} tokens but {n_values} activations of {name!r}"
                )
    return prompts, names


def _scale(colour: str, activations: Sequence[Sequence[float]]) -> ScalarMappable:
    """Return a scale from white at 0 to the dictionary's colour at the largest activation of all prompts."""
    ramp = [tint(colour, share) for share in (0.0, 1.0)]
    peak = max((value for values in activations for value in values), default=0.0)
    scale = ScalarMappable(
        Normalize(0.0, peak if peak > 0 else 1.0, clip=True),
        LinearSegmentedColormap.from_list("tint", ramp),
    )
    scale.set_array([])
    return scale


def _draw_tokens(
    ax: Axes,
    block: Sequence[_Piece],
    activations: Sequence[float],
    scale: ScalarMappable,
    first: int,
) -> None:
    """Draw a prompt whose first line is line `first` of the panel."""
    size = 72 * _TEXT_WIDTH / _COLUMNS / 0.602 - 0.1  # a character is 0.602 em wide
    for piece in block:
        value = 0.0 if piece.token is None else activations[piece.token]
        red, green, blue, _ = scale.to_rgba(np.array([value]))[0]
        ground = (float(red), float(green), float(blue))
        ink = MUTED if piece.token is None else INK
        corner = (piece.column, first + piece.line)
        ax.add_patch(Rectangle(corner, len(piece.text), 1, color=ground, lw=0))
        ax.text(
            piece.column,
            first + piece.line + 0.5,
            piece.text,
            color="white" if needs_light_ink(ground) else ink,
            va="center_baseline",
            family=MONOSPACE,
            fontsize=size,
        )
