"""What a study is made of: models, a behaviour, draws of prompts, and the parts to be computed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from diffsae_lens._checks import (
    check_choice,
    check_count,
    check_counts,
    check_folder_name,
    check_items,
    check_number,
)
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import check_fields
from diffsae_lens.organisms._behaviour import (
    Behaviour,
    Sample,
    Split,
    behaviour_of,
    get_behaviour,
)
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.pair._model_files import SHIPPED_ORGANISMS_DIR, shipped_organisms
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.results import Protocol

Finetuned = str | OrganismConfig
"""A fine-tuned model as `load_pair` takes it, or how to train an organism."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Samples of a split; see `Behaviour.make_samples`."""

    split: Split
    n_trigger: int = 0
    n_benign: int = 0
    n_other: int = 0
    seed: int = 0
    share_scenes: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that cannot be."""
        check_fields(self)
        check_choice("split", self.split, get_args(Split))
        for name in ("n_trigger", "n_benign", "n_other", "seed"):
            check_count(name, getattr(self, name), at_least=0)
        check_choice("share_scenes", self.share_scenes, (True, False))
        check_count("n_samples", self.n_samples)

    @property
    def n_samples(self) -> int:
        """Of all groups."""
        return self.n_trigger + self.n_benign + self.n_other

    def samples(self, behaviour: Behaviour) -> list[Sample]:
        """Draw them."""
        return behaviour.make_samples(**{f.name: getattr(self, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The models that are compared, and how they are loaded."""

    base: str
    """As for `load_pair`."""
    finetuned: Finetuned | Mapping[str, Finetuned]
    """One, or several by regime, each compared with the base."""
    base_revision: str | None = None
    finetuned_revision: str | None = None
    dtype: str = "float32"
    prepend_bos: bool = False
    device: str = "cpu"
    """A torch device; `cuda` with several workers gives each a GPU of its own, in turn."""
    n_measured: int = 100
    """Held-out prompts per group on which an organism that is trained is measured."""
    d_model: int | None = None
    """Width of the base, for estimates of cost before it is at hand; None asks the model."""
    tokens_per_second: int | float = 450
    """Of both models together on two CPU cores, for estimates of cost."""

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded or trained."""
        check_fields(self)
        check_count("n_measured", self.n_measured)
        if self.d_model is not None:
            check_count("d_model", self.d_model)
        check_number("tokens_per_second", self.tokens_per_second, low=0, low_open=True)
        check_items("finetuned", self.organisms.values(), (str, OrganismConfig))
        for regime in self.organisms:
            if regime is not None:
                check_folder_name("finetuned", regime)

    @property
    def organisms(self) -> dict[str | None, Finetuned]:
        """By regime, which is None where there is one alone."""
        if isinstance(self.finetuned, Mapping):
            return {**self.finetuned}
        return {None: self.finetuned}

    @property
    def options(self) -> LoadOptions:
        """How they are loaded.

        Raises:
            ValueError: a device or a type that does not exist.
        """
        return LoadOptions(
            device=self.device,
            dtype=self.dtype,
            base_revision=self.base_revision,
            finetuned_revision=self.finetuned_revision,
            prepend_bos=self.prepend_bos,
        )


@dataclass(frozen=True, kw_only=True)
class DictionarySpec:
    """A dictionary that is trained."""

    kind: Literal["Diff-SAE", "crosscoder"]
    expansion: int
    """d_sae as a multiple of d_model."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check_fields(self)
        check_choice("kind", self.kind, ("Diff-SAE", "crosscoder"))
        check_count("expansion", self.expansion)

    @property
    def view(self) -> str:
        """What it reads of the two models."""
        return "concat" if self.kind == "crosscoder" else "diff"

    def n_weights(self, d_model: int) -> int:
        """Of encoder and decoder."""
        d_in = d_model * (2 if self.kind == "crosscoder" else 1)
        return 2 * d_in * self.expansion * d_model


