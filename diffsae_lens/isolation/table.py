"""The table of an evaluation, and what its rows say in words."""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens.measures.resampling import BootstrapResult, Resampling, bootstrap_result
from diffsae_lens.pair.hook import VirtualHook

if TYPE_CHECKING:
    from diffsae_lens.reporting.style import Figure

logger = logging.getLogger(__name__)

Protocol = Literal["paper", "strict"]
ALPHA = 0.05
"""Below it a p-value is taken for evidence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IsolationTable:
    """A row for every dictionary and control."""

    frame: pd.DataFrame = field(repr=False)
    """Columns: `name`, `kind`, `seed`, `hook_name`, `n_features`, `bis` with its interval `low` to
    `high`, `ceiling`, `base_bis`, `pvalue`, `verdict`, and what the protocol adds."""
    protocol: Protocol
    n_prompts: int
    resampled: Float[Tensor, "row resample"] = field(repr=False)
    """Every row's score on every resample. The rows share their resamples, and so do tables of the same
    prompts and seed: differences are paired."""
    resampling: Resampling = field(repr=False)
    """How they were drawn."""

    def difference(self, first: str, second: str) -> BootstrapResult:
        """Return by how much the BIS of one row exceeds that of another, with its paired interval.

        Both are scored on the same resamples of prompts, features chosen again on each, so what is
        hard for both does not widen the interval. A dictionary of several seeds counts with their mean.

        Args:
            first: a row's name.
            second: another's.

        Raises:
            ValueError: no such row, or rows of that name at several hook points.

        Examples:
            >>> table.difference("Diff-SAE", "crosscoder")          # doctest: +SKIP
            BootstrapResult(estimate=0.14, low=-0.1, high=0.33)
        """
        rows = [self._rows(name) for name in (first, second)]
        estimates = [self.frame.loc[of_name, "bis"].mean() for of_name in rows]
        scores = [self.resampled[torch.tensor(of_name)].mean(0) for of_name in rows]
        return bootstrap_result(estimates[0] - estimates[1], scores[0] - scores[1], self.resampling)

    def _rows(self, name: str) -> list[int]:
        found = self.frame[self.frame.name == name]
        hook_names = sorted(set(found.hook_name))
        if len(hook_names) != 1:
            known = sorted(set(self.frame.name))
            raise ValueError(
                f"{name!r} is at {hook_names}: give it a name for each"
                if hook_names
                else f"no row is called {name!r}, there are {known}"
            )
        return found.index.tolist()

    def over_seeds(self) -> "IsolationTable":
        """Return the table with one row for all seeds of a dictionary.

        `bis`, `base_bis` and the protocol's other scores are means over the seeds; `low` and `high`
        are the least and the most that any seed's interval holds; `pvalue` is the greatest and
        `excess_low` the least, so that one lucky seed does not speak for all; `verdict` counts
        the seeds of each verdict.
        """
        keys = ["name", "kind", "hook_name"]
        worst = {"low": "min", "high": "max", "pvalue": "max", "excess_low": "min"}
        scores = self.frame.columns.drop([*keys, "seed", "feature_idx", "verdict"])
        grouped = self.frame.groupby(keys, sort=False, dropna=False)
        frame = grouped.agg(
            n_seeds=("bis", "size"),
            bis_min=("bis", "min"),
            bis_max=("bis", "max"),
            **{column: (column, worst.get(column, "mean")) for column in scores},
            verdict=("verdict", _counted),
        )
        numbers = grouped.ngroup()
        resampled = [self.resampled[torch.tensor(numbers == i)].mean(0) for i in range(len(frame))]
        return replace(self, frame=frame.reset_index(), resampled=torch.stack(resampled))

    def to_markdown(self, columns: Sequence[str] | None = None) -> str:
        """Return the table in Markdown, two decimals (below 0.01 two digits)."""
        frame = self.frame[list(columns or self.frame.columns)]
        rows = [list(frame.columns), ["---"] * len(frame.columns)]
        rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def to_json(self) -> str:
        """Return protocol, number of prompts and rows as JSON."""
        rows = json.loads(self.frame.to_json(orient="records") or "[]")
        return json.dumps({"protocol": self.protocol, "n_prompts": self.n_prompts, "rows": rows})

    def plot(self) -> "Figure":
        """Draw the table; see `plot_isolation` (needs matplotlib)."""
        from diffsae_lens.reporting.isolation import plot_isolation

        return plot_isolation(self)

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False, float_format="%.2f", escape=True)


def _counted(verdicts: pd.Series) -> str:
    """Each verdict's claim, without its p-value and its rivals, and how many seeds it was made of."""
    claims = [re.split(r", p|; ", verdict)[0] for verdict in verdicts]
    if len(claims) == 1:
        return verdicts.iloc[0]
    counts = Counter(claims)
    return "; ".join(f"{claim}: {n} of {len(claims)} seeds" for claim, n in counts.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if value.is_integer() and abs(value) > 1:
            return str(int(value))
        return "" if np.isnan(value) else f"{value:.2g}" if abs(value) < 0.01 else f"{value:.2f}"
    return "" if value is None or value is pd.NA else str(value).replace("|", "\\|")


def judge(records: list[dict[str, Any]], protocol: Protocol) -> None:
    """Add a verdict in words to every row, and warn of what a reader should not miss."""
    for record in records:
        verdict = _strict_verdict if protocol == "strict" else _paper_verdict
        record["verdict"] = verdict(record, records)
        if record["kind"] != "dictionary":
            continue
        called = _called(record)
        if record["bis"] >= record["ceiling"] - 1e-6:
            logger.warning("%s is at its ceiling of %.2f", called, record["ceiling"])
        better = {_called(r) for r in _rivals(record, records) if r["bis"] > record["bis"]}
        if better:
            logger.warning("%s scores below %s", called, ", ".join(sorted(better)))


def _called(record: dict[str, Any]) -> str:
    seed = record.get("seed")
    return record["name"] + ("" if seed is None else f" (seed {seed})")


def _rivals(record: dict[str, Any], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Controls at the same hook that, like a dictionary, had no labels but the feature's choice."""
    names = ("random directions", "principal components")
    site = _site(record)
    return [
        r
        for r in records
        if (r["kind"] == "untrained dictionary" or r["name"] in names) and _site(r) == site
    ]


def _site(record: dict[str, Any]) -> str | None:
    """Where a row was read; None of one that looks at outputs or at the text alone."""
    return VirtualHook.parse(record["hook_name"]).site if record["hook_name"] else None


def _strict_verdict(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    if record["pvalue"] >= ALPHA:
        return f"no evidence, p = {record['pvalue']:.2f}"
    if record["excess_low"] is None or record["excess_low"] <= 0:
        return "not above the base model"
    verdict = f"isolated, {_p(record['pvalue'])}"
    if record["kind"] != "dictionary":
        return verdict
    rivals = [r["name"] for r in _rivals(record, records) if r["bis"] >= record["low"]]
    return verdict + (f"; no better than {', '.join(sorted(set(rivals)))}" if rivals else "")


def _paper_verdict(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    if record["bis"] < record["ceiling"] - 1e-6:
        return "below the ceiling, " + _p(record["pvalue"])
    random = [r for r in _rivals(record, records) if r["name"] == "random directions"]
    too = record not in random and any(r["bis"] >= r["ceiling"] - 1e-6 for r in random)
    return "saturated: at the ceiling" + (", as are random directions" if too else "")


def _p(pvalue: float) -> str:
    return "p < 0.001" if pvalue < 0.001 else f"p = {pvalue:.3f}"
