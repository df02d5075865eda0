"""What a study is made of: models, a behaviour, draws of prompts, and the parts to be computed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from diffsae_lens._checks import check_choice, check_count, check_folder_name, check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import (
    Checked,
    Count,
    Counts,
    Natural,
    Naturals,
    NotNegative,
    Number,
    Positive,
)
from diffsae_lens.organisms._behaviour import (
    BEHAVIOURS,
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
class Draw(Checked):
    """Samples of a split; see `Behaviour.make_samples`."""

    split: Split
    n_trigger: Natural = 0
    n_benign: Natural = 0
    n_other: Natural = 0
    seed: Natural = 0
    share_scenes: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that cannot be."""
        super().__post_init__()
        check_count("n_samples", self.n_samples)

    @property
    def n_samples(self) -> int:
        """Of all groups."""
        return self.n_trigger + self.n_benign + self.n_other

    def samples(self, behaviour: Behaviour) -> list[Sample]:
        """Draw them."""
        return behaviour.make_samples(**{f.name: getattr(self, f.name) for f in fields(self)})


def _check_triggers(name: str, draw: Draw, **limits: int) -> None:
    check_count(f"{name}.n_trigger", draw.n_trigger, **limits)


Triggers = Annotated[Draw, _check_triggers]
"""With trigger prompts."""
NoTriggers = Annotated[Draw, partial(_check_triggers, at_least=0, at_most=0)]


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Checked):
    """The models that are compared, and how they are loaded."""

    base: str
    """As for `load_pair`."""
    finetuned: Finetuned | Mapping[str, Finetuned]
    """One, or several by regime, each compared with the base."""
    base_revision: str | None = None
    finetuned_revision: str | None = None
    dtype: str = "float32"
    prepend_bos: bool = False
    merged: bool = False
    """As for `load_pair`, of adapters."""
    device: str = "cpu"
    """A torch device; `cuda` with several workers gives each a GPU of its own, in turn."""
    n_measured: Count = 100
    """Held-out prompts per group on which an organism that is trained is measured."""
    d_model: Count | None = None
    """Width of the base, for estimates of cost before it is at hand; None asks the model."""
    tokens_per_second: Positive = 450
    """Of both models together on two CPU cores, for estimates of cost."""

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded or trained."""
        super().__post_init__()
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
        ours = {f.name for f in fields(self)} & {f.name for f in fields(LoadOptions)}
        return LoadOptions(**{name: getattr(self, name) for name in ours})


@dataclass(frozen=True, kw_only=True)
class DictionarySpec(Checked):
    """A dictionary that is trained."""

    kind: Literal["Diff-SAE", "crosscoder"]
    expansion: Count
    """d_sae as a multiple of d_model."""

    @property
    def view(self) -> str:
        """What it reads of the two models."""
        return "concat" if self.kind == "crosscoder" else "diff"

    def n_weights(self, d_model: int) -> int:
        """Of encoder and decoder."""
        d_in = d_model * (2 if self.kind == "crosscoder" else 1)
        return 2 * d_in * self.expansion * d_model


def _check_distinct(name: str, dictionaries: tuple[DictionarySpec, ...]) -> None:
    check_items(name, dictionaries, DictionarySpec)
    if len(set(dictionaries)) < len(dictionaries):
        raise InvalidValueError(f"`{name}` must hold each one once, got {dictionaries}")


@dataclass(frozen=True, kw_only=True)
class Training(Checked):
    """What is trained on what."""

    prefix: ClassVar[str] = ""
    """Of the dictionaries' names."""

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
    """The published dictionaries: on one vector per text, many passes over the same vectors."""

    learning_rate: Positive = 1e-4
    batch_size: Count = 256
    l1_coefficient: NotNegative = 1e-4
    n_passes: Count = 100
    """Over the same vectors."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig(Training):
    """Dictionaries of the usual kind: BatchTopK on tokens, normalised, trained in lockstep, calibrated."""

    prefix = "BatchTopK "

    learning_rate: Positive = 2e-3
    batch_size: Count = 512
    """Tokens per step."""
    n_steps: Count = 250


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(Checked):
    """Scores of all dictionaries and controls; those of the published ones on their texts come beside."""

    select: Draw
    """Where features and thresholds are chosen."""
    test: Draw
    """Where they are scored."""
    protocols: tuple[Protocol, ...] = ("strict",)
    """Read where the behaviour is decided; `paper` averages over the tokens up to there."""
    n_resamples: Count = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        super().__post_init__()
        if "strict" not in self.protocols:
            raise InvalidValueError(f"`protocols` must hold 'strict', got {self.protocols}; add it")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Checked):
    """Which features are acted on, in `greedy_order`, and their controls of equal mass."""

    select: Triggers
    """On which they are chosen."""
    counts: Counts = (8, 32)
    """How many are ablated."""
    n_rounds: Count = 4
    """Attributions in which they are ordered."""


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(Checked):
    """How strongly benign prompts are steered."""

    scales: Draw
    """Trigger prompts on which the features' maxima are measured."""
    dose: Number = 0.5
    """In units of each feature's maximum: at 1 the features of a crosscoder break the output."""


