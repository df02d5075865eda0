"""What a run found, as typed rows: the only reader of `results.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffsae_lens._artifact import read_json
from diffsae_lens.results import (
    DictionaryRow,
    EffectRow,
    FeatureCard,
    Row,
    SayingRow,
    ScoreRow,
    SideEffectRow,
    SweepRow,
)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What `results.json` holds; a part that the plan does not make is empty."""

    config: Mapping[str, Any]
    versions: Mapping[str, str]
    behaviour: str
    dictionaries: tuple[DictionaryRow, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    effects: tuple[EffectRow, ...] = ()
    side_effects: tuple[SideEffectRow, ...] = ()
    cards: tuple[FeatureCard, ...] = ()
    sayings: tuple[SayingRow, ...] = ()
    sweep: tuple[SweepRow, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    organisms: tuple[Mapping[str, Any], ...] = ()
    variance: tuple[Mapping[str, Any], ...] = ()
    contrasts: tuple[Mapping[str, Any], ...] = ()
    published: tuple[Mapping[str, Any], ...] = ()
    deviations: tuple[str, ...] = ()
    cells: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_dict(cls, results: Mapping[str, Any]) -> "Results":
        """Read results back from JSON.

        Raises:
            ValueError: a part is missing or not known, or a row of one is not valid.
        """
        names = {part.name for part in fields(cls)}
        if set(results) != names:
            raise ValueError(
                f"results lack {sorted(names - set(results))} and have {sorted(set(results) - names)}, "
                "which is not known; they were made by another version of this package"
            )
        typed: dict[str, Any] = {
            name: tuple(of.from_dict(row) for row in results[name]) for name, of in _ROWS.items()
        }
        plain: dict[str, Any] = {
            name: tuple(part) if isinstance(part, list) else part for name, part in results.items()
        }
        return cls(**plain | typed)

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read `results.json`."""
        return cls.from_dict(read_json(Path(path)))


_ROWS: dict[str, type[Row]] = {
    "dictionaries": DictionaryRow,
    "scores": ScoreRow,
    "effects": EffectRow,
    "side_effects": SideEffectRow,
    "cards": FeatureCard,
    "sayings": SayingRow,
    "sweep": SweepRow,
}
