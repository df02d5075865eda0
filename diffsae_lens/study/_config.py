"""A study: the models, the behaviour that is looked for, and the parts to be computed."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from diffsae_lens._checks import check_choice, check_folder_name, check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import (
    Checked,
    Count,
    Natural,
    Naturals,
    Positive,
)
from diffsae_lens.organisms._behaviour import (
    BEHAVIOURS,
    behaviour_of,
    get_behaviour,
)
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.pair._model_files import SHIPPED_ORGANISMS_DIR, shipped_organisms
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.study._draw import Draw, draws_in
from diffsae_lens.study._parts import (
    CardsConfig,
    CausesConfig,
    FeaturesConfig,
    PooledConfig,
    ScenesConfig,
    ScoresConfig,
    SideEffectsConfig,
    TokensConfig,
    Training,
)

Finetuned = str | OrganismConfig
"""A fine-tuned model as `load_pair` takes it, or how to train an organism."""


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
        return dict(draws_in("", self))


def _said_by(finetuned: Finetuned) -> str | None:
    """The behaviour of an organism, by what its record says."""
    if isinstance(finetuned, OrganismConfig):
        return finetuned.behaviour
    shipped = finetuned in shipped_organisms()
    return behaviour_of(SHIPPED_ORGANISMS_DIR / finetuned if shipped else Path(finetuned))
