"""The detailed tables of a report, and everything found at one place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from diffsae_lens.reporting._coloured import card_context, coloured_prompts
from diffsae_lens.reporting._columns import PROTOCOLS, Bar, Column, columns_of
from diffsae_lens.reporting._lookup import Place, ablations, called, first, said_text, with_controls
from diffsae_lens.reporting._style import css_colour, dictionary_colours
from diffsae_lens.reporting._summary import Finding, summarise
from diffsae_lens.results import EffectRow, Row, ScoreRow, SweepRow
from diffsae_lens.study._results import Results

_GREY = "110 118 128"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a detailed table."""

    head: str
    colour: str
    """Colour of its bars."""
    cells: list[str]
    bars: list[Bar | None]
    note: str
    """Sentence about the row, shown under its cells."""
    is_muted: bool = False
    """Whether it is a floor or a control."""
    is_control: bool = False
    """Whether it is the control of the line above."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a detailed table under one heading."""

    title: str
    lines: list[Line]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A detailed table: one line per row of the results, and one column per measure."""

    title: str
    heads: list[tuple[str, str]]
    """Headings, each with the CSS class of the column's cells."""
    groups: list[Group]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything found at one place."""

    name: str
    id: str
    """Unique id for anchors."""
    figures: Mapping[str, str]
    """Addresses of the figures by kind."""
    findings: list[Finding]
    scores: list[Grid]
    effects: Grid
    side_effects: Grid
    examples: list[dict[str, str]]
    coloured: list[dict[str, Any]]
    cards: list[dict[str, Any]]
    sweep_captions: list[str]

    @property
    def has_effects(self) -> bool:
        """Whether there were any interventions."""
        return bool(self.effects.groups or self.side_effects.groups or "sayings" in self.figures)


def grid_of(
    title: str,
    rows: Iterable[Row],
    group: Callable[[Any], str] = lambda _: "",
    colours: Mapping[str | None, str] | None = None,
) -> Grid:
    """Lay out rows of one type.

    Args:
        title: title of the table.
        rows: rows, in display order.
        group: function from a row to the heading of its group.
        colours: CSS colours of the bars, by dictionary.
    """
    rows = list(rows)
    found = columns_of(rows)
    columns = [column for column in found if not column.is_note]
    notes = [column for column in found if column.is_note]
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(group(row), []).append(row)
    return Grid(
        title=title,
        heads=[(column.head, _css_class(column)) for column in columns],
        groups=[
            Group(
                title=name,
                lines=[
                    Line(
                        head=row.name,  # type: ignore[attr-defined]
                        colour=_colour(row, colours or {}),
                        cells=[column.text(row) for column in columns],
                        bars=[column.bar and column.bar(row) for column in columns],
                        note="; ".join(column.text(row) for column in notes),
                        is_muted=_is_control(row),
                        is_control=isinstance(row, EffectRow) and row.is_control,
                    )
                    for row in members
                ],
            )
            for name, members in grouped.items()
        ],
    )


def _css_class(column: Column) -> str:
    """Return the CSS class of a column; cells with bars align at the start, not at the end."""
    return "rate" if column.bar else "number" if column.is_number else "text"


def _colour(row: Row, colours: Mapping[str | None, str]) -> str:
    if _is_control(row):
        return _GREY
    named = row.name if isinstance(row, ScoreRow) else getattr(row, "dictionary", None)
    return colours.get(named, _GREY)


def _is_control(row: Row) -> bool:
    if isinstance(row, ScoreRow):
        return row.kind != "dictionary"
    return getattr(row, "control_of", None) is not None


_SCORED = {
    "dictionary": "Dictionaries",
    "floor": "Floors: what a dictionary has to beat",
    "control": "Other controls: fitted on labels, or reading texts and outputs alone",
    "null pair": "Null pair: the same dictionaries where nothing was put in",
}


def section_of(results: Results, place: Place, id: str, figures: Mapping[str, str]) -> Section:
    """Gather everything found at a place.

    Args:
        results: results of a run.
        place: one of `places(results)`.
        id: id for anchors.
        figures: addresses of the figures by kind.

    Raises:
        ValueError: an ablation has no control.
    """
    here = place.of(results)
    colours = dictionary_colours(here.dictionaries)
    bars: dict[str | None, str] = {name: css_colour(c) for name, c in colours.items()}
    scores = []
    for protocol, title in PROTOCOLS.items():
        rows = [row for row in here.scores if row.protocol == protocol]
        rows.sort(key=lambda row: list(_SCORED).index(_scored_kind(row)))
        if rows:
            scores.append(grid_of(title, rows, lambda row: _SCORED[_scored_kind(row)], bars))
    effects = [
        row
        for group in sorted({r.group for r in here.effects}, key=lambda g: (g != "trigger", g))
        for row in with_controls([r for r in here.effects if r.group == group])
    ]
    return Section(
        name=place.name,
        id=id,
        figures=figures,
        findings=summarise(here),
        scores=scores,
        effects=grid_of("", effects, _effect_group, bars),
        side_effects=grid_of("", here.side_effects, lambda row: row.dictionary or ""),
        examples=_examples(here.effects),
        coloured=coloured_prompts(here) if here.example else [],
        cards=[card_context(card, colours) for card in here.cards],
        sweep_captions=_sweep_captions(here.sweep),
    )


def _scored_kind(row: ScoreRow) -> str:
    if row.kind in ("dictionary", "null pair"):
        return row.kind
    return "floor" if row.is_floor else "control"


def _effect_group(row: EffectRow) -> str:
    of = "no dictionary" if row.dictionary is None else row.dictionary
    return f"{row.group.capitalize()} prompts, {of}"


def _examples(effects: Sequence[EffectRow]) -> list[dict[str, str]]:
    """Return what was written on one trigger prompt, with shared leading lines set apart."""
    rows = [first(effects, kind=kind, group="trigger") for kind in ("unmodified", "swap to base")]
    for pairs in ablations(effects).values():
        rows.extend(pairs[-1])
    shown = [row for row in rows if row is not None and row.example]
    texts = [row.example for row in shown]
    if not texts:
        return []
    n_same = sum(1 for _ in takewhile(lambda c: len(set(c)) == 1, zip(*texts, strict=False)))
    start = texts[0][:n_same].rfind("\n") + 1
    return [
        {"label": called(row), "shared": text[:start], "rest": text[start:]}
        for row, text in zip(shown, texts, strict=True)
    ]


def _sweep_captions(rows: Sequence[SweepRow]) -> list[str]:
    """Return, per dictionary, the mean for the trigger and the highest mean for anything else."""
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
