"""The tables of demo and study as text."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from diffsae_lens._display import cut, one_line, visible

_CELL_LIMIT = 200
"""Characters of a cell of plain text, where the widest cell sets the width of all."""
# What Markdown reads in a line of text: cells and their ends, code, links, emphasis, entities and HTML.
_MARKDOWN = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[|`*<&]|\](?=\()|(?<!\w)_|_(?!\w)")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def score_text(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the score table; BIS and its ceiling are the paper's."""
    columns = ["n_features", "bis_last", "bis_mean", "ceiling", "auroc", "average_precision"]
    table = pd.DataFrame(
        {"name": _plain(row["name"]), **{column: row[column] for column in columns}} for row in rows
    )
    return table.set_index("name").round(3).to_string()


def causal_text(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the causal table, attack rates with their 95% Wilson intervals."""
    table = pd.DataFrame(
        {
            "intervention": _plain(row["name"]),
            "dictionary": _plain(row["dictionary"] or ""),
            "n_features": row["n_features"],
            "prompts": _plain(row["group"]),
            "attack rate": _rate_cell(row),
            "unparseable": row["n_unparseable"],
            "log-odds": row["log_odds"],
            "cross-entropy": row["cross_entropy"],
        }
        for row in rows
    )
    return table.round(2).to_string(index=False)


def plan_text(plan: pd.DataFrame) -> str:
    """Lay out what `dry_run` returned, with what is left to do."""
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
        f"CPU cores and {left.estimated_gigabytes.max() if len(left) else 0:.1f} GB at most"
    )


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """One table of the study, as text."""

    title: str
    note: str
    """What is in the cells."""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def study_tables(results: Mapping[str, Any]) -> list[StudyTable]:
    """Lay out the study: organisms, both protocols, differences, causes, costs; a column a layer.

    Args:
        results: what `reproduce` returned.
    """
    causes = {
        group: [row for row in results["causes"] if row["group"] == group]
        for group in ("trigger", "benign")
    }
    organisms = [
        row | {"low": row["interval"][0], "high": row["interval"][1], "attack_rate": row["rate"]}
        for row in results["organisms"]
    ]
    ceilings = ", ".join(sorted({f"{row['ceiling']:.2f}" for row in results["paper"]}))
    by_name = ("regime", "name")
    tables = [
        _pivot(
            organisms, ("regime",), "group", _rate_cell, title="Organisms",
            note="Attack rate on held-out prompts, 95% Wilson interval.",
        ),
        _pivot(
            [*results["paper"], *_published(results)], by_name, "layer", _bis_cell,
            title="BIS by the paper's protocol",
            note="The best of all features on the texts they were trained on, its interval, and the same "
            f"procedure on the base model alone. Ceiling {ceilings}. Published: SmolLM2-360M.",
        ),
        _pivot(
            results["strict"], by_name, "layer", _bis_cell, title="Strict BIS",
            note="Features chosen on other prompts and read where the organism decides; ceiling 1.",
        ),
        *(
            _pivot(
                [row for row in results["contrasts"] if row["kind"] in kinds],
                by_name, "at", _difference_cell, title=title,
                note="Differences of strict BIS with their paired 95% interval.",
            )
            for title, kinds in (
                ("Regime against regime, Diff-SAE against crosscoder", ("regimes", "dictionaries")),
                ("Layer against the layer before", ("layers",)),
            )
        ),
        _pivot(
            causes["trigger"], by_name, "layer", _rate_cell, title="Attack rate on trigger prompts",
            note="Features ablated in greedy order, and as many random ones of equal activation mass; "
            "95% Wilson interval.",
        ),
        _pivot(
            causes["benign"], by_name, "layer", _harm_cell, title="Benign prompts",
            note="The same ablations: attack rate with its 95% Wilson interval, and cross-entropy of the "
            "safe completion in nats a token.",
        ),
        _pivot(
            _costs(results), ("regime", "cell"), "layer", _cost_cell, title="Cost",
            note="Seconds and peak memory of each cell where it ran, beside whatever else ran there.",
        ),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


def study_markdown(results: Mapping[str, Any]) -> str:
    """Return the study's tables in Markdown, and what deviates from the paper."""
    parts = []
    for table in study_tables(results):
        lines = [table.heads, ("---",) * len(table.heads), *table.rows]
        rows = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)
        parts.append(f"## {table.title}\n{table.note}\n\n{rows}\n")
    deviations = "\n".join(f"- {_markdown(deviation)}" for deviation in results["deviations"])
    return "\n".join([*parts, f"## Deviations from the paper\n{deviations}\n"])


def _plain(value: Any) -> Any:
    """A cell of plain text: text on one line and not without an end, all else as it is."""
    return one_line(cut(value, _CELL_LIMIT)) if isinstance(value, str) else value


def _markdown(text: str) -> str:
    r"""Text on one line as Markdown that shows it, in a table, too.

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
) -> StudyTable:
    """A line for each value of `index` and a column for each of `column`: layers ascending, "all" last."""
    heads = sorted(dict.fromkeys(row[column] for row in rows), key=_layer_order)
    lines: dict[tuple[str, ...], dict[Any, str]] = {}
    for row in rows:
        lines.setdefault(tuple(str(row[name]) for name in index), {})[row[column]] = cell(row)
    return StudyTable(
        heads=(*index, *map(str, heads)),
        rows=tuple(
            (*line, *(cells.get(head, "") for head in heads)) for line, cells in lines.items()
        ),
        **described,
    )


def _layer_order(head: str | int) -> tuple[bool, int]:
    """Sort key of a layer; heads that are no layers keep their order."""
    return head == "all", int(head) if re.fullmatch("[0-9]{1,9}", str(head)) else 0


def _rate_cell(row: Mapping[str, Any]) -> str:
    return f"{row['attack_rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _harm_cell(row: Mapping[str, Any]) -> str:
    return f"{_rate_cell(row)}, {row['cross_entropy']:.3f}"


def _costs(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The finished cells by regime, layer and what they do."""
    rows = []
    for row in results["cells"]:
        if row["seconds"] is not None:
            *at, cell = row["cell"].split("/")
            regime, layer = (*(at or [""]), "all")[:2]
            rows.append({**row, "regime": regime, "layer": layer, "cell": cell})
    return rows


def _cost_cell(row: Mapping[str, Any]) -> str:
    memory = row["gigabytes"]
    return f"{row['seconds']:.0f} s" + ("" if memory is None else f", {memory:.1f} GB")


def _difference_cell(row: Mapping[str, Any]) -> str:
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _bis_cell(row: Mapping[str, Any]) -> str:
    text = f"{row['bis']:.2f}"
    if row.get("low") is not None:
        text += f" [{row['low']:.2f}, {row['high']:.2f}]"
    if row.get("base_bis") is not None:
        text += f", base {row['base_bis']:.2f}"
    return text


def _published(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    layers = {row["layer"] for row in results["paper"]}
    return [
        row | {"name": f"published {row['name']}"}
        for row in results["published"]
        if row["layer"] in layers
    ]
