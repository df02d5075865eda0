"""Figure of a layer sweep: what is left of a behaviour once a layer's activation is the base's."""

from matplotlib.ticker import MaxNLocator

from diffsae_lens._checks import check_choice, check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.reporting._style import BLUE, INK, MUTED, WIDTH, Figure, label, styled
from diffsae_lens.results import LayerRow, Table


@styled
@typed
def plot_layers(table: Table[LayerRow], *, group: str = "trigger") -> Figure:
    """Draw log-odds against the layer whose activation is put back, between those of the two models.

    Args:
        table: what `layer_sweep` returned.
        group: the prompts.

    Returns:
        The figure: one line for the base's activation, a grey one for its control, with 95% intervals,
        and a horizontal line for each model as it is.

    Raises:
        ValueError: no rows of the group, or none of a layer.
    """
    rows = check_items("table", table, LayerRow)
    check_choice("group", group, dict.fromkeys(row.group for row in rows))
    rows = [row for row in rows if row.group == group]
    if all(row.layer is None for row in rows):
        raise InvalidValueError("`table` has no rows of layers; sweep sites inside the blocks")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    ax = figure.add_subplot()
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
