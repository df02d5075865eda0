"""The cells of a study: what each computes, for which organism and layer, and from which other cells.

The cost of a cell is estimated next to it, for two CPU cores: fitted to measurements on the embedded model,
and scaled for larger models by how many tokens they read per second.
"""

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
from diffsae_lens.study._feasible import model_size, weights_identity
from diffsae_lens.study._organisms import CARD
from diffsae_lens.study._parts import DictionarySpec, PooledConfig, ScoresConfig, TokensConfig
from diffsae_lens.study._step import Models, Step

EMBEDDED_TOKENS_PER_SECOND = 450


def cells_of(config: StudyConfig) -> list[Cell]:
    """Return the cells of a study, each with a `Step`, in an order in which they can be computed.

    Raises:
        ValueError: there is no such model.
    """
    spec = config.models
    base_weights = weights_identity(spec.base, spec.base_revision)
    cells: list[Cell] = []
    for regime, finetuned in spec.organisms.items():
        trained = finetuned if isinstance(finetuned, OrganismConfig) else None
        path = None if trained is not None else str(finetuned)
        models = Models(
            spec=spec,
            finetuned=path,
            layers=config.layers,
            base_weights=base_weights,
            finetuned_weights=path and weights_identity(path, spec.finetuned_revision),
            dtype=spec.dtype,
            prepend_bos=spec.prepend_bos,
        )
        cells += _Cells(config=config, regime=regime, trained=trained, models=models).all()
    return cells


