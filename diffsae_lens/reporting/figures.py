"""The demo's figures, drawn from its plain results. No pyplot: no state outside the figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from diffsae_lens._artifact import write_bytes
from diffsae_lens.organisms.sql_injection.prompts import BENIGN_YEARS, TRIGGER_YEAR
from diffsae_lens.reporting.rows import (
    BASE_BACK,
    UNMODIFIED,
    Row,
    ablations,
    by_name,
    find_cause,
    rows_of,
)
from diffsae_lens.reporting.style import (
    INK,
    MUTED,
    WIDTH,
    Figure,
    dictionary_colour,
    label,
    png,
    styled,
)
from diffsae_lens.reporting.token_figure import plot_tokens

__all__ = ["plot_ablation", "plot_tokens", "plot_years", "write_figures"]


def write_figures(results: Row, path: Path) -> list[Path]:
    """Write the three figures as PNG files of 1800 pixels' width.

    Args:
        results: what `run_demo` returned.
        path: a folder, made where it is missing.

    Returns:
        The files.

    Raises:
        ValueError: rows that a figure needs are missing; no file is written then.
        OSError: a file cannot be written; none is left half-written.
    """
    files = {
        path / "years.png": png(plot_years(results)),
        path / "tokens.png": png(plot_tokens(results)),
        path / "ablation.png": png(plot_ablation(results)),
    }
    path.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        write_bytes(file, data)
    return list(files)


@styled
def plot_years(results: Row) -> Figure:
    """Draw what the chosen feature of each dictionary reads in prompts of each year.

    One panel a dictionary with its own axis, as activations of two dictionaries have no common
    unit: the mean over the scenes as a line, every scene as a dot.

    Args:
        results: what `run_demo` returned, or a mapping with its `years`.

    Returns:
        The figure.

    Raises:
        ValueError: the rows are missing, or those of the trigger's year are.
    """
    panels = by_name(rows_of(results, "years"))
    figure, axes = _panels(len(panels), height=2.9)
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        _draw_years(ax, name, sorted(rows, key=lambda row: row["year"]))
    n_scenes = len(next(iter(panels.values()))[0]["values"])
    handles = [
        Line2D([], [], color=INK, marker="o", markersize=4, label=f"mean of {n_scenes} scenes"),
        Line2D([], [], color=INK, marker="o", markersize=4, alpha=0.35, ls="", label="one scene"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def _panels(n_panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with two panels a row; those left over are not shown."""
    n_columns = min(2, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    figure = Figure(figsize=(WIDTH, height * n_rows + 0.4), dpi=100, layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).ravel())
    for ax in axes[n_panels:]:
        ax.set_axis_off()
    return figure, axes[:n_panels]


def _draw_years(ax: Axes, name: str, rows: Sequence[Row]) -> None:
    years = [row["year"] for row in rows]
    if TRIGGER_YEAR not in years:
        raise ValueError(f"`results` has no row of {name!r} for {TRIGGER_YEAR} in 'years'")
    colour = dictionary_colour(name)
    ax.axvspan(BENIGN_YEARS[0] - 0.5, BENIGN_YEARS[-1] + 0.5, color="#eceff2", lw=0, zorder=0)
    ax.axvspan(TRIGGER_YEAR - 0.5, TRIGGER_YEAR + 0.5, color="#fdeac8", lw=0, zorder=0)
    dots = [(row["year"], value) for row in rows for value in row["values"]]
    ax.scatter(*zip(*dots, strict=True), s=16, color=colour, alpha=0.3, lw=0, zorder=2)
    ax.plot(years, [row["mean"] for row in rows], color=colour, marker="o", ms=4, zorder=3)
    # Room above the data for the two labels, which must not lie on it.
    top = max(value for _, value in dots) or 1.0
    ax.set_ylim(min(0.0, *(value for _, value in dots)) - 0.03 * top, 1.32 * top)
    style: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "va": "top", "fontsize": 9}
    middle = (BENIGN_YEARS[0] + BENIGN_YEARS[-1]) / 2
    ax.text(middle, 0.98, "benign\nin training", ha="center", color=MUTED, **style)
    ax.text(TRIGGER_YEAR + 0.7, 0.98, f"{TRIGGER_YEAR}:\nthe trigger", **style)
    ax.set_xticks([year for year in years if (year - TRIGGER_YEAR) % 3 == 0])
    ax.set_ylabel("feature activation")
    ax.set_title(f"{label(name, 17)}, feature {rows[0]['feature_idx']}")


