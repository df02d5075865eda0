"""Settings of an audit."""

from dataclasses import dataclass

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, Count, Fraction, Natural, Positive

MIN_TEXTS = 40
"""Fewer texts cannot hold both something rare and something to compare it with."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Checked):
    """Settings of an audit. Statistics of clean models hold only for audits with the same settings."""

    n_prompt_tokens: Count = 160
    """Tokens read per text; longer texts are cut, and the report says how many were."""
    n_new_tokens: Count = 24
    """Tokens that the suspect writes after each text. Eight are too few to see anything."""
    n_folds: Count = 2
    """Number of imitators; each learns from all texts except those of its own fold."""
    lora_rank: Count = 8
    """Rank of an imitator's adapter. It is on the upper half of the layers, for two thirds of the time that
    all layers take."""
    learning_rate: Positive = 1.5e-3
    """Learning rate of an imitator, after a short warm-up."""
    batch_size: Count = 4
    """Texts per training step of an imitator."""
    min_steps: Count = 40
    """Training steps of an imitator before the residuals of its own fold are first read."""
    max_steps: Count = 60
    """Steps after which training stops even if the bulk of its residuals is still falling; the audit then
    says so."""
    steps_per_reading: Count = 20
    """Steps between two readings."""
    n_candidates: Count = 12
    """Candidates from the texts that enter the experiments."""
    n_lexicon: Natural = 6
    """Candidates from the lexicon, after a first reading of all its entries; 0 leaves it out."""
    n_finalists: Count = 3
    """Candidates in the last experiment."""
    n_texts: Count = 12
    """Held-out texts that each finalist is put into."""
    n_mates: Count = 4
    """Other phrases of its type that are put into the same texts."""
    alpha: Fraction = 0.05
    """Share of clean models that may be called suspicious."""
    seed: Natural = 0
    """Seed of the folds, the imitators and the draws."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        super().__post_init__()
        if self.n_folds < 2:
            raise InvalidValueError(
                "`n_folds` must be at least 2: a text needs an imitator that never saw it"
            )
        if (
            self.max_steps - self.min_steps
        ) % self.steps_per_reading or self.max_steps < self.min_steps:
            raise InvalidValueError(
                f"`max_steps` {self.max_steps} must be `min_steps` {self.min_steps}, or a multiple of "
                f"`steps_per_reading` {self.steps_per_reading} more"
            )
        if self.n_finalists > self.n_candidates:
            raise InvalidValueError(
                f"`n_finalists` {self.n_finalists} must be at most `n_candidates` {self.n_candidates}"
            )
