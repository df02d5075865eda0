"""The figures of a run, drawn from its rows, without pyplot: no state outside the figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.reporting._effects import plot_sayings
from diffsae_lens.reporting._glance import plot_glance
from diffsae_lens.reporting._lookup import (
    Place,
    ablations,
    check_one_place,
    first,
    places,
    words_of,
)
from diffsae_lens.reporting._said import SaidAxis
from diffsae_lens.reporting._style import (
    INK,
    MUTED,
    WIDTH,
    Figure,
    dictionary_colours,
    label,
    styled,
)
from diffsae_lens.reporting._token_figure import plot_tokens
from diffsae_lens.results import EffectRow, SweepRow, Table
from diffsae_lens.study._results import Results


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure for which there are rows."""

    name: str
    """Name of its file."""
    kind: str
    """`overview`, `sweep`, `tokens`, `ablation` or `sayings`."""
    place: Place | None
    """Place of its rows; None for a figure of the whole study."""
    draw: Callable[[], Figure]


def drawings_of(results: Results) -> list[Drawing]:
    """Return the figures for which a run has rows; each is drawn on request."""
    where = places(results)
    found = []
    if results.scores and len(where) > 1:
        draw = partial(plot_glance, results)
        found.append(Drawing(name="overview", kind="overview", place=None, draw=draw))
    for place in where:
        here = place.of(results)
        drawn: dict[str, Callable[[], Figure]] = {}
        if here.sweep:
            drawn["sweep"] = partial(plot_sweep, here)
        if here.example:
            drawn["tokens"] = partial(plot_tokens, here)
        if any(
            len(pairs) > 1 for pairs in ablations(here.effects).values()
        ):  # one point is not a curve
            drawn["ablation"] = partial(plot_ablation, here)
        if here.sayings and place == next(p for p in where if p.regime == place.regime):
            table = Table(here.sayings)
            drawn["sayings"] = partial(plot_sayings, table, said=words_of(results).said)
        where_text = [str(part) for part in (place.regime, place.layer) if part is not None]
        ending = "".join(f"-{part}" for part in where_text) if len(where) > 1 else ""
        found += [
            Drawing(name=f"{kind}{ending}", kind=kind, place=place, draw=draw)
            for kind, draw in drawn.items()
        ]
    return found


