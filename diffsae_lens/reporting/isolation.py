"""The forest plot of an isolation table."""

import pandas as pd

from diffsae_lens.isolation.table import IsolationTable
from diffsae_lens.reporting.style import (
    INK,
    MUTED,
    WIDTH,
    Figure,
    dictionary_colour,
    label,
    styled,
)


@styled
def plot_isolation(table: IsolationTable) -> Figure:
    """Draw every row's score with its interval, the base model's own score, floor and ceiling.

    Filled dots are scores on the pair, open ones the same procedure on the base model alone: where
    the two lie together, the text is detected and not the fine-tuning. The dashed line is the
    ceiling, the dotted one the best random direction.

    Args:
        table: what `evaluate_isolation` returned.

    Returns:
        The figure.
    """
    frame = table.to_frame().iloc[::-1].reset_index(drop=True).replace({"hook_name": {None: ""}})
    figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(frame)), layout="constrained")
    ax = figure.add_subplot()
    for y, row in frame.iterrows():
        colour = dictionary_colour(row["name"]) if row.kind == "dictionary" else MUTED
        ax.plot([row.low, row.high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        ax.plot(row.bis, y, "o", color=colour)
        if "bis_min" in frame:
            ax.plot([row.bis_min, row.bis_max], [y, y], "|", color=colour, ms=9)
        if row.base_bis is not None:
            ax.plot(row.base_bis, y, "o", mfc="white", mec=colour, zorder=1)
    ceiling = frame.ceiling.max()
    floor = frame.loc[frame["name"] == "random directions", "bis"].max()
    ax.axvline(ceiling, color=INK, lw=1, ls=(0, (5, 3)), label=f"ceiling {ceiling:.2f}")
    ax.axvline(floor, color=MUTED, lw=1, ls=":", label=f"best random direction {floor:.2f}")
    ax.plot([], [], "o", mfc="white", mec=MUTED, label="base model alone")
    figure.legend(loc="outside upper right", ncols=3)
    ax.set_ylim(-0.7, len(frame) - 0.3)
    ax.set_xlim(-0.02, ceiling + 0.02)
    ax.set_yticks(range(len(frame)), [_label(row) for row in frame.itertuples()])
    ax.grid(visible=True, axis="x")
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("strict BIS" if table.protocol == "strict" else "BIS, by the paper's protocol")
    return figure


def _label(row: object) -> str:
    hook = getattr(row, "hook_name", "").replace(".hook_resid_post", "")
    name = getattr(row, "name", "")
    n_seeds, seed = getattr(row, "n_seeds", 1), getattr(row, "seed", None)
    if n_seeds > 1:
        name += f", mean of {n_seeds} seeds"
    elif seed is not None and not pd.isna(seed):
        name += f", seed {seed:.0f}"
    return label(f"{name}  {hook}" if hook else str(name), 30)
