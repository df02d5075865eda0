"""The table of an evaluation, with verdicts in words."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.measures._resampling import BootstrapResult, Resampling, bootstrap_result
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.results import ALPHA, Protocol, ScoreRow, Table

logger = logging.getLogger(__name__)

_WORST = {"low": min, "high": max, "pvalue": max, "excess_low": min}
"""How these scores are merged over seeds; all other scores are averaged."""
_SHOWN = (
    "name", "hook_name", "seed", "n_seeds", "n_features", "bis", "low", "high", "ceiling", "base_bis",
    "pvalue", "auroc", "average_precision", "verdict",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class IsolationTable(Table[ScoreRow]):
    """A table with one row per dictionary and control."""

    rows: tuple[ScoreRow, ...]
    protocol: Protocol
    n_prompts: int
    resampled: Float[Tensor, "row resample"] = field(repr=False)
    """Every row's score on every resample. Rows share their resamples, and so do tables with the same
    prompts and seed, so differences are paired. NaN for rows without an interval."""
    resampling: Resampling = field(repr=False)
    """How the resamples were drawn."""

    def difference(self, first: str, second: str) -> BootstrapResult:
        """Return the difference between two rows' BIS (first minus second), with its paired interval.

        Both are scored on the same resamples of prompts, with features chosen again on each, so what is
        hard for both does not widen the interval. A dictionary with several seeds counts as their mean.

        Args:
            first: name of a row.
            second: name of another row.

        Raises:
            ValueError: no such row, or rows of that name at several hook points.

        Examples:
            >>> table.difference("Diff-SAE", "crosscoder")          # doctest: +SKIP
            BootstrapResult(estimate=0.14, low=-0.1, high=0.33)
        """
        rows = [self._places(name) for name in (first, second)]
        estimates = [sum(self.rows[i].bis for i in of_name) / len(of_name) for of_name in rows]
        scores = [self.resampled[torch.tensor(of_name)].mean(0) for of_name in rows]
        return bootstrap_result(estimates[0] - estimates[1], scores[0] - scores[1], self.resampling)

    def _places(self, name: str) -> list[int]:
        found = [i for i, row in enumerate(self.rows) if row.name == name]
        hook_names = sorted({self.rows[i].hook_name or "" for i in found})
        if len(hook_names) != 1:
            known = sorted({row.name for row in self.rows})
            raise InvalidValueError(
                f"{name!r} is at {hook_names}: give it a name for each"
                if hook_names
                else f"no row is called {name!r}, there are {known}"
            )
        return found

    def over_seeds(self) -> "IsolationTable":
        """Return the table with all seeds of a dictionary merged into one row.

        `bis`, `base_bis` and the protocol's other scores are means over the seeds; `low` and `high`
        are the lowest and the highest end of any seed's interval; `pvalue` is the largest and
        `excess_low` the smallest, so that one lucky seed does not decide; `verdict` counts the seeds
        of each verdict.
        """
        places: dict[tuple[str, str, str | None], list[int]] = {}
        for i, row in enumerate(self.rows):
            places.setdefault((row.name, row.kind, row.hook_name), []).append(i)
        return replace(
            self,
            rows=tuple(_merged([self.rows[i] for i in of_row]) for of_row in places.values()),
            resampled=torch.stack([self.resampled[of_row].mean(0) for of_row in places.values()]),
        )

    def to_markdown(self, columns: Sequence[str] | None = None) -> str:
        """Return the table in Markdown, with two decimals (two significant digits below 0.01)."""
        frame = self.to_frame()
        frame = frame[list(columns)] if columns is not None else frame
        rows = [list(frame.columns), ["---"] * len(frame.columns)]
        rows += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def to_json(self) -> str:
        """Return protocol, number of prompts and rows as JSON."""
        rows = [row.as_dict() for row in self.rows]
        return json.dumps({"protocol": self.protocol, "n_prompts": self.n_prompts, "rows": rows})

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        shown = frame[[name for name in _SHOWN if name in frame]]
        return shown.to_html(index=False, float_format="%.2f", na_rep="", escape=True)


def _merged(rows: Sequence[ScoreRow]) -> ScoreRow:
    """One row for all seeds of a dictionary."""
    measured = [row.as_dict() for row in rows]
    names = [name for name, value in measured[0].items() if isinstance(value, float)]
    of_seeds = {n: [row[n] for row in measured if row[n] is not None] for n in names}
    merged = {name: _WORST.get(name, _mean)(values) for name, values in of_seeds.items()}
    bis = of_seeds["bis"]
    alone = len(rows) == 1
    return replace(
        rows[0],
        **merged,
        seed=rows[0].seed if alone else None,
        feature_idx=rows[0].feature_idx if alone else None,
        n_seeds=len(rows),
        bis_min=min(bis),
        bis_max=max(bis),
        verdict=rows[0].verdict if alone else _counted(rows),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _counted(rows: Sequence[ScoreRow]) -> str:
    """Each verdict's claim, without p-value and rivals, and the number of seeds with it."""
    counts = Counter(_claim(row) for row in rows)
    return "; ".join(f"{claim}: {n} of {len(rows)} seeds" for claim, n in counts.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if value.is_integer() and abs(value) > 1:
            return str(int(value))
        return "" if np.isnan(value) else f"{value:.2g}" if abs(value) < 0.01 else f"{value:.2f}"
    return "" if value is None or value is pd.NA else str(value).replace("|", "\\|")


def judged(rows: Sequence[ScoreRow]) -> tuple[ScoreRow, ...]:
    """Return rows with a verdict in words, and warn about what a reader should not miss."""
    for row in rows:
        if row.kind != "dictionary":
            continue
        if row.is_at_ceiling:
            logger.warning("%s is at its ceiling of %.2f", _called(row), row.ceiling)
        better = {_called(r) for r in _rivals(row, rows) if r.bis > row.bis}
        if better:
            logger.warning("%s scores below %s", _called(row), ", ".join(sorted(better)))
    return tuple(replace(row, verdict=_verdict(row, rows)) for row in rows)


def _called(row: ScoreRow) -> str:
    return row.name + ("" if row.seed is None else f" (seed {row.seed})")


def _rivals(row: ScoreRow, rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """The floors at the same hook point."""
    return [r for r in rows if r.is_floor and _site(r) is not None and _site(r) == _site(row)]


def _site(row: ScoreRow) -> str | None:
    return VirtualHook.parse(row.hook_name).site if row.hook_name else None


def _claim(row: ScoreRow) -> str:
    """The claim that a row supports on its own."""
    if row.protocol == "paper":
        return "saturated: at the ceiling" if row.is_at_ceiling else "below the ceiling"
    if row.pvalue is None or row.pvalue >= ALPHA:
        return "no evidence"
    return "isolated" if row.is_isolated else "not above the base model"


def _verdict(row: ScoreRow, rows: Sequence[ScoreRow]) -> str:
    claim = _claim(row)
    if claim == "no evidence":
        return claim if row.pvalue is None else f"{claim}, p = {row.pvalue:.2f}"
    if claim == "saturated: at the ceiling":
        random = [r for r in _rivals(row, rows) if r.control == "random directions"]
        too = row not in random and any(r.is_at_ceiling for r in random)
        return claim + (", as are random directions" if too else "")
    if claim == "not above the base model":
        return claim
    verdict = claim + ("" if row.pvalue is None else f", {_p(row.pvalue)}")
    if row.kind != "dictionary" or row.protocol == "paper":
        return verdict
    rivals = {r.name for r in _rivals(row, rows) if row.low is not None and r.bis >= row.low}
    return verdict + (f"; no better than {', '.join(sorted(rivals))}" if rivals else "")


def _p(pvalue: float) -> str:
    return "p < 0.001" if pvalue < 0.001 else f"p = {pvalue:.3f}"
