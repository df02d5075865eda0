"""The parts of a study: the dictionaries to train, and what to compute with them."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from diffsae_lens._checks import check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, Count, Counts, NotNegative, Number, Positive
from diffsae_lens.results import Protocol
from diffsae_lens.study._draw import Draw, NoTriggers, Triggers


@dataclass(frozen=True, kw_only=True)
class DictionarySpec(Checked):
    """A dictionary to train."""

    kind: Literal["Diff-SAE", "crosscoder"]
    expansion: Count
    """d_sae as a multiple of d_model."""

    @property
    def view(self) -> str:
        """The view of the two models that it reads."""
        return "concat" if self.kind == "crosscoder" else "diff"

    def n_weights(self, d_model: int) -> int:
        """Return the number of weights in encoder and decoder."""
        d_in = d_model * (2 if self.kind == "crosscoder" else 1)
        return 2 * d_in * self.expansion * d_model


def _check_distinct(name: str, dictionaries: tuple[DictionarySpec, ...]) -> None:
    check_items(name, dictionaries, DictionarySpec)
    if len(set(dictionaries)) < len(dictionaries):
        raise InvalidValueError(f"`{name}` must hold each one once, got {dictionaries}")


@dataclass(frozen=True, kw_only=True)
class Training(Checked):
    """Dictionaries to train, and the texts to train them on."""

    prefix: ClassVar[str] = ""
    """Prefix of the dictionaries' names."""

    texts: Draw
    dictionaries: Annotated[tuple[DictionarySpec, ...], _check_distinct]
    k: Count = 32
    """Active features per token (L0), or per text; published Diff-SAEs are dense."""

    @property
    def by_name(self) -> dict[str, DictionarySpec]:
        """The dictionaries by name."""
        return {f"{self.prefix}{spec.kind} {spec.expansion}x": spec for spec in self.dictionaries}


@dataclass(frozen=True, kw_only=True)
class PooledConfig(Training):
    """The published dictionaries: trained on one vector per text, with many passes over the same vectors."""

    learning_rate: Positive = 1e-4
    batch_size: Count = 256
    l1_coefficient: NotNegative = 1e-4
    n_passes: Count = 100
    """Passes over the same vectors."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig(Training):
    """Dictionaries of the usual kind: BatchTopK on tokens, normalised, trained in lockstep, calibrated."""

    prefix = "BatchTopK "

    learning_rate: Positive = 2e-3
    batch_size: Count = 512
    """Tokens per step."""
    n_steps: Count = 250
    n_harvests: Count = field(default=1, compare=False)
    """Cells that share the reading of the texts, for as many workers, 32 texts or more each. The dictionaries
    are the same."""


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(Checked):
    """Scores of all dictionaries and controls, and of the published ones on their training texts."""

    select: Draw
    """Samples on which features and thresholds are chosen."""
    test: Draw
    """Samples on which they are scored."""
    protocols: tuple[Protocol, ...] = ("strict",)
    """Protocols, which read where the behaviour is decided; `paper` averages over the tokens up to there."""
    n_resamples: Count = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        super().__post_init__()
        if "strict" not in self.protocols:
            raise InvalidValueError(f"`protocols` must hold 'strict', got {self.protocols}; add it")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Checked):
    """Which features to act on, in `greedy_order`, with controls of equal mass."""

    select: Triggers
    """Samples on which features are chosen."""
    counts: Counts = (8, 32)
    """Numbers of features to ablate."""
    n_rounds: Count = 4
    """Rounds of attribution in which features are ordered."""


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(Checked):
    """How strongly to steer benign prompts."""

    scales: Draw
    """Trigger prompts on which the features' maxima are measured."""
    dose: Number = 0.5
    """Dose in units of each feature's maximum; at 1, the features of a crosscoder break the output."""


@dataclass(frozen=True, kw_only=True)
class CausesConfig(Checked):
    """What the model writes under interventions and their controls."""

    test: Triggers
    """Prompts to complete: trigger prompts under all interventions, others under the largest ablation."""
    n_likelihood: Count = 6
    """Prompts per group that are also scored under teacher forcing."""
    directions: Draw | None = None
    """Samples to fit directions on, which are then projected out; None skips them."""
    n_directions: Count = 16
    """Number of random directions, and of principal components."""
    is_added_to_base: bool = False
    """Whether the features are also added to the base model."""
    steering: SteeringConfig | None = None
    """How to steer; None skips steering."""
    max_new_tokens: Count = 48
    """Maximum length of a completion."""


@dataclass(frozen=True, kw_only=True)
class CardsConfig(Checked):
    """The features with the largest effect, one by one."""

    texts: Triggers
    """Samples on which features are read."""
    n_features: Count = 3
    """Features per dictionary."""
    n_likelihood: Count = 2
    """Trigger prompts on which each feature's effect is measured."""


@dataclass(frozen=True, kw_only=True)
class SideEffectsConfig(Checked):
    """What the largest ablation does to texts that have nothing to do with the behaviour."""

    texts: NoTriggers
    """Prompts with their wanted completions."""
    n_ordinary: Count = 2
    """Texts per kind of ordinary code and prose."""


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(Checked):
    """The same scenes with other phrases in the trigger's place."""

    n_scenes: Count
