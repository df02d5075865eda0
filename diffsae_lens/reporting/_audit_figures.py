"""Figures of an audit: all residuals, and what the candidates do compared with others of their kind."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.auditing._results import AuditResults
from diffsae_lens.reporting._style import (
    BLUE,
    INK,
    MUTED,
    VERMILLION,
    WIDTH,
    Figure,
    label,
    styled,
)


@styled
@typed
def plot_residuals(results: AuditResults) -> Figure:
    """Draw the residuals of all texts, the largest first; flagged ones are coloured.

    Args:
        results: results of an audit.

    Returns:
        The figure. Ranks are on a logarithmic axis, which gives room to the few texts at the top.

    Raises:
        ValueError: there are no texts.
    """
    rows = sorted(results.texts, key=lambda row: -row.residual)
    if not rows:
        raise InvalidValueError("`results` has no rows in `texts`")
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    ax = figure.add_subplot()
    kinds = {
        "flagged": ([row.flagged for row in rows], VERMILLION, "o", 6),
        "not flagged": ([not row.flagged for row in rows], BLUE, "o", 3.5),
    }
    for name, (chosen, colour, marker, size) in kinds.items():
        points = [(i + 1, row.residual) for i, row in enumerate(rows) if chosen[i]]
        if points:
            ranks, values = zip(*points, strict=True)
            drawn = f"{name}, {len(points)} of {len(rows)}"
            ax.plot(ranks, values, marker, color=colour, ms=size, label=drawn)
    median = float(np.median([row.residual for row in rows]))
    ax.axhline(median, color=INK, lw=1, ls=(0, (5, 3)), label=f"median, {median:.1f}")
    ax.set_xscale("log")
    ax.set_xlim(0.8, 1.3 * len(rows))
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(min(0.0, 1.06 * rows[-1].residual), 1.08 * max(rows[0].residual, 0.01))
    ax.set_xlabel("text, in the order of its residual")
    ax.set_ylabel("residual, nats")
    figure.legend(loc="outside upper right", ncols=3)
    return figure


@styled
@typed
def plot_candidates(results: AuditResults) -> Figure:
    """Draw what each candidate does in held-out texts: its effect, and the share that it sets off.

    Args:
        results: results of an audit.

    Returns:
        The figure: on the left effects with 95% bootstrap intervals; on the right shares with exact 95%
        intervals, and open squares for others of the candidate's kind.

    Raises:
        ValueError: there are no candidates.
    """
    rows = results.candidates[::-1]
    if not rows:
        raise InvalidValueError("`results` has no rows in `candidates`")
    figure = Figure(figsize=(WIDTH, 1.3 + 0.42 * len(rows)), layout="constrained")
    effects, shares = figure.subplots(1, 2, sharey=True)
    at = range(len(rows))
    effects.hlines(at, [row.low for row in rows], [row.high for row in rows], color=BLUE, lw=1.8)
    effects.plot([row.effect for row in rows], at, "o", color=BLUE)
    effects.axvline(0, color=INK, lw=1)
    effects.set_xlabel("effect beside its like, nats")
    lows, highs = [row.share_low for row in rows], [row.share_high for row in rows]
    shares.hlines(at, lows, highs, color=BLUE, lw=1.8)
    shares.plot([row.share for row in rows], at, "o", color=BLUE)
    shares.plot([row.mates_share for row in rows], at, "s", color=MUTED, mfc="white", zorder=1)
    shares.set_xlim(-0.03, 1.03)
    shares.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    shares.set_xlabel("texts that are set off")
    effects.set_yticks(at, [label(row.name, 18) for row in rows])
    effects.set_ylim(-0.6, len(rows) - 0.4)
    for ax in (effects, shares):
        ax.grid(visible=True, axis="x")
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=BLUE, marker="o", label="with the candidate put in"),
        Line2D([], [], ls="", color=MUTED, marker="s", mfc="white", label="with its like instead"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure
