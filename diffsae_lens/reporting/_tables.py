"""The tables of a run as text, for terminals and Markdown."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from diffsae_lens._display import cut, one_line, visible
from diffsae_lens._typed import typed
from diffsae_lens.reporting._columns import PROTOCOLS, columns_of, number
from diffsae_lens.reporting._lookup import places, rate_text, said_text, with_controls
from diffsae_lens.results import (
    EffectRow,
    ScoreRow,
)
from diffsae_lens.study._results import Results

_CELL_LIMIT = 200
"""Maximum number of characters of a plain-text cell: the widest cell sets the width of its column."""
# What Markdown interprets in a line of text: cells and their ends, code, links, emphasis, entities and HTML.
_MARKDOWN = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[|`*<&]|\](?=\()|(?<!\w)_|_(?!\w)")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts."""

    part: str
    """Part of the results from which it is made."""
    title: str
    note: str
    """Description of the cells."""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def score_text(rows: Sequence[ScoreRow]) -> str:
    """Lay out scores for a terminal, one table per protocol, each with its ceiling and floors."""
    parts = []
    for protocol, title in PROTOCOLS.items():
        found = [row for row in rows if row.protocol == protocol]
        if found:
            parts.append(f"{title}\n{_layout(found)}")
    return "\n\n".join(parts)


def effect_text(rows: Sequence[EffectRow]) -> str:
    """Lay out interventions for a terminal, each with its control directly under it."""
    ordered = list(with_controls(list(rows)))
    described = {
        "dictionary": [row.dictionary or "" for row in ordered],
        "prompts": [row.group for row in ordered],
    }
    return _layout(ordered, described)


def _layout(
    rows: Sequence[ScoreRow] | Sequence[EffectRow],
    described: Mapping[str, list[str]] | None = None,
) -> str:
    cells = {"": [row.name for row in rows]} | dict(described or {})
    if len({(row.regime, row.layer) for row in rows}) > 1:
        cells["layer"] = ["" if row.layer is None else str(row.layer) for row in rows]
    cells |= {column.head: [column.text(row) for row in rows] for column in columns_of(rows)}
    table = pd.DataFrame({head: map(_plain, column) for head, column in cells.items()})
    return table.to_string(index=False)


@typed
def results_text(results: Results) -> str:
    """Lay out a run for a terminal: all its rows if they belong to one place, else its tables."""
    if len(places(results)) > 1:
        return results_markdown(results)
    parts = [score_text(results.scores)] if results.scores else []
    parts += [effect_text(results.effects)] if results.effects else []
    return "\n\n".join(parts)


@typed
def plan_text(plan: pd.DataFrame) -> str:
    """Lay out the table from a dry run, with what is left to do."""
    left = plan[plan.state != "done"]
    hours = left.estimated_seconds.sum() / 3600
    n_done = len(plan) - len(left)
    return (
        f"{plan.drop(columns='problem').map(_plain).to_string(index=False, na_rep='')}\n"
        + "".join(
            f"{_plain(row['cell'])}: {visible(cut(row['problem']))}\n"
            for row in plan.to_dict("records")
            if row["problem"]
        )
        + f"\n{n_done} of {len(plan)} cells are done; the others take about {hours:.1f} hours on two "
        f"CPU cores and at most {left.estimated_gigabytes.max() if len(left) else 0:.1f} GB"
    )


@typed
def results_tables(results: Results) -> list[TextTable]:
    """Lay out a run: organisms, both protocols, differences, effects, costs; one column per layer."""
    strict = [row for row in results.scores if row.protocol == "strict"]
    paper = [row for row in results.scores if row.protocol == "paper"]
    ceilings = ", ".join(sorted({f"{row.ceiling:.2f}" for row in paper}))
    by_group = {
        group: [row for row in results.effects if row.group == group]
        for group in ("trigger", "benign")
    }
    tables = [
        _pivot(
            [{**vars(row), "row": row} for row in results.organisms],
            ("regime",), "group", _rate_cell, part="organisms", title="Organisms",
            note="Attack rate on held-out prompts, 95% Wilson interval.",
        ),
        _pivot(
            [*map(vars, paper), *_published(results)], ("regime", "name"), "layer", _bis_cell,
            part="scores", title=PROTOCOLS["paper"],
            note="The best of all features on the texts they were chosen on, its interval, and the same "
            f"procedure on the base model alone. Ceiling {ceilings}."
            + (" Published: SmolLM2-360M." if results.published else ""),
        ),
        _pivot(
            [*map(vars, strict)], ("regime", "name"), "layer", _bis_cell,
            part="scores", title=PROTOCOLS["strict"],
            note="Features chosen on other prompts and read where the organism decides; ceiling 1.",
        ),
        *(
            _pivot(
                _contrasts(results, kinds), ("regime", "name"), "at", _difference_cell,
                part="contrasts", title=title,
                note="Differences of strict BIS with their paired 95% interval.",
            )
            for title, kinds in (
                ("Regime against regime, Diff-SAE against crosscoder", ("regimes", "dictionaries")),
                ("Layer against the layer before", ("layers",)),
            )
        ),
        _pivot(
            _effects(by_group["trigger"]), _INTERVENTION, "layer", _rate_cell,
            part="effects", title="Attack rate on trigger prompts",
            note="Features ablated in greedy order, and as many random ones of equal activation mass; "
            "95% Wilson interval.",
        ),
        _pivot(
            _effects(by_group["benign"]), _INTERVENTION, "layer", _harm_cell,
            part="effects", title="Benign prompts",
            note="The same ablations: attack rate with its 95% Wilson interval, and cross-entropy of the "
            "wanted completion in nats per token.",
        ),
        *_sayings_tables(results),
        _pivot(
            _costs(results), ("regime", "cell"), "layer", _cost_cell,
            part="cells", title="Cost",
            note="Seconds and peak memory of each cell where it ran, beside whatever else ran there.",
        ),
    ]  # fmt: skip
    return [_without_empty(table) for table in tables if table.rows]


@typed
def results_markdown(results: Results) -> str:
    """Return the tables of a run in Markdown, and the deviations from the paper."""
    parts = [table_markdown(table) for table in results_tables(results)]
    if results.deviations:
        deviations = "\n".join(f"- {_markdown(deviation)}" for deviation in results.deviations)
        parts.append(f"## Deviations from the paper\n{deviations}\n")
    return "\n".join(parts)


def table_markdown(table: TextTable) -> str:
    """Return a table in Markdown, under its title."""
    lines = [table.heads, ("---",) * len(table.heads), *table.rows]
    rows = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)
    return f"## {table.title}\n{table.note}\n\n{rows}\n"


def table_text(table: TextTable) -> str:
    """Lay out a table for a terminal."""
    frame = pd.DataFrame([map(_plain, row) for row in table.rows], columns=list(table.heads))
    return frame.to_string(index=False)


def _plain(value: Any) -> Any:
    """Return a plain-text cell: text on one line and cut, anything else unchanged."""
    return one_line(cut(value, _CELL_LIMIT)) if isinstance(value, str) else value


def _markdown(text: str) -> str:
    r"""Return text on one line as Markdown that shows it literally, also in a table.

    Examples:
        >>> print(_markdown("a|b <i>"))
        a\|b &lt;i>
    """
    return _MARKDOWN.sub(lambda m: _ENTITIES.get(m[0], "\\" + m[0]), one_line(cut(text)))


def _pivot(
    rows: Sequence[Mapping[str, Any]],
    index: tuple[str, ...],
    column: str,
    cell: Callable[[Mapping[str, Any]], str],
    **described: str,
) -> TextTable:
    """Return one line per `index` value and one column per `column` value: layers ascending, "all" last."""
    heads = sorted(dict.fromkeys(_text(row[column], "all") for row in rows), key=_layer_order)
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(_text(row[name]) for name in index), {})
        line[_text(row[column], "all")] = cell(row)
    return TextTable(
        heads=(*index, *heads),
        rows=tuple(
            (*line, *(cells.get(head, "") for head in heads)) for line, cells in lines.items()
        ),
        **described,
    )


def _without_empty(table: TextTable) -> TextTable:
    """Return the table without empty columns: a run of one organism has no regimes."""
    kept = [i for i in range(len(table.heads)) if any(row[i] for row in table.rows)]
    return replace(
        table,
        heads=tuple(table.heads[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )


def _text(value: Any, missing: str = "") -> str:
    return missing if value is None else str(value)


def _layer_order(head: str) -> tuple[bool, int]:
    """Return the sort key of a layer; heads that are not layers keep their order."""
    return head == "all", int(head) if re.fullmatch("[0-9]{1,9}", head) else 0


_INTERVENTION = ("regime", "dictionary", "intervention", "features")


def _effects(rows: Sequence[EffectRow]) -> list[dict[str, Any]]:
    return [
        {
            "regime": row.regime, "dictionary": row.dictionary, "intervention": row.name,
            "features": row.n_features or None, "layer": row.layer, "row": row,
        }
        for row in rows
    ]  # fmt: skip


def _sayings_tables(results: Results) -> list[TextTable]:
    """Return one table per organism."""
    regimes = dict.fromkeys(row.regime for row in results.sayings)
    return [
        TextTable(
            part="sayings",
            title="What sets it off" + ("" if regime is None else f", {regime}"),
            note="The same scenes with other texts in the trigger's place: attack rate with its 95% Wilson "
            "interval, and log-odds in nats.",
            heads=("said", "group", "attack rate", "log-odds"),
            rows=tuple(
                (said_text(row.said), row.group, rate_text(row), number("log_odds", 2, "+")(row))
                for row in results.sayings
                if row.regime == regime
            ),
        )
        for regime in regimes
    ]


def _rate_cell(row: Mapping[str, Any]) -> str:
    return rate_text(row["row"])


def _harm_cell(row: Mapping[str, Any]) -> str:
    entropy = row["row"].cross_entropy
    return rate_text(row["row"]) + ("" if entropy is None else f", {entropy:.3f}")


def _contrasts(results: Results, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return differences, with what they compare as text."""
    return [
        {
            "name": row.name,
            "regime": _between(row.regime, row.minus_regime, "{0} - {1}"),
            "at": _between(row.layer, row.minus_layer, "{1} to {0}"),
            "row": row,
        }
        for row in results.contrasts
        if row.kind in kinds
    ]


def _between(value: Any, minus: Any, text: str) -> Any:
    return value if value == minus else text.format(value, minus)


def _costs(results: Results) -> list[dict[str, Any]]:
    """Return the finished cells by regime, layer and part."""
    return [
        {"regime": row.regime, "cell": row.part, "layer": row.layer, "row": row}
        for row in results.cells
        if row.seconds is not None
    ]


def _cost_cell(row: Mapping[str, Any]) -> str:
    cell = row["row"]
    memory = "" if cell.gigabytes is None else f", {cell.gigabytes:.1f} GB"
    return f"{cell.seconds:.0f} s{memory}"


def _difference_cell(row: Mapping[str, Any]) -> str:
    difference = row["row"]
    return f"{difference.difference:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def _bis_cell(row: Mapping[str, Any]) -> str:
    text = f"{row['bis']:.2f}"
    if row.get("low") is not None:
        text += f" [{row['low']:.2f}, {row['high']:.2f}]"
    if row.get("base_bis") is not None:
        text += f", base {row['base_bis']:.2f}"
    return text


def _published(results: Results) -> list[dict[str, Any]]:
    layers = {row.layer for row in results.scores}
    return [
        {**vars(row), "name": f"published {row.name}"}
        for row in results.published
        if row.layer in layers
    ]
