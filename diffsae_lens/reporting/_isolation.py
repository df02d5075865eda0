"""The forest plot of an isolation table."""

from collections.abc import Sequence
from itertools import cycle

from diffsae_lens._typed import typed
from diffsae_lens.isolation._table import IsolationTable
from diffsae_lens.reporting._style import INK, MUTED, SERIES, WIDTH, Figure, label, styled
from diffsae_lens.results import ScoreRow


@styled
@typed
def plot_isolation(table: IsolationTable) -> Figure:
    """Draw every row's score with its interval, the base model's own score, floor and ceiling.

    Filled dots are scores on the pair, open dots the same procedure on the base model alone: where the
    two coincide, the score detects the text and not the fine-tuning. The dashed line is the ceiling, the
    dotted line the best floor: untrained dictionaries, random directions, principal components.

    Args:
        table: the table from `evaluate_isolation`.

    Returns:
        The figure.
    """
    rows: Sequence[ScoreRow] = list(reversed(table.rows))
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(rows)), layout="constrained")
    ax = figure.add_subplot()
    trained = list(dict.fromkeys(row.name for row in table.rows if row.kind == "dictionary"))
    colours = dict(zip(trained, cycle(SERIES), strict=False))
    for y, row in enumerate(rows):
        colour = colours[row.name] if row.kind == "dictionary" else MUTED
        if row.low is not None and row.high is not None:
            ax.plot([row.low, row.high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        ax.plot(row.bis, y, "o", color=colour)
        if row.bis_min is not None and row.bis_max is not None:
            ax.plot([row.bis_min, row.bis_max], [y, y], "|", color=colour, ms=9)
        if row.base_bis is not None:
            ax.plot(row.base_bis, y, "o", mfc="white", mec=colour, zorder=1)
    ceiling = max(row.ceiling for row in rows)
    ax.axvline(ceiling, color=INK, lw=1, ls=(0, (5, 3)), label=f"ceiling {ceiling:.2f}")
    floors = [row.bis for row in rows if row.is_floor]
    if floors:
        ax.axvline(max(floors), color=MUTED, lw=1, ls=":", label=f"best floor {max(floors):.2f}")
    ax.plot([], [], "o", mfc="white", mec=MUTED, label="base model alone")
    figure.legend(loc="outside upper right", ncols=3)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.set_xlim(-0.02, ceiling + 0.02)
    ax.set_yticks(range(len(rows)), [_label(row) for row in rows])
    ax.grid(visible=True, axis="x")
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("strict BIS" if rows[0].protocol == "strict" else "BIS, by the paper's protocol")
    return figure


def _label(row: ScoreRow) -> str:
    hook = (row.hook_name or "").replace(".hook_resid_post", "")
    seed = "" if row.seed is None else f", seed {row.seed}"
    if row.n_seeds > 1:
        seed = f", mean of {row.n_seeds} seeds"
    return label(f"{row.name}{seed}  {hook}".rstrip(), 30)
