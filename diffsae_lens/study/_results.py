"""Results of a run, as typed rows: the only reader of `results.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from diffsae_lens._artifact import read_json
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.results import (
    CellRow,
    ContrastRow,
    DictionaryRow,
    EffectRow,
    ExamplePrompt,
    FeatureCard,
    OrganismRow,
    PublishedRow,
    Row,
    SayingRow,
    ScoreRow,
    SideEffectRow,
    SweepRow,
    VarianceRow,
)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The contents of `results.json`; a part that the plan does not compute is empty."""

    config: Mapping[str, Any]
    """The `StudyConfig`, as JSON."""
    versions: Mapping[str, str]
    """Versions of the packages that made the results."""
    behaviour: str
    """The name of the behaviour."""
    dictionaries: tuple[DictionaryRow, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    """Scores of both protocols."""
    effects: tuple[EffectRow, ...] = ()
    side_effects: tuple[SideEffectRow, ...] = ()
    cards: tuple[FeatureCard, ...] = ()
    sayings: tuple[SayingRow, ...] = ()
    sweep: tuple[SweepRow, ...] = ()
    example: tuple[ExamplePrompt, ...] = ()
    organisms: tuple[OrganismRow, ...] = ()
    variance: tuple[VarianceRow, ...] = ()
    contrasts: tuple[ContrastRow, ...] = ()
    published: tuple[PublishedRow, ...] = ()
    deviations: tuple[str, ...] = ()
    """Deviations from the published study."""
    cells: tuple[CellRow, ...] = field(default=(), repr=False)

    @classmethod
    def from_dict(cls, results: Mapping[str, Any]) -> "Results":
        """Read results from JSON.

        Raises:
            ValueError: a part is missing or unknown, or one of its rows is not valid.
        """
        try:
            rows: dict[str, Any] = {
                name: tuple(of.from_dict(row) for row in results[name]) for name, of in ROWS.items()
            }
            return cls(**{**results, "deviations": tuple(results["deviations"]), **rows})
        except (KeyError, TypeError) as error:  # names missing or unknown parts
            raise InvalidValueError(
                f"these are not results of a study ({error}); another version of this package made them"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read `results.json`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, or of another version.
        """
        return cls.from_dict(read_json(Path(path)))

    def as_dict(self) -> dict[str, Any]:
        """Return the results as JSON stores them."""
        return {
            part.name: [row.as_dict() for row in getattr(self, part.name)]
            if part.name in ROWS
            else getattr(self, part.name)
            for part in fields(self)
        }


ROWS: dict[str, type[Row]] = {
    name: get_args(hint)[0]
    for name, hint in get_type_hints(Results).items()
    if get_origin(hint) is tuple and get_args(hint)[0] is not str
}
"""Row type of every part."""