@dataclass(frozen=True, kw_only=True)
class PooledConfig:
    """The published dictionaries: on one vector per text, many passes over the same vectors."""

    texts: Draw
    dictionaries: tuple[DictionarySpec, ...]
    k: int = 32
    """Of a crosscoder."""
    learning_rate: float = 1e-4
    batch_size: int = 256
    l1_coefficient: float = 1e-4
    n_passes: int = 100
    """Over the same vectors."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        _check_training(self, "n_passes")
        check_number("l1_coefficient", self.l1_coefficient, low=0)

    @property
    def by_name(self) -> dict[str, DictionarySpec]:
        """The dictionaries by name."""
        return {f"{spec.kind} {spec.expansion}x": spec for spec in self.dictionaries}


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Dictionaries of the usual kind: BatchTopK on tokens, normalised, thresholds calibrated."""

    texts: Draw
    dictionaries: tuple[DictionarySpec, ...]
    """Trained in lockstep."""
    k: int = 32
    """Active features per token (L0)."""
    learning_rate: float = 2e-3
    batch_size: int = 512
    """Tokens per step."""
    n_steps: int = 250

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        _check_training(self, "n_steps")

    @property
    def by_name(self) -> dict[str, DictionarySpec]:
        """The dictionaries by name."""
        return {f"BatchTopK {spec.kind} {spec.expansion}x": spec for spec in self.dictionaries}


@dataclass(frozen=True, kw_only=True)
class ScoresConfig:
    """Scores of all dictionaries and controls; those of the published ones on their texts come beside."""

    select: Draw
    """Where features and thresholds are chosen."""
    test: Draw
    """Where they are scored."""
    protocols: tuple[Protocol, ...] = ("strict",)
    """Read where the behaviour is decided; `paper` averages over the tokens up to there."""
    n_resamples: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        check_fields(self)
        check_count("n_resamples", self.n_resamples)
        if "strict" not in self.protocols:
            raise InvalidValueError(f"`protocols` must hold 'strict', got {self.protocols}; add it")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which features are acted on, in `greedy_order`, and their controls of equal mass."""

    select: Draw
    """Trigger prompts on which they are chosen."""
    counts: tuple[int, ...] = (8, 32)
    """How many are ablated."""
    n_rounds: int = 4
    """Attributions in which they are ordered."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        check_count("select.n_trigger", self.select.n_trigger)
        check_count("n_rounds", self.n_rounds)
        check_counts("counts", self.counts)


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """How strongly benign prompts are steered."""

    scales: Draw
    """Trigger prompts on which the features' maxima are measured."""
    dose: int | float = 0.5
    """In units of each feature's maximum: at 1 the features of a crosscoder break the output."""

    def __post_init__(self) -> None:
        """Refuse what is not a number."""
        check_fields(self)
        check_number("dose", self.dose)


