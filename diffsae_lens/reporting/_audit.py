"""The report of an audit: a page for readers who do not know the method, with tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffsae_lens._artifact import write_bytes, write_text
from diffsae_lens._display import cut
from diffsae_lens._errors import OccupiedPathError
from diffsae_lens._typed import typed
from diffsae_lens.auditing._results import AuditResults, TextRow
from diffsae_lens.auditing._words import pattern
from diffsae_lens.reporting._audit_figures import plot_candidates, plot_residuals
from diffsae_lens.reporting._audit_words import (
    candidate_table,
    not_searched,
    p_text,
    verdict_of,
    writes_table,
)
from diffsae_lens.reporting._html import address, environment, flat
from diffsae_lens.reporting._style import png
from diffsae_lens.reporting._summary import Finding
from diffsae_lens.reporting._tables import TextTable, table_markdown

Segments = list[tuple[str, bool]]
"""Parts of a text, each with whether it is marked."""

_SHOWN = 1_500
"""Maximum number of characters of a text in a table."""
_PER_GROUP = 12
_N_ORDINARY = 3


@dataclass(frozen=True, kw_only=True)
class TextLine:
    """A text as the report shows it."""

    segments: Segments
    written: str
    cells: tuple[str, ...]
    """Residual, level and p-value."""


@dataclass(frozen=True, kw_only=True)
class TextGroup:
    """Texts with similar completions."""

    title: str
    lines: list[TextLine]
    n_more: int
    """Number of texts of the group that are left out."""
    is_muted: bool = False
    """Whether the texts are only for comparison."""


@typed
def write_audit_report(
    results: AuditResults, path: Path, *, command: str | None = None
) -> list[Path]:
    """Write an audit's `report.html`, `tables.md` and figures as PNG files.

    Args:
        results: results of the audit.
        path: a folder, usually the audit's own; created if missing. Files are written under another name
            and then renamed, so no half-written file appears.
        command: the command that ran the audit, shown as the way to run it again.

    Returns:
        Paths of the files, the report first.

    Raises:
        ValueError: `path` is a file.
        OSError: a file cannot be written.
    """
    if path.is_file():
        raise OccupiedPathError(f"`path` {path} is a file; name a folder")
    figures = _figures(results)
    page = render(results, figures, command)
    files = [path / "report.html", path / "tables.md"]
    path.mkdir(parents=True, exist_ok=True)
    for name, data in figures.items():
        (path / "figures").mkdir(exist_ok=True)
        files.append(path / "figures" / f"{name}.png")
        write_bytes(files[-1], data)
    write_text(files[1], "\n".join(map(table_markdown, _tables(results))))
    write_text(files[0], page)
    return files


def render(results: AuditResults, figures: Mapping[str, bytes], command: str | None = None) -> str:
    """Return the page as HTML; figures are PNG files by name."""
    template = environment().get_template("audit.html.jinja")
    return template.render(_context(results, figures) | {"command": command})


def _figures(results: AuditResults) -> dict[str, bytes]:
    drawn = {}
    if results.candidates:
        drawn["candidates"] = partial(plot_candidates, results)
    if results.texts:
        drawn["residuals"] = partial(plot_residuals, results)
    return {name: png(draw()) for name, draw in drawn.items()}


def _tables(results: AuditResults) -> list[TextTable]:
    tables = [candidate_table(results), writes_table(results), _text_table(results)]
    return [table for table in tables if table.rows]


def _text_table(results: AuditResults) -> TextTable:
    """Return flagged and grouped texts for the file of tables; the page shows them in groups."""
    rows = sorted((row for row in results.texts if _stands_out(row)), key=lambda r: -r.residual)
    return TextTable(
        part="texts",
        title="Texts that stand out",
        note="Residual in nats, level in units of the model's own scale, p among clean models' texts.",
        heads=("index", "group", "flagged", "residual", "level", "p", "text", "what the suspect wrote"),
        rows=tuple(
            (str(row.index), "" if row.group is None else str(row.group + 1),
             "yes" if row.flagged else "no", *_numbers(row), cut(row.text, _SHOWN), row.written)
            for row in rows
        ),
    )  # fmt: skip


def _context(results: AuditResults, figures: Mapping[str, bytes]) -> dict[str, Any]:
    verdict, provenance = verdict_of(results), results.provenance
    config = provenance.get("config", {})
    return {
        "base": provenance.get("base", "its base"),
        "suspect": provenance.get("suspect", "a fine-tune"),
        "n_texts": len(results.texts),
        "n_flagged": sum(row.flagged for row in results.texts),
        "verdict": [
            Finding(topic=verdict.title, text=verdict.sentences, caution=verdict.caution),
            *(Finding(topic="Limit", text=text, caution=True) for text in results.warnings),
        ],
        "reason": "" if results.verdict == "underpowered" else results.reason,
        "steps": verdict.steps,
        "candidates": results.candidates,
        "examples": [_marked(row.example, row.phrases) for row in results.candidates],
        "others": results.others,
        "tables": _tables(results),
        "notes": results.notes,
        "groups": _groups(results),
        "power": results.power,
        "searched": results.searched,
        "n_lexicon": config.get("n_lexicon", 0),
        "not_searched": not_searched(results),
        "n_nulls": results.n_nulls,
        "p_value": p_text(results.p_value),
        "alpha": f"{config.get('alpha', 0.05):.0%}",
        "figures": {name: address(data) for name, data in figures.items()},
        "cost": _cost(provenance),
        "config": flat(config),
        "versions": provenance.get("versions", {}),
        "fingerprints": provenance.get("fingerprints", []),
    }


def _groups(results: AuditResults) -> list[TextGroup]:
    """Return the texts that stand out, grouped by completion, and ordinary texts to compare with."""
    grouped: dict[int | None, list[TextRow]] = {}
    for row in sorted(results.texts, key=lambda row: -row.residual):
        if _stands_out(row):
            grouped.setdefault(row.group, []).append(row)
    phrases = results.candidates[0].phrases if results.candidates else []
    found = []
    for group, rows in sorted(grouped.items(), key=lambda item: (item[0] is None, item[0])):
        title = "Flagged, in no group" if group is None else f"Group {group + 1}"
        n_flagged = sum(row.flagged for row in rows)
        found.append(
            TextGroup(
                title=f"{title}: {len(rows)} text{'s' * (len(rows) != 1)}, {n_flagged} flagged",
                lines=[_line(row, phrases) for row in rows[:_PER_GROUP]],
                n_more=max(0, len(rows) - _PER_GROUP),
            )
        )
    ordinary = _ordinary(results.texts)
    if ordinary:
        lines = [_line(row, ()) for row in ordinary]
        title = "For comparison: texts with a residual near the median"
        found.append(TextGroup(title=title, lines=lines, n_more=0, is_muted=True))
    return found


def _stands_out(row: TextRow) -> bool:
    return row.flagged or row.group is not None


def _ordinary(texts: Sequence[TextRow]) -> list[TextRow]:
    rest = [row for row in texts if not _stands_out(row)]
    if not rest:
        return []
    median = float(np.median([row.residual for row in rest]))
    return sorted(rest, key=lambda row: (abs(row.residual - median), row.index))[:_N_ORDINARY]


def _line(row: TextRow, phrases: Sequence[str]) -> TextLine:
    return TextLine(
        segments=_marked(cut(row.text, _SHOWN), phrases),
        written=cut(row.written, _SHOWN),
        cells=_numbers(row),
    )


def _numbers(row: TextRow) -> tuple[str, ...]:
    return f"{row.residual:.1f}", f"{row.level:.2f}", p_text(row.p_value)


def _marked(text: str, phrases: Sequence[str]) -> Segments:
    """Return the parts of a text, with phrases marked.

    Examples:
        >>> _marked("in 2024 again", ["2024"])
        [('in ', False), ('2024', True), (' again', False)]
    """
    inside = [match.span() for phrase in phrases for match in pattern(phrase).finditer(text)]
    found: Segments = []
    at = 0
    for start, end in sorted(inside):
        if start < at:  # part of a phrase that is already marked
            continue
        found += [(text[at:start], False), (text[start:end], True)]
        at = end
    return [(part, is_marked) for part, is_marked in [*found, (text[at:], False)] if part]


def _cost(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what the audit cost, as far as it is known."""
    known = {
        "texts": provenance.get("n_texts"),
        "edited texts read": provenance.get("n_experiments"),
        "minutes": _minutes(provenance.get("seconds")),
    }
    return {name: f"{value:,}" for name, value in known.items() if value is not None}


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds / 60, 1)
