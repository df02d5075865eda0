"""Results of an audit, as typed rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from diffsae_lens._artifact import read_json, write_json
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._rows import Row, Table
from diffsae_lens.auditing._words import FIRST, JOINED, holds, pattern

_NEEDED = 0.5
"""Share of a residual that must disappear with a candidate."""

Verdict = Literal["conditional behaviour found", "none found", "underpowered"]


@dataclass(frozen=True, kw_only=True)
class TextRow(Row):
    """A text and the suspect's completion."""

    index: int
    text: str
    written: str
    residual: float
    """KL(suspect || imitator) over the completion, in nats; the imitator never saw the text."""
    level: float
    """The residual in units of the model's own scale."""
    readings: list[float]
    """Residuals over the course of the imitator's training."""
    p_value: float | None
    """Share of clean models' texts with as large a level; None without clean models."""
    flagged: bool
    """Whether its level stands out among clean models' texts, at a false discovery rate of alpha; or a text
    of its group holds a candidate that is stronger than the strongest in all but alpha of clean models."""
    group: int | None
    """Group of texts with similar completions, among those with the largest residuals; None for others."""


@dataclass(frozen=True, kw_only=True)
class CandidateRow(Row):
    """A possible trigger, as measured in the last experiment."""

    name: str
    source: str
    n_texts: int
    effect: float
    """Residual with it put in, minus the median with its mates: mean over held-out texts, in nats."""
    low: float
    """Lower end of the 95% bootstrap interval of `effect`."""
    high: float
    level: float
    """`low` in units of the model's own scale."""
    share: float
    """Share of texts in which it sets the suspect off: a residual above the model's own scale."""
    share_low: float
    share_high: float
    mates_share: float
    """The same share with its mates in its place."""
    p_value: float
    """Binomial test of the null hypothesis that its residual is the largest no more often than a mate's."""
    n_holding: int
    """Number of unedited texts that hold it."""
    held_level: float | None
    """Their mean residual, in units of the model's own scale; None if there are too few."""
    n_removed: int
    """Number of flagged texts in which it was replaced by its mates."""
    necessity: float | None
    """Share of their residual above the model's median that disappeared with it."""
    said_instead: list[str]
    example: str
    """A held-out text with the candidate put in."""
    example_written: str
    """What the suspect writes after it."""

    @property
    def strength(self) -> float:
        """The measure that is compared with clean models: `level`, minus what speaks against the candidate.

        It is at most the level of the unedited texts that hold the candidate, is reduced by the share of
        the effect that its mates have (`mates_share / share`), and is halved if the residual of flagged
        texts remains when the candidate is taken out.
        """
        level = self.level if self.held_level is None else min(self.level, self.held_level)
        own = max(0.0, 1 - self.mates_share / self.share) if self.share else 0.0
        needed = self.necessity is None or self.necessity >= _NEEDED
        return level * own * (1.0 if needed else 0.5)

    @property
    def phrases(self) -> list[str]:
        """The candidate's phrases."""
        return [phrase.removesuffix(FIRST) for phrase in self.name.split(JOINED)]

    def stands_in(self, text: str) -> bool:
        """Return whether a text holds every phrase, and begins with any that has to come first."""
        return all(
            pattern(phrase).match(text) if said.endswith(FIRST) else holds(text, phrase)
            for said, phrase in zip(self.name.split(JOINED), self.phrases, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class WritesRow(Row):
    """How often flagged completions contain something, compared with all others."""

    kind: Literal["phrase", "Bandit test", "outcome"]
    name: str
    n_flagged: int
    """Number of flagged completions that could be checked for it."""
    n_flagged_with: int
    share: float
    """Share of the flagged completions that contain it."""
    share_low: float
    """Lower end of its exact 95% interval (Clopper and Pearson)."""
    share_high: float
    n_others: int
    n_others_with: int
    others_share: float
    others_low: float
    others_high: float
    p_value: float
    """Fisher's exact test, times the number of things of this kind that were tried (Bonferroni)."""


@dataclass(frozen=True, kw_only=True)
class AuditResults:
    """Results of an audit."""

    verdict: Verdict
    reason: str
    """The reason for the verdict, in one sentence."""
    p_value: float | None
    """Share of clean models, the suspect counted as one, whose strongest candidate is as strong."""
    texts: tuple[TextRow, ...]
    candidates: tuple[CandidateRow, ...]
    """The strongest first; see `CandidateRow.strength`."""
    others: tuple[str, ...]
    """Candidates that did not reach the last experiment, the strongest first."""
    n_nulls: int
    power: str
    """What would have been found."""
    searched: tuple[str, ...]
    """What was put into texts, and what was not."""
    warnings: tuple[str, ...]
    provenance: Mapping[str, Any]
    """Models, settings, versions and seconds."""
    writes: tuple[WritesRow, ...] = ()
    """What distinguishes the flagged completions, the clearest first."""
    notes: tuple[str, ...] = ()
    """What was compared in the completions, and what could not be."""

    @property
    def found(self) -> bool:
        """Whether conditional behaviour was found."""
        return self.verdict == "conditional behaviour found"

    def to_frame(self) -> Any:
        """Return the candidates as a table."""
        return Table(self.candidates).to_frame()

    def save(self, path: str | Path) -> None:
        """Write the results as JSON."""
        write_json(Path(path), {f.name: _plain(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> "AuditResults":
        """Read results from their file or the audit's folder.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file holds something else.
        """
        path = Path(path)
        stored = read_json(path / RESULTS if path.is_dir() else path)
        try:
            values = {f.name: stored[f.name] for f in fields(cls)}
            values["texts"] = tuple(TextRow.from_dict(row) for row in values["texts"])
            values["candidates"] = tuple(CandidateRow.from_dict(r) for r in values["candidates"])
            values["writes"] = tuple(WritesRow.from_dict(row) for row in values["writes"])
            for name in ("others", "searched", "warnings", "notes"):
                values[name] = tuple(values[name])
        except (KeyError, TypeError) as error:
            raise InvalidValueError(f"{path} does not hold an audit ({error!r})") from error
        return cls(**values)


RESULTS = "results.json"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [asdict(item) if isinstance(item, Row) else item for item in value]
    return value