@dataclass(kw_only=True)
class _Cells:
    """The cells of one organism."""

    config: StudyConfig
    regime: str | None
    trained: OrganismConfig | None
    models: Models
    found: list[Cell] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.config.models
        self.d_model = spec.d_model or model_size(spec.base, spec.base_revision).d_model
        self.slower = EMBEDDED_TOKENS_PER_SECOND / spec.tokens_per_second
        self.behaviour = get_behaviour(self.config.behaviour_name)

    def all(self) -> list[Cell]:
        """Return the cells: the organism, what is read once, each layer, and the sayings."""
        config = self.config
        self._organism()
        if config.pooled is not None:
            self._read("pooled", steps.pool, config.pooled.texts)
        if config.tokens is not None:
            self._tokens(config.tokens)
        for layer in config.layers:
            self._layer(layer)
        if config.sayings is not None and self.behaviour.sayings:
            self._add("sayings", causes.say, config.sayings, cost=self._with_pair(60))
        return self.found

    def _organism(self) -> None:
        if self.trained is not None:
            n_measured = self.config.models.n_measured
            training = steps.OrganismTraining(config=self.trained, n_measured=n_measured)
            n_prompts = self.trained.n_steps * self.trained.batch_size
            cost = Cost(
                seconds=round(self.slower * (0.65 * n_prompts + 3 * n_measured)),
                gigabytes=round((4 if self.trained.lora_rank else 6) * max(1.0, self.slower), 1),
            )
            self._add("organism", steps.train_organism, training, cost=cost, pair=False)
        elif (Path(resolve_model(self.models.finetuned or "")) / CARD).exists():
            cost = Cost(seconds=1, gigabytes=0.5)
            self._add("organism", steps.read_card, None, cost=cost, pair=False)

    def _tokens(self, tokens: TokensConfig) -> None:
        n_shards = -(-tokens.texts.n_samples // steps.SEQUENCES_PER_SHARD)
        n_parts = min(tokens.n_harvests, n_shards)
        if n_parts == 1:
            self._read("tokens", steps.harvest_tokens, tokens.texts)
            return
        parts = [f"tokens_{i}" for i in range(n_parts)]
        for i, part in enumerate(parts):
            of_part = steps.HarvestPart(texts=tokens.texts, part=i, n_parts=n_parts)
            self._read(part, steps.harvest_part, of_part, tokens.texts.n_samples / n_parts)
        joined = {part: self._name(part) for part in parts}
        cost = Cost(seconds=5, gigabytes=1.0)
        self._add("tokens", steps.join_tokens, None, inputs=joined, cost=cost, pair=False)

    def _read(self, part: str, run: Run, config: Any, n_texts: float | None = None) -> None:
        seconds = (n_texts or config.n_samples) * 160 / EMBEDDED_TOKENS_PER_SECOND
        self._add(part, run, config, cost=self._with_pair(seconds))

    def _layer(self, layer: int) -> None:
        config = self.config
        dictionaries = dict(self._dictionaries(layer))
        n_dictionaries = sum(len(part.dictionaries) for part in config.trained.values())
        if config.scores is not None:
            self._scores(layer, config.scores, dictionaries)
        if layer not in (config.layers if config.acted_on is None else config.acted_on):
            return
        features, counts = config.features, ()
        if features is not None:
            n_prompts, counts = features.n_rounds * features.select.n_trigger, features.counts
            self._add(
                "features", causes.choose, features, layer, dictionaries,
                cost=self._with_pair(1.2 * n_dictionaries * n_prompts, more_gigabytes=1.5),
            )  # fmt: skip
        n_rows = 2 + 2 * len(counts) * n_dictionaries
        n_completed = 0 if config.causes is None else n_rows * config.causes.test.n_samples
        swept = config.sweep if self.behaviour.sweep else None
        chosen = dictionaries | {"features": self._name("features", layer)}
        scored = dictionaries | {"scores": self._name("scores", layer)}
        completing = self._with_pair(1.3 * n_completed, more_gigabytes=1.5)
        parts: tuple[tuple[str, Run, Any, Mapping[str, str], Cost], ...] = (
            ("causes", causes.causes, config.causes, chosen, completing),
            ("cards", feature_cards.make_cards, config.cards, chosen, self._with_pair(60)),
            ("side_effects", causes.spare, config.side_effects, chosen, self._with_pair(40)),
            ("sweep", scoring.sweep, swept, scored, self._with_pair(60)),
            ("example", scoring.show_example, config.example, scored, self._with_pair(5)),
        )
        for part, run, of_part, inputs, cost in parts:
            if of_part is not None:
                self._add(part, run, of_part, layer, inputs, cost=cost)

    def _scores(self, layer: int, scores: ScoresConfig, dictionaries: Mapping[str, str]) -> None:
        n_prompts = scores.select.n_samples + scores.test.n_samples
        self._add(
            "scores", scoring.score_prompts, scores, layer, dictionaries,
            cost=self._with_pair(0.55 * n_prompts, more_gigabytes=1.5),
        )  # fmt: skip
        pooled = self.config.pooled
        if pooled is not None:
            published = {name: self._name(name, layer) for name in pooled.by_name}
            n_features = self.d_model * sum(spec.expansion for spec in pooled.dictionaries)
            n_scored = pooled.texts.n_samples * n_features * scores.n_resamples
            self._add(
                "pooled_scores", scoring.score_pooled, scores.n_resamples, layer,
                {"pooled": self._name("pooled"), **published}, pair=False,
                cost=Cost(seconds=round(5.5e-9 * n_scored), gigabytes=3.0),
            )  # fmt: skip

    def _dictionaries(self, layer: int) -> Iterator[tuple[str, str]]:
        """Add the cells that train a layer's dictionaries, and yield their names by role."""
        pooled, tokens = self.config.pooled, self.config.tokens
        if pooled is not None:
            for name, spec in pooled.by_name.items():
                self._add(
                    name, steps.train_as_published, replace(pooled, dictionaries=(spec,)), layer,
                    {"pooled": self._name("pooled")}, pair=False, cost=self._published(pooled, spec),
                )  # fmt: skip
                yield name, self._name(name, layer)
        if tokens is not None:
            seconds = round(0.2 * tokens.n_steps * (self.d_model / 576) ** 2)
            self._add(
                "dictionaries", steps.train_on_tokens, tokens, layer,
                {"tokens": self._name("tokens")}, pair=False,
                cost=Cost(seconds=seconds, gigabytes=2.5),
            )  # fmt: skip
            yield "dictionaries", self._name("dictionaries", layer)

    def _published(self, pooled: PooledConfig, spec: DictionarySpec) -> Cost:
        n_weights = spec.n_weights(self.d_model)
        # Two matrix products forward, twice that backward.
        operations = 6 * pooled.n_passes * pooled.texts.n_samples * n_weights
        return Cost(
            seconds=round(operations / 1.05e11), gigabytes=round(16 * n_weights / 1e9 + 1, 1)
        )

    def _with_pair(self, seconds: int | float, *, more_gigabytes: int | float = 0) -> Cost:
        """Return the cost of a cell that runs both models."""
        gigabytes = 1.5 + 1.2 * self.slower + more_gigabytes
        return Cost(seconds=round(self.slower * seconds), gigabytes=gigabytes)

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
            part=part,
            regime=self.regime,
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
        self.found.append(cell)

    def _name(self, part: str, layer: int | None = None) -> str:
        return "/".join(str(n) for n in (self.regime, layer, part) if n is not None)
