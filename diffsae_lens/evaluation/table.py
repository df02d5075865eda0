"""The table of an evaluation, and what its rows say in words."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

Protocol = Literal["paper", "strict"]
ALPHA = 0.05
"""Below it a p-value is taken for evidence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IsolationTable:
    """A row for every dictionary and control."""

    frame: pd.DataFrame = field(repr=False)
    """Columns: `name`, `kind`, `hook_name`, `n_features`, `bis` with its interval `low` to `high`,
    `ceiling`, `base_bis`, `pvalue`, `verdict`, and what the protocol adds."""
    protocol: Protocol
    n_prompts: int

    def to_markdown(self, columns: Sequence[str] | None = None) -> str:
        """Return the table in Markdown, numbers to two decimals."""
        frame = self.frame[list(columns or self.frame.columns)]
        rows = [list(frame.columns), ["---"] * len(frame.columns)]
        rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def to_json(self) -> str:
        """Return protocol, number of prompts and rows as JSON."""
        rows = json.loads(self.frame.to_json(orient="records") or "[]")
        return json.dumps({"protocol": self.protocol, "n_prompts": self.n_prompts, "rows": rows})

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False, float_format="%.2f", escape=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.2g}" if abs(value) < 0.01 else f"{value:.2f}"
    return "" if value is None else str(value).replace("|", "\\|")


def judge(records: list[dict[str, Any]], protocol: Protocol) -> None:
    """Add a verdict in words to every row, and warn of what a reader should not miss."""
    for record in records:
        verdict = _strict_verdict if protocol == "strict" else _paper_verdict
        record["verdict"] = verdict(record, records)
        if record["kind"] != "dictionary":
            continue
        if record["bis"] >= record["ceiling"] - 1e-6:
            logger.warning("%s is at its ceiling of %.2f", record["name"], record["ceiling"])
        better = [r["name"] for r in _unsupervised(records) if r["bis"] > record["bis"]]
        if better:
            logger.warning("%s scores below %s", record["name"], ", ".join(better))


def _unsupervised(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Controls that, like a dictionary, were given no labels but the choice of the feature."""
    names = ("random directions", "principal components")
    return [r for r in records if r["kind"] == "untrained dictionary" or r["name"] in names]


def _strict_verdict(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    if record["pvalue"] >= ALPHA:
        return f"no evidence, p = {record['pvalue']:.2f}"
    if record["excess_low"] is None or record["excess_low"] <= 0:
        return "not above the base model"
    verdict = f"isolated, {_p(record['pvalue'])}"
    if record["kind"] != "dictionary":
        return verdict
    rivals = [r["name"] for r in _unsupervised(records) if r["bis"] >= record["low"]]
    return verdict + (f"; no better than {', '.join(sorted(set(rivals)))}" if rivals else "")


def _paper_verdict(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    if record["bis"] < record["ceiling"] - 1e-6:
        return "below the ceiling, " + _p(record["pvalue"])
    random = [r for r in records if r["name"] == "random directions"]
    too = record not in random and any(r["bis"] >= r["ceiling"] - 1e-6 for r in random)
    return "saturated: at the ceiling" + (", as are random directions" if too else "")


def _p(pvalue: float) -> str:
    return "p < 0.001" if pvalue < 0.001 else f"p = {pvalue:.3f}"
