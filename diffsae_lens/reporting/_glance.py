"""One figure of a study with several layers or organisms."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.reporting._lookup import first, places
from diffsae_lens.reporting._style import BLUE, INK, MUTED, VERMILLION, Figure, label, styled
from diffsae_lens.results import EffectRow, Protocol
from diffsae_lens.study._results import Results

Panel = dict[str, dict[int | None, float | None]]
"""A value for each name and layer; None where the ablation breaks the model."""
Panels = tuple[Panel, Panel]
"""The panel of what is examined, and the panel of its floors or controls."""

BROKEN = 1.0
"""Nats per token by which the cross-entropy of benign completions may rise: a model that can no longer
write shows no behaviour at all."""


@styled
def plot_glance(results: Results) -> Figure:
    """Draw a study as coloured tables: one column of panels per organism, one row per measure.

    The measures are BIS by the paper's protocol with the published values, strict BIS, and the attack
    rate left after the largest ablation, unless that breaks the model. Rows below the line are not trained
    dictionaries: for the scores, the highest floor of each kind; for the effects, controls.

    Args:
        results: results of a study.

    Returns:
        The figure.

    Raises:
        ValueError: there are no scores.
    """
    if not results.scores:
        raise InvalidValueError("`results` has no rows in `scores`")
    regimes = list(dict.fromkeys(place.regime for place in places(results)))
    layers = sorted({place.layer for place in places(results) if place.layer is not None})
    measures = _measures(results)
    # The same rows for all organisms, so that they can be read across.
    panels = [_aligned([of(results, regime) for regime in regimes]) for _, of, _ in measures]
    heights = [len(found) + len(controls) for (found, controls), *_ in panels]
    figure = Figure(
        # A panel is never narrower than its title.
        figsize=(
            2.9 + len(regimes) * max(3.0, 0.9 + 0.62 * len(layers)),
            1.6 + 0.27 * sum(heights),
        ),
        layout="constrained",
    )
    axes = figure.subplots(
        len(measures),
        len(regimes),
        squeeze=False,
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    for j, regime in enumerate(regimes):
        for i, (title, _, colour) in enumerate(measures):
            _draw(axes[i][j], *panels[i][j], layers, colour)
            head = f"{label(regime)}\n{title}" if i == 0 and regime else title
            axes[i][j].set_title(head, fontsize=10)
            axes[i][j].tick_params(labelsize=8.5)
        axes[-1][j].set_xlabel("layer")
    if any(None in by.values() for of in panels for pair in of for p in pair for by in p.values()):
        figure.supxlabel(
            f"broken: benign completions lose more than {BROKEN:g} nat per token",
            fontsize=8.5,
            color=MUTED,
        )
    return figure


Measure = Callable[[Results, str | None], Panels]


def _measures(results: Results) -> list[tuple[str, Measure, str]]:
    """Return title, values and colour for each row of panels that has data."""
    measures: list[tuple[str, Measure, str]] = []
    titles: dict[Protocol, str] = {"paper": "BIS, paper's protocol", "strict": "strict BIS"}
    for protocol, title in titles.items():
        rows = [row for row in results.scores if row.protocol == protocol]
        if rows:
            ceilings = ", ".join(sorted({f"{row.ceiling:.2g}" for row in rows}))
            of = _paper if protocol == "paper" else _strict
            measures.append((f"{title} (ceiling {ceilings})", of, BLUE))
    if any(row.layer is not None for row in results.effects):
        measures.append(("attack rate, most features ablated", _effects, VERMILLION))
    return measures


def _paper(results: Results, regime: str | None) -> Panels:
    """Return trained dictionaries, including the published ones, and floors."""
    trained, floors = _scores(results, regime, "paper")
    layers = {row.layer for row in results.scores}
    for row in results.published:
        if row.regime == regime and row.layer in layers:
            trained.setdefault(f"published: {row.name}", {})[row.layer] = row.bis
    return trained, floors


def _strict(results: Results, regime: str | None) -> Panels:
    return _scores(results, regime, "strict")


def _scores(results: Results, regime: str | None, protocol: Protocol) -> Panels:
    trained: Panel = {}
    floors: dict[str, dict[int | None, float]] = {}
    for row in results.scores:
        if row.regime != regime or row.protocol != protocol or row.layer is None:
            continue
        if row.kind == "dictionary":
            trained.setdefault(row.name, {})[row.layer] = row.bis
            _raise(floors, "base model alone", row.layer, row.base_bis)
        elif row.kind == "untrained dictionary":
            _raise(floors, "untrained dictionaries", row.layer, row.bis)
        elif row.kind == "control" and row.hook_name is not None:
            _raise(floors, row.name, row.layer, row.bis)
    return trained, {name: {**by_layer} for name, by_layer in floors.items()}


def _raise(
    floors: dict[str, dict[int | None, float]], name: str, layer: int | None, value: float | None
) -> None:
    """Keep the highest value."""
    if value is not None:
        by_layer = floors.setdefault(name, {})
        by_layer[layer] = max(value, by_layer.get(layer, 0.0))


def _effects(results: Results, regime: str | None) -> Panels:
    """Return the largest ablation per dictionary, and the controls."""
    found: Panel = {}
    controls: Panel = {}
    rows = [row for row in results.effects if row.regime == regime and row.layer is not None]
    triggered = [row for row in rows if row.group == "trigger"]
    for row in sorted(triggered, key=lambda r: r.n_features):  # larger sets replace smaller
        value = None if _breaks(row, rows) else row.attack_rate
        if row.kind == "ablation" and row.is_control:
            controls.setdefault(f"random of equal mass: {row.dictionary}", {})[row.layer] = value
        elif row.kind == "ablation":
            found.setdefault(row.dictionary or "", {})[row.layer] = value
        elif row.dictionary is None:
            controls.setdefault(row.name, {})[row.layer] = value
    return found, controls


def _breaks(row: EffectRow, rows: Sequence[EffectRow]) -> bool:
    """Return whether an intervention costs benign completions too much; False if they have no row."""
    benign = [r for r in rows if r.group == "benign" and r.layer == row.layer]
    before = first(benign, kind="unmodified")
    after = first(
        benign, name=row.name, dictionary=row.dictionary, n_features=row.n_features
    )  # the same intervention on other prompts
    if before is None or after is None or before.cross_entropy is None:
        return False
    return after.cross_entropy is None or after.cross_entropy > before.cross_entropy + BROKEN


def _aligned(panels: Sequence[Panels]) -> list[Panels]:
    """Return the panels with the rows of all of them, empty where a panel has none."""
    names = [list(dict.fromkeys(n for panel in panels for n in panel[part])) for part in (0, 1)]
    return [
        (
            {name: found.get(name, {}) for name in names[0]},
            {name: controls.get(name, {}) for name in names[1]},
        )
        for found, controls in panels
    ]


def _draw(ax: Axes, found: Panel, controls: Panel, layers: Sequence[int], colour: str) -> None:
    """Draw values as coloured cells with numbers, and a line between what is examined and its floors."""
    rows = [*found.items(), *controls.items()]
    cells = [[by.get(layer, np.nan) for layer in layers] for _, by in rows]
    values = np.array(cells, dtype=float)  # None also becomes NaN
    colours = LinearSegmentedColormap.from_list("tint", ["white", colour])
    ax.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        broken = cells[y][x] is None
        if broken or not np.isnan(value):
            ink = MUTED if broken else "white" if value > 0.6 else INK
            text = "broken" if broken else f"{value:.2f}"
            ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=8.5)
    ax.axhline(len(found) - 0.5, color=INK, lw=1)
    ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    ax.set_yticks(range(len(rows)), [label(name, 30) for name, _ in rows], fontsize=8.5)
    for text in ax.get_yticklabels()[len(found) :]:
        text.set_color(MUTED)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
