"""Which cells a study has: what each computes, of which organism and layer, and from which others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffsae_lens.organisms._behaviour import get_behaviour
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.pair._model_files import resolve_model
from diffsae_lens.study import _causes as causes
from diffsae_lens.study import _feature_cards as feature_cards
from diffsae_lens.study import _scoring as scoring
from diffsae_lens.study import _steps as steps
from diffsae_lens.study._cells import Cell, Cost, Run
from diffsae_lens.study._config import StudyConfig
from diffsae_lens.study._costs import NOTHING, Costs
from diffsae_lens.study._feasible import model_size, weights_identity
from diffsae_lens.study._organisms import CARD
from diffsae_lens.study._step import Models, Step


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A cell of a study, and what it is of."""

    part: str
    """What it computes, such as `scores`, or the dictionary that it trains."""
    regime: str | None
    layer: int | None
    """None for what is computed once for all layers."""
    cell: Cell


def stages_of(config: StudyConfig) -> list[Stage]:
    """List the cells of a study, in an order in which they can be computed.

    Raises:
        ValueError: there is no such model.
    """
    models = config.models
    d_model = models.d_model or model_size(models.base, models.base_revision).d_model
    costs = Costs(config, d_model)
    base_weights = weights_identity(models.base, models.base_revision)
    return [
        stage
        for regime in models.organisms
        for stage in _Stages(config, regime, costs, base_weights).all()
    ]


@dataclass
class _Stages:
    """The cells of one organism."""

    config: StudyConfig
    regime: str | None
    costs: Costs
    base_weights: str
    found: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec, finetuned = self.config.models, self.config.models.organisms[self.regime]
        self.behaviour = get_behaviour(self.config.behaviour_name)
        self.trained = finetuned if isinstance(finetuned, OrganismConfig) else None
        path = None if self.trained is not None else str(finetuned)
        self.models = Models(
            base=spec.base,
            finetuned=path,
            base_weights=self.base_weights,
            finetuned_weights=path and weights_identity(path, spec.finetuned_revision),
            base_revision=spec.base_revision,
            finetuned_revision=spec.finetuned_revision,
            dtype=spec.dtype,
            prepend_bos=spec.prepend_bos,
            layers=self.config.layers,
        )

    def all(self) -> list[Stage]:
        """The organism, what is read and said once, then layer by layer."""
        config, costs = self.config, self.costs
        self._organism()
        if config.pooled is not None:
            texts = config.pooled.texts
            self._add("pooled", steps.pool, texts, cost=costs.reading(texts))
        if config.tokens is not None:
            texts = config.tokens.texts
            self._add("tokens", steps.harvest_tokens, texts, cost=costs.reading(texts))
        for layer in config.layers:
            self._layer(layer)
        if config.sayings is not None and self.behaviour.sayings:
            self._add("sayings", causes.say, config.sayings, cost=costs.with_pair(60))
        return self.found

    def _organism(self) -> None:
        if self.trained is not None:
            training = steps.Training(
                name=f"organism-{self.regime}" if self.regime else "organism",
                config=self.trained,
                n_measured=self.config.models.n_measured,
            )
            cost = self.costs.training(self.trained)
            self._add("organism", steps.train_organism, training, cost=cost, pair=False)
        elif (Path(resolve_model(self.models.finetuned or "")) / CARD).exists():
            self._add("organism", steps.read_card, None, cost=NOTHING, pair=False)

    def _layer(self, layer: int) -> None:
        config, costs = self.config, self.costs
        dictionaries = dict(self._dictionaries(layer))
        if config.scores is not None:
            self._add(
                "scores", scoring.score_prompts, config.scores, layer, dictionaries,
                cost=costs.scores(),
            )  # fmt: skip
            if config.pooled is not None:
                published = {n: self._name(n, layer) for n in config.pooled.by_name}
                inputs = {"pooled": self._name("pooled"), **published}
                self._add(
                    "pooled_scores", scoring.score_pooled, config.scores.n_resamples, layer, inputs,
                    cost=costs.pooled_scores(), pair=False,
                )  # fmt: skip
        if layer not in (config.layers if config.acted_on is None else config.acted_on):
            return
        if config.features is not None:
            self._add(
                "features", causes.choose, config.features, layer, dictionaries,
                cost=costs.choosing(),
            )  # fmt: skip
        swept = config.sweep if self.behaviour.sweep else None
        chosen = dictionaries | {"features": self._name("features", layer)}
        scored = dictionaries | {"scores": self._name("scores", layer)}
        parts: tuple[tuple[str, Run, Any, Mapping[str, str], Cost], ...] = (
            ("causes", causes.causes, config.causes, chosen, costs.causes()),
            ("cards", feature_cards.make_cards, config.cards, chosen, costs.with_pair(60)),
            ("side_effects", causes.spare, config.side_effects, chosen, costs.with_pair(40)),
            ("sweep", scoring.sweep, swept, scored, costs.with_pair(60)),
            ("example", scoring.show_example, config.example, scored, costs.with_pair(5)),
        )
        for part, run, of_part, inputs, cost in parts:
            if of_part is not None:
                self._add(part, run, of_part, layer, inputs, cost=cost)

    def _dictionaries(self, layer: int) -> Iterator[tuple[str, str]]:
        """Train a layer's dictionaries; yields the cells by role."""
        config, inputs = self.config, {"pooled": self._name("pooled")}
        if config.pooled is not None:
            for name, spec in config.pooled.by_name.items():
                one = replace(config.pooled, dictionaries=(spec,))
                self._add(
                    name, steps.train_as_published, one, layer, inputs,
                    cost=self.costs.published(spec), pair=False,
                )  # fmt: skip
                yield name, self._name(name, layer)
        if config.tokens is not None:
            self._add(
                "dictionaries", steps.train_on_tokens, config.tokens, layer,
                {"tokens": self._name("tokens")}, cost=self.costs.on_tokens(), pair=False,
            )  # fmt: skip
            yield "dictionaries", self._name("dictionaries", layer)

    def _add(  # noqa: PLR0913
        self,
        part: str,
        run: Run,
        config: Any,
        layer: int | None = None,
        inputs: Mapping[str, str] | None = None,
        *,
        cost: Cost,
        pair: bool = True,
    ) -> None:
        step: Step[Any] = Step(
            models=self.models,
            behaviour_name=self.config.behaviour_name,
            layer=layer,
            seed=self.config.seed,
            config=config,
        )
        needs = {"organism": self._name("organism")} if pair and self.trained is not None else {}
        cell = Cell(
            name=self._name(part, layer),
            run=run,
            config=step,
            inputs={**needs, **(inputs or {})},
            cost=cost,
        )
        self.found.append(Stage(part=part, regime=self.regime, layer=layer, cell=cell))

    def _name(self, part: str, layer: int | None = None) -> str:
        return "/".join(str(n) for n in (self.regime, layer, part) if n is not None)
