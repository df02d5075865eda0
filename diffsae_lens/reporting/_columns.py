"""The columns of detailed tables: what the report and the terminal show of a row.

A new measure that becomes a field of a row gets a column here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffsae_lens.reporting._lookup import rate_text
from diffsae_lens.results import DictionaryRow, EffectRow, Protocol, Row, ScoreRow, SideEffectRow

PROTOCOLS: dict[Protocol, str] = {"strict": "Strict BIS", "paper": "BIS by the paper's protocol"}
"""Titles of the score tables, the stricter protocol first."""

Bar = tuple[float, float, float]
"""Low end, value and high end as shares of the axis."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a detailed table; a column that is empty in all rows is left out."""

    head: str
    text: Callable[[Any], str]
    """Function from a row to the text of its cell."""
    bar: Callable[[Any], Bar] | None = None
    """Function from a row to a bar of the same number."""
    is_number: bool = True
    is_note: bool = False
    """Whether it holds a sentence, which has more room under the other cells of a page."""


def number(name: str, digits: int = 3, sign: str = "") -> Callable[[Row], str]:
    """Return a function that formats a number of a row; empty if it was not measured."""

    def text(row: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else f"{value:{sign}.{digits}f}"

    return text


def _bis_text(row: ScoreRow) -> str:
    interval = "" if row.low is None or row.high is None else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.bis:.2f}{interval}"


def _bis_bar(row: ScoreRow) -> Bar:
    """Return the score as a share of the ceiling, which resampled scores may exceed."""
    ends = (row.bis if end is None else end for end in (row.low, row.bis, row.high))
    low, at, high = (min(end / row.ceiling, 1.0) for end in ends)
    return low, at, high


def _ceiling_text(row: ScoreRow) -> str:
    return f"{row.ceiling:.2f}" + (", reached" if row.is_at_ceiling else "")


def _pvalue_text(row: ScoreRow) -> str:
    if row.pvalue is None:
        return ""
    return "< 0.001" if row.pvalue < 0.001 else f"{row.pvalue:.3f}"


def _feature_text(row: ScoreRow) -> str:
    return str(row.feature_idx) if row.kind == "dictionary" and row.feature_idx is not None else ""


SCORE_COLUMNS = (
    Column(head="Features", text=lambda row: str(row.n_features)),
    Column(head="BIS", text=_bis_text, bar=_bis_bar),
    Column(head="Ceiling", text=_ceiling_text),
    Column(head="Base alone", text=number("base_bis", 2)),
    Column(head="p-value", text=_pvalue_text),
    Column(head="AUROC", text=number("auroc")),
    Column(head="Average precision", text=number("average_precision")),
    Column(head="Precision", text=number("precision")),
    Column(head="Recall", text=number("recall")),
    Column(head="Chosen feature", text=_feature_text),
    Column(head="Verdict", text=lambda row: row.verdict, is_note=True),
)
"""Columns of a score; a measure that becomes a field of `ScoreRow` gets a column here."""

EFFECT_COLUMNS = (
    Column(head="Features", text=lambda row: str(row.n_features or "")),
    Column(
        head="Attack rate",
        text=rate_text,
        bar=lambda row: (row.low, row.attack_rate, row.high),
    ),
    Column(head="Prompts", text=lambda row: str(row.n_prompts)),
    Column(head="Log-odds", text=number("log_odds", 2, "+")),
    Column(head="Cross-entropy", text=number("cross_entropy")),
    Column(head="Perplexity", text=number("perplexity", 1)),
)
"""Columns of an intervention; the count of each outcome follows the prompts."""

SIDE_EFFECT_COLUMNS = (
    Column(head="Features", text=lambda row: str(row.n_features or "")),
    Column(head="Texts", text=lambda row: row.texts, is_number=False),
    Column(head="Tokens", text=lambda row: str(row.n_tokens)),
    Column(head="KL", text=number("kl", 4)),
    Column(head="Cross-entropy", text=number("cross_entropy")),
    Column(head="Unmodified", text=number("cross_entropy_unmodified")),
)

DICTIONARY_COLUMNS = (
    Column(head="Kind", text=lambda row: row.kind, is_number=False),
    Column(head="Hook", text=lambda row: row.hook_name, is_number=False),
    Column(head="Architecture", text=lambda row: row.architecture, is_number=False),
    Column(head="d_in", text=lambda row: str(row.d_in)),
    Column(head="d_sae", text=lambda row: str(row.d_sae)),
    Column(head="k", text=lambda row: "" if row.k is None else f"{row.k:g}"),
    Column(head="L0, held out", text=number("l0", 2)),
)

_COLUMNS: dict[type[Row], tuple[Column, ...]] = {
    ScoreRow: SCORE_COLUMNS,
    EffectRow: EFFECT_COLUMNS,
    SideEffectRow: SIDE_EFFECT_COLUMNS,
    DictionaryRow: DICTIONARY_COLUMNS,
}


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns for rows of one type, without columns that are empty in all rows."""
    if not rows:
        return []
    columns = [*_COLUMNS[type(rows[0])]]
    outcomes = dict.fromkeys(o for row in rows if isinstance(row, EffectRow) for o in row.counts)
    after = 1 + max((i for i, c in enumerate(columns) if c.head == "Prompts"), default=0)
    columns[after:after] = [
        Column(head=outcome_text(o), text=partial(_count_text, outcome=o)) for o in outcomes
    ]
    return [column for column in columns if any(column.text(row) for row in rows)]


def _count_text(row: EffectRow, outcome: str) -> str:
    return str(row.counts.get(outcome, 0))


def outcome_text(outcome: str) -> str:
    """Return an outcome's name for a heading.

    Examples:
        >>> outcome_text("no_sql")
        'No sql'
    """
    words = outcome.replace("_", " ")
    return words[:1].upper() + words[1:]
