"""The study in one figure, and its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from diffsae_lens._artifact import write_bytes, write_text
from diffsae_lens.reporting.html import embedded_image, render, write_html
from diffsae_lens.reporting.style import BLUE, INK, MUTED, VERMILLION, Figure, label, png, styled
from diffsae_lens.study.tables import study_markdown, study_tables

Panel = dict[str, dict[int, float | None]]
"""A value for each name and layer; None where the ablation breaks the model."""

BROKEN = 1.0
"""Nats a token by which the cross-entropy of benign completions may rise: a model that has lost its
language attacks on nothing."""

_FLOORS = ("random directions", "difference of means", "principal components")


@styled
def plot_study(results: Mapping[str, Any]) -> Figure:
    """Draw the study as tables of colour: a column of panels a regime, a row a measure.

    BIS by the paper's protocol with the published values, strict BIS, and the attack rate that is
    left once the most features are ablated, unless that breaks the model. What is not a trained
    dictionary stands below the line: floors for the scores, the highest of each sort; controls for
    the causes.

    Args:
        results: what `reproduce` returned.

    Returns:
        The figure.

    Raises:
        ValueError: no rows.
    """
    regimes = list(dict.fromkeys(row["regime"] for row in results["paper"]))
    if not regimes:
        raise ValueError("`results` has no rows in 'paper'; pass what `reproduce` returned")
    layers = _layers(results)
    measures = (_scores, _strict, _causes)
    # The same lines in all regimes, so that they can be read across.
    panels = [_aligned([measure(results, regime) for regime in regimes]) for measure in measures]
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
        3, len(regimes), squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    titles = (
        f"BIS, paper's protocol (ceiling {_ceiling(results['paper'])})",
        f"strict BIS (ceiling {_ceiling(results['strict'])})",
        "attack rate, most features ablated",
    )
    figure.supxlabel(
        f"broken: benign completions lose more than {BROKEN:g} nat a token",
        fontsize=8.5,
        color=MUTED,
    )
    colours = (BLUE, BLUE, VERMILLION)
    for j, regime in enumerate(regimes):
        for i, (title, colour) in enumerate(zip(titles, colours, strict=True)):
            _draw(axes[i][j], *panels[i][j], layers, colour)
            axes[i][j].set_title(f"{label(regime)}\n{title}" if i == 0 else title, fontsize=10)
            axes[i][j].tick_params(labelsize=8.5)
        axes[-1][j].set_xlabel("layer")
    return figure


def write_study(results: Mapping[str, Any], path: Path) -> list[Path]:
    """Write `study.png`, `study.md` and `report.html`, and return them.

    Raises:
        ValueError: no rows; nothing is written then.
        OSError: a file cannot be written; none is left half-written.
    """
    picture, text = path / "study.png", path / "study.md"
    figure, tables = plot_study(results), study_markdown(results)
    path.mkdir(parents=True, exist_ok=True)
    write_bytes(picture, png(figure))
    write_text(text, tables)
    context = {key: results[key] for key in ("config", "deviations", "cells")}
    context |= {"figure": embedded_image(figure), "tables": study_tables(results)}
    return [picture, text, write_html(render("study.html.jinja", context), path / "report.html")]


def _scores(results: Mapping[str, Any], regime: str) -> tuple[Panel, Panel]:
    """Trained dictionaries with the published ones, and floors."""
    trained, floors = _split(results["paper"], regime)
    for row in results["published"]:
        if row["regime"] == regime and row["layer"] in _layers(results):
            trained.setdefault(f"published: {row['name']}", {})[row["layer"]] = row["bis"]
    return trained, floors


def _strict(results: Mapping[str, Any], regime: str) -> tuple[Panel, Panel]:
    return _split(results["strict"], regime)


def _split(rows: Sequence[Mapping[str, Any]], regime: str) -> tuple[Panel, Panel]:
    trained: Panel = {}
    floors: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["regime"] != regime:
            continue
        if row["kind"] == "dictionary":
            trained.setdefault(row["name"], {})[row["layer"]] = row["bis"]
            _raise(floors, "base model alone", row["layer"], row["base_bis"])
        elif row["kind"] == "untrained dictionary":
            _raise(floors, "untrained dictionaries", row["layer"], row["bis"])
        elif row["name"] in _FLOORS:
            _raise(floors, row["name"], row["layer"], row["bis"])
    return trained, {name: {**by_layer} for name, by_layer in floors.items()}


def _raise(floors: dict[str, dict[int, float]], name: str, layer: int, value: float | None) -> None:
    """Keep the highest."""
    if value is not None:
        by_layer = floors.setdefault(name, {})
        by_layer[layer] = max(value, by_layer.get(layer, 0.0))


def _causes(results: Mapping[str, Any], regime: str) -> tuple[Panel, Panel]:
    """By dictionary its largest ablation, and the controls."""
    found: Panel = {}
    controls: Panel = {}
    rows = [row for row in results["causes"] if row["regime"] == regime]
    harm = {
        (row["name"], row["layer"]): row["cross_entropy"]
        for row in rows
        if row["group"] == "benign"
    }
    triggered = [row for row in rows if row["group"] == "trigger"]
    for row in sorted(triggered, key=lambda r: r["n_features"]):  # larger sets replace smaller
        layer, rate = row["layer"], row["attack_rate"]
        whole = harm[row["name"], layer] <= harm["unmodified", layer] + BROKEN
        value = rate if whole else None
        if row["dictionary"] is None:
            controls.setdefault(row["name"], {})[layer] = value
        elif row["is_control"]:
            controls.setdefault(f"random of equal mass: {row['dictionary']}", {})[layer] = value
        else:
            found.setdefault(row["dictionary"], {})[layer] = value
    return found, controls


def _ceiling(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({f"{row['ceiling']:.2g}" for row in rows}))


def _layers(results: Mapping[str, Any]) -> list[int]:
    return sorted({row["layer"] for row in results["paper"]})


def _aligned(panels: Sequence[tuple[Panel, Panel]]) -> list[tuple[Panel, Panel]]:
    """The panels with the lines of all of them, empty where one has none."""
    names = [list(dict.fromkeys(n for panel in panels for n in panel[part])) for part in (0, 1)]
    return [
        (
            {name: found.get(name, {}) for name in names[0]},
            {name: controls.get(name, {}) for name in names[1]},
        )
        for found, controls in panels
    ]


def _draw(ax: Axes, found: Panel, controls: Panel, layers: Sequence[int], colour: str) -> None:
    """Values as coloured cells with their numbers; a line between what is examined and its floors."""
    rows = {**found, **controls}
    cells = [[by.get(layer, np.nan) for layer in layers] for by in rows.values()]
    values = np.array(cells, dtype=float)  # None is no number either
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
    ax.set_yticks(range(len(rows)), [label(name, 30) for name in rows], fontsize=8.5)
    for text in ax.get_yticklabels()[len(found) :]:
        text.set_color(MUTED)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