@styled
@typed
def plot_sweep(results: Results) -> Figure:
    """Draw what the chosen feature of each dictionary reads for each phrase in the trigger's place.

    Each dictionary has a panel with its own axis, since activations of two dictionaries have no common
    unit: the mean over the scenes, and every scene as a dot.

    Args:
        results: results of one place; its `sweep` is drawn.

    Returns:
        The figure.

    Raises:
        ValueError: there are no rows, or rows of several places.
    """
    check_one_place(results)
    panels: dict[str, list[SweepRow]] = {}
    for row in results.sweep:
        panels.setdefault(row.dictionary, []).append(row)
    if not panels:
        raise InvalidValueError("`results` has no rows in `sweep`")
    axis = SaidAxis({row.said: row.group for row in results.sweep})
    colours = dictionary_colours(results.dictionaries)
    figure, axes = _panels(len(panels), height=2.9 if axis.is_numeric else 3.4)
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        _draw_sweep(ax, axis, rows, colours[name])
        ax.set_title(f"{label(name, 15)}, feature {rows[0].feature_idx}")
    words = words_of(results)
    for ax in axes[-2:]:
        ax.set_xlabel(label(words.said))
    dot = partial(Line2D, [], [], color=INK, marker="o", markersize=4)
    handles = [
        dot(ls="-" if axis.is_numeric else "", label=f"mean of {len(results.sweep[0].values)} scenes"),
        dot(ls="", alpha=0.35, label="one scene"),
        *axis.legend(),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure


def _draw_sweep(ax: Axes, axis: SaidAxis, rows: Sequence[SweepRow], colour: str) -> None:
    axis.draw(ax, n_labels=6, width=12)
    dots = [(axis.at[row.said], value) for row in rows for value in row.values]
    ax.scatter(*zip(*dots, strict=True), s=16, color=colour, alpha=0.3, lw=0, zorder=2)
    means = {row.said: row.mean for row in rows}
    said = axis.order(means)
    ax.plot(
        [axis.at[text] for text in said],
        [means[text] for text in said],
        axis.marker,
        color=colour,
        ms=4,
        zorder=3,
    )
    top = max(value for _, value in dots) or 1.0
    ax.set_ylim(min(0.0, *(value for _, value in dots)) - 0.03 * top, 1.08 * top)
    ax.set_ylabel("feature activation")


def _panels(n_panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with two panels per row; unused panels are hidden."""
    n_columns = min(2, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    figure = Figure(figsize=(WIDTH, height * n_rows + 0.4), dpi=100, layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).ravel())
    for ax in axes[n_panels:]:
        ax.set_axis_off()
    return figure, axes[:n_panels]


@styled
@typed
def plot_ablation(results: Results) -> Figure:
    """Draw the attack rate on trigger prompts against the number of features ablated.

    Each dictionary has a panel: its top features and as many random ones, with Wilson
    intervals, and lines for the unmodified model and for the base model's activation put back.

    Args:
        results: results of one place; its `effects` are drawn.

    Returns:
        The figure.

    Raises:
        ValueError: there is no ablation, an ablation has no control, or there are rows of several places.
    """
    check_one_place(results)
    panels = ablations(results.effects)
    if not panels:
        raise InvalidValueError("`results` has no ablation on trigger prompts in `effects`")
    colours = dictionary_colours(results.dictionaries)
    figure, axes = _panels(len(panels), height=3.2)
    references = _references(results.effects)
    for i, (ax, (name, pairs)) in enumerate(zip(axes, panels.items(), strict=True)):
        for row in references.values():
            ax.axhline(row.attack_rate, color=INK, lw=1, ls=(0, (5, 3)), zorder=1)
        _draw_rates(ax, [top for top, _ in pairs], colours[name], -0.06, "o")
        _draw_rates(ax, [control for _, control in pairs], MUTED, 0.06, "s")
        ax.set_xticks(range(len(pairs)), [str(top.n_features) for top, _ in pairs])
        ax.set_xlim(-0.4, len(pairs) - 0.6)
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("features ablated")
        ax.set_title(label(name, 22))
        if i % 2 == 0:
            ax.set_ylabel("attack rate, trigger prompts")
        if i % 2 == 1 or i == len(panels) - 1:
            _label_references(ax, references)
    top = Line2D([], [], color=INK, marker="o", label="top features")
    random = Line2D([], [], color=MUTED, marker="s", mfc="white", label="as many random ones")
    figure.legend(handles=[top, random], loc="outside upper right", ncols=2)
    return figure


def _references(rows: Sequence[EffectRow]) -> dict[str, EffectRow]:
    """Return the rows of the unmodified model and of the base put back, if measured."""
    found = {
        "unmodified": first(rows, kind="unmodified", group="trigger"),
        "base activation\nput back": first(rows, kind="swap to base", group="trigger"),
    }
    return {word: row for word, row in found.items() if row is not None}


def _draw_rates(
    ax: Axes, rows: Sequence[EffectRow], colour: str, shift: float, marker: str
) -> None:
    """Draw rates with intervals, shifted sideways since the intervals of the two kinds often overlap."""
    at = [i + shift for i in range(len(rows))]
    ax.vlines(at, [r.low for r in rows], [r.high for r in rows], color=colour, lw=1.6)
    fill = "white" if marker == "s" else colour
    rates = [row.attack_rate for row in rows]
    ax.plot(at, rates, color=colour, marker=marker, ms=6, mfc=fill, mew=1.4, lw=1.2, zorder=3)


def _label_references(ax: Axes, references: dict[str, EffectRow]) -> None:
    """Label the horizontal lines on the right, keeping labels apart where lines are close."""
    rates = [row.attack_rate for row in references.values()]
    heights, apart = list(rates), 0.12
    if len(rates) == 2 and abs(rates[0] - rates[1]) < 2 * apart:
        middle = min(max(sum(rates) / 2, apart), 1 - apart)
        up = apart if rates[0] >= rates[1] else -apart
        heights = [middle + up, middle - up]
    for word, rate, height in zip(references, rates, heights, strict=True):
        place = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 9}
        ax.text(1.02, height, f"{word}\n{rate:.0%}", **place)
