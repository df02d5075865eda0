"""The demo's tables as plain text."""

from collections.abc import Sequence
from typing import Any

import pandas as pd


def score_text(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the score table; BIS and its ceiling are the paper's."""
    table = pd.DataFrame(rows).set_index("name")
    columns = ["n_features", "bis_last", "bis_mean", "ceiling", "auroc", "average_precision"]
    return table[columns].round(3).to_string()


def causal_text(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the causal table, attack rates with their 95% Wilson intervals."""
    table = pd.DataFrame(
        {
            "intervention": row["name"],
            "dictionary": row["dictionary"] or "",
            "n_features": row["n_features"],
            "prompts": row["group"],
            "attack rate": f"{row['attack_rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]",
            "unparseable": row["n_unparseable"],
            "log-odds": row["log_odds"],
            "cross-entropy": row["cross_entropy"],
        }
        for row in rows
    )
    return table.round(2).to_string(index=False)