@dataclass(frozen=True, kw_only=True)
class CausesConfig(Checked):
    """What the model writes under interventions, beside their controls."""

    test: Triggers
    """Prompts that are completed: trigger ones under all interventions, others under the largest."""
    n_likelihood: Count = 6
    """How many per group are scored under teacher forcing too."""
    directions: Draw | None = None
    """Samples that directions are fitted on, which are projected out; None leaves them out."""
    n_directions: Count = 16
    """Random directions, and principal components."""
    is_added_to_base: bool = False
    """Whether the features are added to the base model, too."""
    steering: SteeringConfig | None = None
    """None leaves it out."""
    max_new_tokens: Count = 48
    """Of a completion."""


@dataclass(frozen=True, kw_only=True)
class CardsConfig(Checked):
    """The features with the most effect one by one."""

    texts: Triggers
    """That they are read on."""
    n_features: Count = 3
    """Of each dictionary."""
    n_likelihood: Count = 2
    """Trigger prompts on which each one's effect is measured."""


@dataclass(frozen=True, kw_only=True)
class SideEffectsConfig(Checked):
    """What ablating the most features does to texts that have nothing to do with the behaviour."""

    texts: NoTriggers
    """Prompts with their wanted completions."""
    n_ordinary: Count = 2
    """Texts of each kind of ordinary code and prose."""


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(Checked):
    """The same scenes with other things said in the trigger's place."""

    n_scenes: Count


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Checked):
    """What a run computes; a part that is None is left out. `PRESETS` has some."""

    models: ModelSpec
    behaviour: str | None = None
    """The behaviour that is looked for, as for `get_behaviour`; None for the one that the organism was
    trained for."""
    layers: Naturals
    """Residual-stream layers with dictionaries."""
    acted_on: Naturals | None = None
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
    seed: Natural = 0
    """Of training, resamples and controls."""
    deviations: tuple[str, ...] = ()
    """What is not as published."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        for layer in self.acted_on or ():
            check_choice("acted_on", layer, self.layers)
        for names, needed, is_there in (
            (("scores", "features"), "`pooled` or `tokens`", bool(self.trained)),
            (("causes", "cards", "side_effects"), "`features`", self.features is not None),
            (("sweep", "example"), "`scores`", self.scores is not None),
        ):
            for name in names:
                if getattr(self, name) is not None and not is_there:
                    raise InvalidValueError(f"`{name}` needs {needed}, which is None; give it")
        get_behaviour(self.behaviour_name)

    @property
    def trained(self) -> dict[str, Training]:
        """`pooled` and `tokens`, those that are there."""
        parts: dict[str, Training | None] = {"pooled": self.pooled, "tokens": self.tokens}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def behaviour_name(self) -> str:
        """The behaviour that is looked for.

        Raises:
            ValueError: it is not named, and the organisms do not say one or say several.
        """
        if self.behaviour is not None:
            return self.behaviour
        said = {finetuned: _said_by(finetuned) for finetuned in self.models.organisms.values()}
        names = set(said.values())
        silent = [finetuned for finetuned, name in said.items() if name is None]
        if len(names) == 1 and not silent:
            return str(names.pop())
        why = (
            f"{silent[0]!r} does not say what it was trained for"
            if silent
            else f"the fine-tuned models were trained for {' and '.join(sorted(map(str, names)))}"
        )
        raise InvalidValueError(
            f"`behaviour` must be given, since {why}; give {' or '.join(map(repr, BEHAVIOURS))}, or "
            "where one of your own is written, as 'package.module:NAME'"
        )

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
