"""Base classes of result rows, and a table of rows; the rows themselves are in `results`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import pandas as pd

from diffsae_lens._errors import InvalidValueError

R = TypeVar("R", bound="Row")

IntervalKind = Literal["Wilson", "confidence sequence"]
"""Interval of a rate: for a number of prompts fixed in advance, or valid at any stopping point."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    @classmethod
    def from_dict(cls: type[R], row: Mapping[str, Any]) -> R:
        """Read a row back from JSON.

        Raises:
            ValueError: `row` is not a mapping, lacks a key or has an unknown one.
        """
        if not isinstance(row, Mapping):
            raise InvalidValueError(f"a {cls.__name__} must be a mapping, got {type(row).__name__}")
        try:
            return cls(**row)
        except TypeError as error:  # names missing or unknown keys
            raise InvalidValueError(
                f"this is not a {cls.__name__} ({error}); another version of this package made it"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a JSON-ready dict, with None for what could not be measured."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class StudyRow(Row):
    """A row of a study, which may have several organisms and layers."""

    regime: str | None = None
    """The organism's regime, in a study of several."""
    layer: int | None = None
    """None for rows that belong to no layer, or to all."""


@dataclass(frozen=True, kw_only=True)
class RateRow(Row):
    """How often a model wrote the unwanted completion for the prompts of one group."""

    group: str
    n_prompts: int
    counts: Mapping[str, int]
    """Completions by outcome, the unwanted one first, the wanted one second."""
    attack_rate: float
    """Share of unwanted completions, 0 to 1."""
    low: float
    """Lower end of the 95% confidence interval."""
    high: float
    interval: IntervalKind = "Wilson"


@dataclass(frozen=True)
class Table(Generic[R]):
    """Rows of one type, in order: a sequence that renders as a table."""

    rows: tuple[R, ...]

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> R:
        return self.rows[index]

    def where(self, **values: Any) -> "Table[R]":
        """Return the rows whose fields have these values, such as `kind="ablation"`.

        Raises:
            AttributeError: the rows do not have such a field.
        """
        found = [row for row in self.rows if all(getattr(row, n) == v for n, v in values.items())]
        return Table(tuple(found))

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a data frame, names first, without columns in which no row has a value.

        Counts of outcomes get one column each, `n_<outcome>`.
        """
        plain = []
        for row in self.rows:
            values = row.as_dict()
            counts = values.pop("counts", None) or {}
            named = {"name": values["name"]} if "name" in values else {}
            plain.append(named | values | {f"n_{outcome}": n for outcome, n in counts.items()})
        return pd.DataFrame(plain).dropna(axis="columns", how="all")

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def _plain(value: Any) -> Any:
    """Return the value, with None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