@dataclass(frozen=True, kw_only=True)
class CausesConfig:
    """What the model writes under interventions, beside their controls."""

    test: Draw
    """Prompts that are completed: trigger ones under all interventions, others under the largest."""
    n_likelihood: int = 6
    """How many per group are scored under teacher forcing too."""
    directions: Draw | None = None
    """Samples that directions are fitted on, which are projected out; None leaves them out."""
    n_directions: int = 16
    """Random directions, and principal components."""
    is_added_to_base: bool = False
    """Whether the features are added to the base model, too."""
    steering: SteeringConfig | None = None
    """None leaves it out."""
    max_new_tokens: int = 48
    """Of a completion."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        check_count("test.n_trigger", self.test.n_trigger)
        for name in ("n_likelihood", "n_directions", "max_new_tokens"):
            check_count(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class CardsConfig:
    """The features with the most effect one by one."""

    texts: Draw
    """That they are read on."""
    n_features: int = 3
    """Of each dictionary."""
    n_likelihood: int = 2
    """Trigger prompts on which each one's effect is measured."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        check_count("texts.n_trigger", self.texts.n_trigger)
        for name in ("n_features", "n_likelihood"):
            check_count(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SideEffectsConfig:
    """What ablating the most features does to texts that have nothing to do with the behaviour."""

    texts: Draw
    """Prompts without the trigger, with their wanted completions."""
    n_ordinary: int = 2
    """Texts of each kind of ordinary code and prose."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        check_count("texts.n_trigger", self.texts.n_trigger, at_least=0, at_most=0)
        check_count("n_ordinary", self.n_ordinary)


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """The same scenes with other things said in the trigger's place."""

    n_scenes: int

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_fields(self)
        check_count("n_scenes", self.n_scenes)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a run computes; a part that is None is left out. `PRESETS` has some."""

    models: ModelSpec
    behaviour: str | None = None
    """The behaviour that is looked for, as for `get_behaviour`; None for the one that the organism was
    trained for."""
    layers: tuple[int, ...]
    """Residual-stream layers with dictionaries."""
    acted_on: tuple[int, ...] | None = None
    """The layers whose features are acted on and shown; None for all."""
    pooled: PooledConfig | None = None
    tokens: TokensConfig | None = None
    scores: ScoresConfig | None = None
    features: FeaturesConfig | None = None
    causes: CausesConfig | None = None
    cards: CardsConfig | None = None
    side_effects: SideEffectsConfig | None = None
    sayings: ScenesConfig | None = None
    """What the fine-tuned model does where the trigger is said in other ways, or nearly."""
    sweep: ScenesConfig | None = None
    """What the feature chosen for its score reads, by what is said."""
    example: ScenesConfig | None = None
    """That feature token by token, with the trigger and without."""
    seed: int = 0
    """Of training, resamples and controls."""
    deviations: tuple[str, ...] = ()
    """What is not as published."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_fields(self)
        check_count("seed", self.seed, at_least=0)
        check_counts("layers", self.layers, at_least=0)
        if self.acted_on is not None:
            check_counts("acted_on", self.acted_on, at_least=0)
            for layer in self.acted_on:
                check_choice("acted_on", layer, self.layers)
        has_dictionaries = self.pooled is not None or self.tokens is not None
        for names, needed, is_there in (
            (("scores", "features"), "`pooled` or `tokens`", has_dictionaries),
            (("causes", "cards", "side_effects"), "`features`", self.features is not None),
            (("sweep", "example"), "`scores`", self.scores is not None),
        ):
            for name in names:
                if getattr(self, name) is not None and not is_there:
                    raise InvalidValueError(f"`{name}` needs {needed}, which is None; give it")
        get_behaviour(self.behaviour_name)

    @property
    def behaviour_name(self) -> str:
        """The behaviour that is looked for.

        Raises:
            ValueError: it is not named, and the organisms do not say one or say several.
        """
        if self.behaviour is not None:
            return self.behaviour
        said = {_said_by(finetuned) for finetuned in self.models.organisms.values()}
        if len(said) > 1 or None in said:
            raise InvalidValueError(
                f"`behaviour` must be named: the fine-tuned models say {sorted(map(str, said))} of theirs"
            )
        return str(said.pop())

    def draws(self) -> dict[str, Draw]:
        """All draws, by where they stand, such as `scores.test`."""
        return dict(_draws_in("", self))


def _said_by(finetuned: Finetuned) -> str | None:
    """The behaviour of an organism, by what its record says."""
    if isinstance(finetuned, OrganismConfig):
        return finetuned.behaviour
    shipped = finetuned in shipped_organisms()
    return behaviour_of(SHIPPED_ORGANISMS_DIR / finetuned if shipped else Path(finetuned))


def _draws_in(name: str, record: Any) -> Iterator[tuple[str, Draw]]:
    if isinstance(record, Draw):
        yield name, record
    elif is_dataclass(record):
        for field in fields(record):
            inner = f"{name}.{field.name}" if name else field.name
            yield from _draws_in(inner, getattr(record, field.name))


def _check_training(config: PooledConfig | TokensConfig, *counts: str) -> None:
    """Refuse numbers that a dictionary cannot be trained with."""
    check_items("dictionaries", config.dictionaries, DictionarySpec)
    if len(set(config.dictionaries)) < len(config.dictionaries):
        raise InvalidValueError(
            f"`dictionaries` must hold each one once, got {config.dictionaries}"
        )
    for name in ("k", "batch_size", *counts):
        check_count(name, getattr(config, name))
    check_number("learning_rate", config.learning_rate, low=0, low_open=True)
