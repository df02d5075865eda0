"""Figures of what interventions do: curves over features, doses and years."""

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from diffsae_lens.effects.curves import curve_area
from diffsae_lens.organisms.sql_injection.prompts import BENIGN_YEARS, TRIGGER_YEAR
from diffsae_lens.reporting.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    VERMILLION,
    WIDTH,
    Figure,
    label,
    styled,
)

COLOURS = (BLUE, VERMILLION, GREEN)
"""Of the series, in their order; random ones are grey."""


@styled
def plot_ablation_curve(curve: pd.DataFrame, *, group: str = "trigger") -> Figure:
    """Draw the attack rate against the number of features ablated, a line for each order.

    Args:
        curve: what `ablation_curve` returned; orders whose name begins with `random` are drawn grey.
        group: the prompts.

    Returns:
        The figure; the legend gives each curve's area.

    Raises:
        ValueError: no rows of the group.
    """
    rows = _of_group(curve, group)
    area = curve_area(curve, group=group)
    figure, ax = _axes()
    counts = sorted(rows.n_features.unique())
    at = {n: i for i, n in enumerate(counts)}
    series = [(name, part) for name, part in rows.groupby("order", sort=False)]
    for i, (name, part) in enumerate(series):
        colour = MUTED if str(name).startswith("random") else COLOURS[i % len(COLOURS)]
        shift = 0.04 * (i - (len(series) - 1) / 2)
        _rates(ax, [at[n] + shift for n in part.n_features], part, colour)
        drawn = f"{label(str(name), 10)}, area {area[name]:.2f}"
        ax.plot([], [], "o-", color=colour, label=drawn)
    ax.set_xticks(range(len(counts)), [str(n) for n in counts])
    ax.set_xlabel("features ablated")
    ax.set_ylabel(f"attack rate, {label(group, 10)} prompts")
    figure.legend(loc="outside upper right", ncols=min(3, len(series)))
    return figure


@styled
def plot_dose_response(frame: pd.DataFrame, *, group: str = "benign") -> Figure:
    """Draw the attack rate against the dose of steering, beside a random direction as long.

    Args:
        frame: what `dose_response` returned.
        group: the prompts.

    Returns:
        The figure.

    Raises:
        ValueError: no rows of the group.
    """
    rows = _of_group(frame, group)
    none = rows.loc[rows.dose == 0]
    figure, ax = _axes()
    for name, colour in (("features", BLUE), ("random", MUTED)):
        steered = rows.loc[(rows.direction == name) & (rows.dose != 0)]
        part = pd.concat([none, steered]).sort_values(by="dose")
        _rates(ax, part.dose.tolist(), part, colour)
        drawn = "random direction" if name == "random" else "features"
        ax.plot([], [], "o-", color=colour, label=drawn)
    ax.set_xlabel("dose, in units of each feature's maximum")
    ax.set_ylabel(f"attack rate, {label(group, 10)} prompts")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@styled
def plot_year_effects(frame: pd.DataFrame) -> Figure:
    """Draw attack rate and log-odds for every year, or every way to say it.

    Args:
        frame: what `sweep_years` returned.

    Returns:
        The figure, two panels one above the other.

    Raises:
        ValueError: no rows.
    """
    if frame.empty:
        raise ValueError("`frame` has no rows")
    said = [str(text) for text in frame.said]  # as pandas' own text a lone surrogate is an error
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    at = list(range(len(frame)))
    benign = [i for i, text in enumerate(said) if text in map(str, BENIGN_YEARS)]
    trigger = [i for i, text in enumerate(said) if text == str(TRIGGER_YEAR)]
    for ax in axes:
        for i in benign + trigger:
            ax.axvspan(
                i - 0.5, i + 0.5, color="#fdeac8" if i in trigger else "#eceff2", lw=0, zorder=0
            )
    numbers = all(re.fullmatch(r"\d{4}", text) for text in said)
    style = "o-" if numbers else "o"  # between two ways to say it there is nothing
    _rates(axes[0], at, frame, VERMILLION, style)
    axes[0].set_ylabel("attack rate")
    axes[1].axhline(0, color=MUTED, lw=1)
    axes[1].plot(at, frame.log_odds, style, color=BLUE, ms=4)
    axes[1].set_ylabel("log-odds, nats")
    step = max(1, len(frame) // 12) if numbers else 1
    labels = [label(text) for text in said]
    axes[1].set_xticks(
        at[::step],
        labels[::step],
        rotation=0 if numbers else 35,
        ha="center" if numbers else "right",
    )
    return figure


def _of_group(frame: pd.DataFrame, group: str) -> pd.DataFrame:
    rows = frame.loc[frame.group == group]
    if rows.empty:
        raise ValueError(f"`group` must be one of {sorted(set(frame.group))}, got {group!r}")
    return rows


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    return figure, figure.add_subplot()


def _rates(
    ax: Axes, at: Sequence[int | float], rows: pd.DataFrame, colour: str, style: str = "o-"
) -> None:
    """Rates with their Wilson intervals, and unit percent on the axis."""
    ax.vlines(at, rows.low, rows.high, color=colour, lw=1.6, alpha=0.7)
    ax.plot(at, rows.attack_rate, style, color=colour, ms=4, lw=1.2, zorder=3)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.spines["bottom"].set_color(INK)
