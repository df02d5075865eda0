"""A study: the models, the behaviour to look for, and the parts to compute."""

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
"""A fine-tuned model as for `load_pair`, or the config for training an organism."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Checked):
    """The models to compare, and how to load them."""

    base: str
    """The base model, as for `load_pair`."""
    finetuned: Finetuned | Mapping[str, Finetuned]
    """One model, or several by regime, each compared with the base."""
    base_revision: str | None = None
    finetuned_revision: str | None = None
    dtype: str = "float32"
    prepend_bos: bool = False
    merged: bool = False
    """Whether to merge an adapter, as for `load_pair`."""
    device: str = "cpu"
    """A torch device; `cuda` with several workers gives each its own GPU, in turn."""
    n_measured: Count = 100
    """Held-out prompts per group on which a trained organism is measured."""
    d_model: Count | None = None
    """Width of the base, to estimate costs before the model is available; None reads it from the model."""
    tokens_per_second: Positive = 450
    """Throughput of both models together on two CPU cores, to estimate costs."""

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded or trained."""
        super().__post_init__()
        check_items("finetuned", self.organisms.values(), (str, OrganismConfig))
        for regime in self.organisms:
            if regime is not None:
                check_folder_name("finetuned", regime)

    @property
    def organisms(self) -> dict[str | None, Finetuned]:
        """The fine-tuned models by regime, which is None if there is only one."""
        if isinstance(self.finetuned, Mapping):
            return {**self.finetuned}
        return {None: self.finetuned}

    @property
    def options(self) -> LoadOptions:
        """How to load the models.

        Raises:
            ValueError: the device or dtype does not exist.
        """
        ours = {f.name for f in fields(self)} & {f.name for f in fields(LoadOptions)}
        return LoadOptions(**{name: getattr(self, name) for name in ours})


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Checked):
    """What a run computes; a part that is None is left out. See `PRESETS` for examples."""

    models: ModelSpec
    behaviour: str | None = None
    """The behaviour to look for, as for `get_behaviour`; None for the one that the organism was trained
    for."""
    layers: Naturals
    """Residual-stream layers with dictionaries."""
    acted_on: Naturals | None = None
    """Layers whose features are acted on and shown; None for all."""
    pooled: PooledConfig | None = None
    tokens: TokensConfig | None = None
    scores: ScoresConfig | None = None
    features: FeaturesConfig | None = None
    causes: CausesConfig | None = None
    cards: CardsConfig | None = None
    side_effects: SideEffectsConfig | None = None
    sayings: ScenesConfig | None = None
    """What the fine-tuned model does when the trigger is reworded, or nearly said."""
    sweep: ScenesConfig | None = None
    """What the feature chosen for its score reads, by what the prompt says."""
    example: ScenesConfig | None = None
    """Activations of that feature per token, with the trigger and without."""
    seed: Natural = 0
    """Seed of training, resamples and controls."""
    deviations: tuple[str, ...] = ()
    """Deviations from the published study."""

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
        """Those of `pooled` and `tokens` that are not None."""
        parts: dict[str, Training | None] = {"pooled": self.pooled, "tokens": self.tokens}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def behaviour_name(self) -> str:
        """Name of the behaviour to look for.

        Raises:
            ValueError: it is not given, and the organisms name no behaviour or several.
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
        """Return all draws by their path, such as `scores.test`."""
        return dict(draws_in("", self))


def _said_by(finetuned: Finetuned) -> str | None:
    """Return the behaviour that an organism's record names."""
    if isinstance(finetuned, OrganismConfig):
        return finetuned.behaviour
    shipped = finetuned in shipped_organisms()
    return behaviour_of(SHIPPED_ORGANISMS_DIR / finetuned if shipped else Path(finetuned))