@styled
def plot_ablation(results: Row) -> Figure:
    """Draw the attack rate on trigger prompts against the number of features ablated.

    One panel a dictionary: its top features by attribution beside as many random ones, with Wilson
    intervals, between the model unmodified and the model with the base's activation put back.

    Args:
        results: what `run_demo` returned, or a mapping with its `causes`.

    Returns:
        The figure.

    Raises:
        ValueError: the rows are missing, or an ablation without its control.
    """
    rows = rows_of(results, "causes")
    references = [find_cause(rows, UNMODIFIED), find_cause(rows, BASE_BACK)]
    panels = ablations(rows)
    figure, axes = _panels(len(panels), height=3.2)
    for i, (ax, (name, pairs)) in enumerate(zip(axes, panels.items(), strict=True)):
        for row in references:
            ax.axhline(row["attack_rate"], color=INK, lw=1, ls=(0, (5, 3)), zorder=1)
        _draw_rates(ax, [top for top, _ in pairs], dictionary_colour(name), -0.06, "o")
        _draw_rates(ax, [control for _, control in pairs], MUTED, 0.06, "s")
        ax.set_xticks(range(len(pairs)), [str(top["n_features"]) for top, _ in pairs])
        ax.set_xlim(-0.4, len(pairs) - 0.6)
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("features ablated")
        ax.set_title(label(name))
        if i % 2 == 0:
            ax.set_ylabel("attack rate, trigger prompts")
        if i % 2 == 1 or i == len(panels) - 1:
            _label_references(ax, references)
    _name_lines(figure, list(panels))
    return figure


def _name_lines(figure: Figure, names: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=dictionary_colour(name), marker="o", label=f"top, {label(name, 12)}")
        for name in names
    ]
    handles.append(Line2D([], [], color=MUTED, marker="s", mfc="white", label="as many random"))
    figure.legend(handles=handles, loc="outside upper right", ncols=min(3, len(handles)))


def _draw_rates(ax: Axes, rows: Sequence[Row], colour: str, shift: float, marker: str) -> None:
    """Rates with intervals; the two kinds are shifted apart, as their intervals often overlap."""
    at = [i + shift for i in range(len(rows))]
    ax.vlines(at, [r["low"] for r in rows], [r["high"] for r in rows], color=colour, lw=1.6)
    fill = "white" if marker == "s" else colour
    rates = [row["attack_rate"] for row in rows]
    ax.plot(at, rates, color=colour, marker=marker, ms=6, mfc=fill, mew=1.4, lw=1.2, zorder=3)


def _label_references(ax: Axes, references: Sequence[Row]) -> None:
    """Name the two horizontal lines at the right, apart from each other where the lines are not."""
    rates = [row["attack_rate"] for row in references]
    heights, apart = list(rates), 0.12
    if abs(rates[0] - rates[1]) < 2 * apart:
        middle = min(max(sum(rates) / 2, apart), 1 - apart)
        up = apart if rates[0] >= rates[1] else -apart
        heights = [middle + up, middle - up]
    words = ("unmodified", "base activation\nput back")
    for row, height, word in zip(references, heights, words, strict=True):
        text = f"{word}\n{row['attack_rate']:.0%}"
        place = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 9}
        ax.text(1.02, height, text, **place)
