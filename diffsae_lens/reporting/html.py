"""The report of a run: one HTML file that needs no network, no fonts and no JavaScript."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diffsae_lens._artifact import write_bytes, write_text
from diffsae_lens._display import cut, visible
from diffsae_lens.organisms.behaviour import BEHAVIOURS, get_behaviour
from diffsae_lens.reporting.coloured import card_context, coloured_prompts
from diffsae_lens.reporting.columns import outcome_text
from diffsae_lens.reporting.figures import figures_of
from diffsae_lens.reporting.lookup import places, said_text, words_of
from diffsae_lens.reporting.sections import grid_of, place_section
from diffsae_lens.reporting.style import dictionary_colours, png
from diffsae_lens.reporting.summary import summarise
from diffsae_lens.reporting.tables import results_markdown, results_tables
from diffsae_lens.results import EffectRow, SweepRow
from diffsae_lens.study.results import Results


def write_report(results: Results, path: Path, *, command: str | None = None) -> list[Path]:
    """Write `report.html`, `tables.md` and the figures as PNG files of 1800 pixels' width.

    Args:
        results: of a run.
        path: a folder, made where it is missing. Files are written under another name and renamed, so
            that none is found there half-written.
        command: what ran it, to be shown as the way to run it again.

    Returns:
        The files, the report first.

    Raises:
        ValueError: `results` contradict themselves; nothing is written then.
        OSError: a file cannot be written.
    """
    figures = {name: png(draw()) for name, draw in figures_of(results).items()}
    page, tables = (
        render_report(results, figures=figures, command=command),
        results_markdown(results),
    )
    files = [path / "report.html", path / "tables.md"]
    path.mkdir(parents=True, exist_ok=True)
    for name, data in figures.items():
        (path / "figures").mkdir(exist_ok=True)
        files.append(path / "figures" / f"{name}.png")
        write_bytes(files[-1], data)
    write_text(files[1], tables)
    write_text(files[0], page)
    return files


def render_report(
    results: Results, *, figures: Mapping[str, bytes] | None = None, command: str | None = None
) -> str:
    """Return the report as HTML.

    Args:
        results: of a run.
        figures: PNG files by name; drawn anew if left out.
        command: see `write_report`.

    Returns:
        A whole document.

    Raises:
        ValueError: `results` contradict themselves.
    """
    if figures is None:
        figures = {name: png(draw()) for name, draw in figures_of(results).items()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffsae_lens.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(_context(results) | {"figures": _images(figures), "command": command})


def _shown(value: object) -> object:
    """A value on its way into a page; what the templates themselves made passes."""
    return value if isinstance(value, Markup) else visible(cut(str(value)))


def _images(figures: Mapping[str, bytes]) -> dict[str, Markup]:
    """Pictures as addresses that hold them; these are ours and of any length."""
    return {
        name: Markup("data:image/png;base64," + base64.b64encode(data).decode())
        for name, data in figures.items()
    }


def _context(results: Results) -> dict[str, Any]:
    where = places(results)
    sections = [place_section(results, place) for place in where]
    findings = summarise(results)
    return {
        "base": results.config.get("base", "the base model"),
        "words": words_of(results),
        "groups": _groups(results),
        "outcomes": _outcomes(results.effects),
        "findings": [*sections[0].findings, *findings] if len(where) == 1 else findings,
        "places": sections,
        "tables": results_tables(results),
        "side_effects": grid_of("", results.side_effects, lambda row: row.dictionary or ""),
        "cards": [
            card_context(card, dictionary_colours(results.dictionaries)) for card in results.cards
        ],
        "sweep_captions": _sweep_captions(results.sweep),
        "coloured": coloured_prompts(results) if results.example.get("prompts") else [],
        "trained": grid_of("", results.dictionaries),
        "config": _flat(results.config),
        "versions": results.versions,
        "deviations": results.deviations,
        "cells": results.cells,
    }


def _groups(results: Results) -> dict[str, str]:
    """What the groups of prompts are, as far as it is known."""
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


def _sweep_captions(rows: Sequence[SweepRow]) -> list[str]:
    """For each dictionary the mean for the trigger, and the highest for anything else."""
    captions = []
    for name in dict.fromkeys(row.dictionary for row in rows):
        of_name = [row for row in rows if row.dictionary == name]
        at = [row for row in of_name if row.group == "trigger"]
        others = [row for row in of_name if row.group != "trigger"]
        parts = [f"{row.mean:.3g} on average for {said_text(row.said)}" for row in at]
        if others:
            highest = max(others, key=lambda row: row.mean)
            parts.append(
                f"at most {highest.mean:.3g} for anything else ({said_text(highest.said)})"
            )
        captions.append(f"{name} reads {' and '.join(parts)}.")
    return captions


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings with their path as name."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif (
            isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value)
        ):
            flat |= _flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{name}"] = ", ".join(map(str, value))
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
