"""Figures of what interventions do: curves over features, doses, layers and what prompts say."""

from collections.abc import Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from diffsae_lens._checks import check_choice, check_items, check_texts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.effects._curves import curve_area
from diffsae_lens.reporting._said import SaidAxis
from diffsae_lens.reporting._style import (
    BLUE,
    INK,
    MUTED,
    SERIES,
    VERMILLION,
    WIDTH,
    Figure,
    label,
    styled,
)
from diffsae_lens.results import CurveRow, DoseRow, EffectRow, LayerRow, SayingRow, Table

R = TypeVar("R", bound=EffectRow | LayerRow)


@styled
@typed
def plot_ablation_curve(
    curve: Table[CurveRow], *, group: str = "trigger", controls: Sequence[str] = ()
) -> Figure:
    """Draw the attack rate against the number of features ablated, one line per order.

    Args:
        curve: the table from `ablation_curve`.
        group: the group of prompts.
        controls: orders to draw in grey, such as random ones.

    Returns:
        The figure; the legend gives each curve's area.

    Raises:
        ValueError: the group has no rows, or an order does not exist.
    """
    controls = check_texts("controls", controls, allow_empty=True)
    rows = _of_group("curve", curve, CurveRow, group)
    area = curve_area(curve, group=group)
    unknown = [name for name in controls if name not in area]
    if unknown:
        raise InvalidValueError(
            f"`controls` must be some of the orders {list(area)}, got {unknown}"
        )
    figure, ax = _axes()
    at = {n: i for i, n in enumerate(sorted({row.n_features for row in rows}))}
    for i, name in enumerate(area):
        part = [row for row in rows if row.order == name]
        colour = MUTED if name in controls else SERIES[i % len(SERIES)]
        shift = 0.04 * (i - (len(area) - 1) / 2)
        _rates(ax, [at[row.n_features] + shift for row in part], part, colour)
        ax.plot([], [], "o-", color=colour, label=f"{label(name, 10)}, area {area[name]:.2f}")
    ax.set_xticks(range(len(at)), [str(n) for n in at])
    ax.set_xlabel("features ablated")
    ax.set_ylabel(f"attack rate, {label(group, 10)} prompts")
    figure.legend(loc="outside upper right", ncols=min(3, len(area)))
    return figure


@styled
@typed
def plot_dose_response(table: Table[DoseRow], *, group: str = "benign") -> Figure:
    """Draw the attack rate against the steering dose, with a random direction of the same length.

    Args:
        table: the table from `dose_response`.
        group: the group of prompts.

    Returns:
        The figure.

    Raises:
        ValueError: the group has no rows.
    """
    rows = sorted(_of_group("table", table, DoseRow, group), key=lambda row: row.dose)
    figure, ax = _axes()
    for direction, colour, drawn in (
        ("features", BLUE, "features"),
        ("random", MUTED, "random direction"),
    ):
        part = [row for row in rows if row.dose == 0 or row.direction == direction]
        _rates(ax, [row.dose for row in part], part, colour)
        ax.plot([], [], "o-", color=colour, label=drawn)
    ax.set_xlabel("dose, in units of each feature's maximum")
    ax.set_ylabel(f"attack rate, {label(group, 10)} prompts")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@styled
@typed
def plot_sayings(table: Table[SayingRow], *, said: str = "what the prompt says") -> Figure:
    """Draw attack rate and log-odds for each phrase in the trigger's place.

    Args:
        table: the table from `sweep_trigger`.
        said: label of the axis.

    Returns:
        The figure, with two panels one above the other; trigger and benign are shaded.

    Raises:
        ValueError: there are no rows.
    """
    check_items("table", table, SayingRow, allow_empty=True)
    if not len(table):
        raise InvalidValueError("`table` has no rows")
    axis = SaidAxis({row.said: row.group for row in table})
    by_said = {row.said: row for row in table}
    rows = [by_said[text] for text in axis.order(by_said)]
    at = [axis.at[row.said] for row in rows]
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for ax in axes:
        axis.draw(ax)
    _rates(axes[0], at, rows, VERMILLION, axis.marker)
    axes[0].set_ylabel("attack rate")
    axes[1].axhline(0, color=MUTED, lw=1)
    log_odds = [float("nan") if row.log_odds is None else row.log_odds for row in rows]
    axes[1].plot(at, log_odds, axis.marker, color=BLUE, ms=4)
    axes[1].set_ylabel("log-odds, nats")
    axes[1].set_xlabel(label(said))
    handles = axis.legend()
    if handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure


@styled
@typed
def plot_layers(table: Table[LayerRow], *, group: str = "trigger") -> Figure:
    """Draw log-odds against the layer whose activation is put back, with those of the two models.

    Args:
        table: the table from `layer_sweep`.
        group: the group of prompts.

    Returns:
        The figure: one line for the base's activation, a grey one for its control, with 95% intervals,
        and a horizontal line for each unmodified model.

    Raises:
        ValueError: the group has no rows, or none of them has a layer.
    """
    rows = _of_group("table", table, LayerRow, group)
    if all(row.layer is None for row in rows):
        raise InvalidValueError("`table` has no rows of layers; sweep sites inside the blocks")
    figure, ax = _axes()
    for kind, style, said in (
        ("unmodified", "-", "fine-tuned model, unmodified"),
        ("base model", "--", "base model"),
    ):
        for row in rows:
            if row.kind == kind:
                ax.axhline(row.log_odds, color=INK, lw=1.2, ls=style, label=said)
    for kind, colour, said in (
        ("random change", MUTED, "random change of equal length"),
        ("swap to base", BLUE, "base's activation put back"),
    ):
        part = sorted(
            (row for row in rows if row.kind == kind and row.layer is not None),
            key=lambda row: row.layer or 0,
        )
        at = [row.layer or 0 for row in part]
        ax.plot(at, [row.log_odds for row in part], "o-", color=colour, ms=4, label=said)
        lows = [row.log_odds if row.log_odds_low is None else row.log_odds_low for row in part]
        highs = [row.log_odds if row.log_odds_high is None else row.log_odds_high for row in part]
        ax.vlines(at, lows, highs, color=colour, lw=1.6, alpha=0.7)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel(f"log-odds, {label(group, 10)} prompts, nats")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _of_group(name: str, table: Table[R], kind: type[R], group: str) -> list[R]:
    rows = check_items(name, table, kind)
    check_choice("group", group, dict.fromkeys(row.group for row in rows))
    return [row for row in rows if row.group == group]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    return figure, figure.add_subplot()


def _rates(
    ax: Axes,
    at: Sequence[int | float],
    rows: Sequence[EffectRow] | Sequence[SayingRow],
    colour: str,
    style: str = "o-",
) -> None:
    """Draw rates with their Wilson intervals, on an axis in percent."""
    lows, highs = [row.low for row in rows], [row.high for row in rows]
    ax.vlines(at, lows, highs, color=colour, lw=1.6, alpha=0.7)
    ax.plot(at, [row.attack_rate for row in rows], style, color=colour, ms=4, lw=1.2, zorder=3)
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.spines["bottom"].set_color(INK)
