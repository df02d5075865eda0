"""The detailed tables of a report, and all that was found at one place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from diffsae_lens.reporting.columns import PROTOCOLS, Bar, Column, columns_of
from diffsae_lens.reporting.lookup import Place, ablations, called, first, with_controls
from diffsae_lens.reporting.style import css_colour, dictionary_colours
from diffsae_lens.reporting.summary import Finding, summarise_place
from diffsae_lens.results import EffectRow, Row, ScoreRow
from diffsae_lens.study.results import Results

_GREY = "110 118 128"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a detailed table."""

    head: str
    colour: str
    """Of its bars."""
    cells: list[str]
    bars: list[Bar | None]
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
    """A detailed table: one line per row of the results, and a column per thing measured."""

    title: str
    heads: list[tuple[str, str]]
    """With the class of the column's cells."""
    groups: list[Group]


@dataclass(frozen=True, kw_only=True)
class PlaceSection:
    """What was found at one place."""

    name: str
    findings: list[Finding]
    scores: list[Grid] = field(default_factory=list)
    effects: Grid | None = None
    examples: list[dict[str, str]] = field(default_factory=list)


def grid_of(
    title: str,
    rows: Iterable[Row],
    group: Callable[[Any], str] = lambda _: "",
    colours: Mapping[str | None, str] | None = None,
) -> Grid:
    """Lay out rows of one type.

    Args:
        title: of the table.
        rows: in the order in which they are shown.
        group: a row to the heading it stands under.
        colours: of bars, by dictionary, as CSS has them.
    """
    rows = list(rows)
    columns = columns_of(rows)
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
    """Bars begin at one place, so what follows them does not end at one."""
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


def place_section(results: Results, place: Place) -> PlaceSection:
    """Gather what was found at a place.

    Raises:
        ValueError: an ablation has no control.
    """
    scores = place.rows(results.scores)
    effects = place.rows(results.effects)
    colours: dict[str | None, str] = {
        name: css_colour(c) for name, c in dictionary_colours(results.dictionaries).items()
    }
    grids = []
    for protocol, title in PROTOCOLS.items():
        rows = [row for row in scores if row.protocol == protocol]
        kinds = list(_SCORED)
        rows.sort(key=lambda row: kinds.index(_scored_kind(row)))
        if rows:
            grids.append(grid_of(title, rows, lambda row: _SCORED[_scored_kind(row)], colours))
    ordered = [
        row
        for group in dict.fromkeys(row.group for row in effects)
        for row in with_controls([r for r in effects if r.group == group])
    ]
    ordered.sort(key=lambda row: (row.group != "trigger", row.group))  # stable
    return PlaceSection(
        name=place.name,
        findings=summarise_place(results, place),
        scores=grids,
        effects=grid_of("", ordered, _effect_group, colours) if ordered else None,
        examples=_examples(effects),
    )


def _scored_kind(row: ScoreRow) -> str:
    if row.kind in ("dictionary", "null pair"):
        return row.kind
    return "floor" if row.is_floor else "control"


def _effect_group(row: EffectRow) -> str:
    of = "no dictionary" if row.dictionary is None else row.dictionary
    return f"{row.group.capitalize()} prompts, {of}"


def _examples(effects: Sequence[EffectRow]) -> list[dict[str, str]]:
    """What was written on one trigger prompt; the lines all of them share are set apart."""
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
