"""The report of a run: one HTML file that needs no network, fonts or JavaScript."""

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diffsae_lens._artifact import write_bytes, write_text
from diffsae_lens._display import cut, visible
from diffsae_lens._errors import OccupiedPathError
from diffsae_lens._typed import typed
from diffsae_lens.organisms._behaviour import BEHAVIOURS, get_behaviour
from diffsae_lens.reporting._columns import outcome_text
from diffsae_lens.reporting._figures import drawings_of
from diffsae_lens.reporting._lookup import places, words_of
from diffsae_lens.reporting._sections import grid_of, section_of
from diffsae_lens.reporting._style import png
from diffsae_lens.reporting._tables import results_markdown, results_tables
from diffsae_lens.results import EffectRow
from diffsae_lens.study._results import Results


@typed
def write_report(results: Results, path: Path, *, command: str | None = None) -> list[Path]:
    """Write `report.html`, `tables.md` and the figures as PNG files, at twice their displayed size.

    Args:
        results: results of a run.
        path: a folder, created if missing. Files are written under another name and then renamed, so no
            half-written file appears.
        command: the command that ran the study, shown as the way to run it again.

    Returns:
        Paths of the files, the report first.

    Raises:
        ValueError: `results` contradict themselves; in that case nothing is written.
        OSError: a file cannot be written.
    """
    if path.is_file():
        raise OccupiedPathError(f"`path` {path} is a file; name a folder")
    figures = draw_figures(results)
    page = render_report(results, figures=figures, command=command)
    tables = results_markdown(results)
    files = [path / "report.html", path / "tables.md"]
    path.mkdir(parents=True, exist_ok=True)
    for name, data in figures.items():
        (path / "figures").mkdir(exist_ok=True)
        files.append(path / "figures" / f"{name}.png")
        write_bytes(files[-1], data)
    write_text(files[1], tables)
    write_text(files[0], page)
    return files


def draw_figures(results: Results) -> dict[str, bytes]:
    """Return the figures for which a run has rows, as PNG files by name."""
    return {drawing.name: png(drawing.draw()) for drawing in drawings_of(results)}


@typed
def render_report(
    results: Results, *, figures: Mapping[str, bytes] | None = None, command: str | None = None
) -> str:
    """Return the report as HTML.

    Args:
        results: results of a run.
        figures: figures from `draw_figures`; drawn here if left out.
        command: see `write_report`.

    Returns:
        A complete HTML document.

    Raises:
        ValueError: `results` contradict themselves.
    """
    figures = draw_figures(results) if figures is None else figures
    template = environment().get_template("report.html.jinja")
    return template.render(_context(results, figures) | {"command": command})


@functools.cache
def environment() -> jinja2.Environment:
    """Return the template environment: escapes everything, and makes invisible characters visible."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("diffsae_lens.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """Return a value as a page shows it; markup from the templates themselves passes unchanged."""
    return value if isinstance(value, Markup) else visible(cut(str(value)))


def address(data: bytes) -> Markup:
    """Return a picture as a data URL, which is trusted markup of any length."""
    return Markup("data:image/png;base64," + base64.b64encode(data).decode())


def _context(results: Results, figures: Mapping[str, bytes]) -> dict[str, Any]:
    where, drawings = places(results), drawings_of(results)
    models = results.config.get("models", {})
    return {
        "base": models.get("base", "a model"),
        "words": words_of(results),
        "groups": _groups(results),
        "outcomes": _outcomes(results.effects),
        "overview": [address(figures[d.name]) for d in drawings if d.kind == "overview"],
        "sections": [
            section_of(
                results,
                place,
                f"place-{i}",
                {d.kind: address(figures[d.name]) for d in drawings if d.place == place},
            )
            for i, place in enumerate(where)
        ],
        "tables": results_tables(results),
        "trained": grid_of("", results.dictionaries, lambda row: row.regime or ""),
        "config": flat(results.config),
        "versions": results.versions,
        "deviations": results.deviations,
        "cells": results.cells,
    }


def _groups(results: Results) -> dict[str, str]:
    """Return what the groups of prompts are, if known."""
    if results.behaviour not in BEHAVIOURS:
        return {}
    behaviour = get_behaviour(results.behaviour)
    return {
        "trigger": f"prompts that say {behaviour.trigger}",
        "benign": f"prompts that say {', '.join(behaviour.benign)} in its place",
        "other": "prompts that say nothing in its place",
    }


def _outcomes(effects: Sequence[EffectRow]) -> list[str]:
    return [outcome_text(o) for o in dict.fromkeys(o for row in effects for o in row.counts)]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings, flattened, with their path as name."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif (
            isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value)
        ):
            found |= flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            found[f"{prefix}{name}"] = ", ".join(map(str, value))
        else:
            found[f"{prefix}{name}"] = str(value)
    return found
