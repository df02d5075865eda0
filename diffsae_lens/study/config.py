"""The study of arXiv 2605.07324 as cells: organisms, activations, dictionaries, scores, causes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from diffsae_lens._artifact import sha256
from diffsae_lens._checks import check_choice, check_count, check_folder_name, check_number
from diffsae_lens.organisms.behaviour import Split
from diffsae_lens.organisms.finetune import OrganismConfig
from diffsae_lens.pair.model_files import SHIPPED_ORGANISMS_DIR, shipped_organisms
from diffsae_lens.study import steps
from diffsae_lens.study.cells import Cell, Cost
from diffsae_lens.study.feasible import check_counts, check_draw, check_layers, model_size

EMBEDDED_TOKENS_PER_SECOND = 450.0


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Which texts are drawn; see `make_samples`."""

    split: Split
    n_trigger: int
    n_benign: int
    n_other: int
    seed: int = 0
    share_scenes: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that cannot be."""
        check_choice("split", self.split, get_args(Split))
        for name in ("n_trigger", "n_benign", "n_other", "seed"):
            check_count(name, getattr(self, name), at_least=0)
        check_choice("share_scenes", self.share_scenes, (True, False))
        check_count("n_texts", self.n_texts)

    @property
    def n_texts(self) -> int:
        """Of all groups."""
        return self.n_trigger + self.n_benign + self.n_other


@dataclass(frozen=True, kw_only=True)
class PooledConfig:
    """The published dictionaries: on one vector a text, many passes over the same vectors."""

    texts: Texts
    expansions: Mapping[str, int]
    """d_sae as a multiple of d_model, by name: `crosscoder ...` or `Diff-SAE ...`."""
    k: int = 32
    """Of the crosscoder."""
    learning_rate: float = 1e-4
    batch_size: int = 256
    l1_coefficient: float = 1e-4
    n_passes: int = 100
    """Over the same vectors."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be, and names that do not say what the dictionary reads."""
        _check_training(self, "n_passes")
        check_number("l1_coefficient", self.l1_coefficient, low=0)
        if not self.expansions:
            raise ValueError("`expansions` must name at least one dictionary, got none")
        for name, expansion in self.expansions.items():
            check_count(f"expansions[{name!r}]", expansion)
            check_folder_name("expansions", name)
            if not name.startswith(("crosscoder ", "Diff-SAE ")):
                raise ValueError(
                    f"the name {name!r} in `expansions` must begin with 'crosscoder ' or 'Diff-SAE '"
                )


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Dictionaries of the usual kind: BatchTopK on tokens, normalised, thresholds calibrated."""

    texts: Texts
    expansion: int = 2
    """d_sae as a multiple of d_model."""
    k: int = 32
    learning_rate: float = 2e-3
    batch_size: int = 512
    n_steps: int = 250

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        _check_training(self, "n_steps", "expansion")


@dataclass(frozen=True, kw_only=True)
class CausesConfig:
    """Interventions on generation."""

    select: Texts
    test: Texts
    counts: tuple[int, ...] = (8, 32)
    """How many features are ablated."""
    n_rounds: int = 4
    n_likelihood: int = 6

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        check_count("select.n_trigger", self.select.n_trigger)
        for name in ("n_rounds", "n_likelihood"):
            check_count(name, getattr(self, name))
        check_counts("counts", self.counts)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What `diffsae-lens reproduce` runs."""

    base: str
    """As for `load_pair`."""
    d_model: int
    """Its width."""
    organisms: Mapping[str, OrganismConfig | str]
    """By regime: how it is trained, or the name of a shipped organism."""
    layers: tuple[int, ...]
    pooled: PooledConfig
    tokens: TokensConfig
    scored: tuple[Texts, Texts]
    """Where features are chosen, and where they are scored, by the strict protocol."""
    causes: CausesConfig
    n_resamples: int = 500
    """Of intervals."""
    n_card_prompts: int = 100
    """Held-out prompts a group on which an organism is measured."""
    seed: int = 0
    deviations: tuple[str, ...] = ()
    """What is not as published."""
    tokens_per_second: float = EMBEDDED_TOKENS_PER_SECOND
    """Of both models together on two CPU cores, for the estimates of cost."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("d_model", "n_resamples", "n_card_prompts"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, at_least=0)
        check_number("tokens_per_second", self.tokens_per_second, low=0, low_open=True)
        check_counts("layers", self.layers, at_least=0)
        if not self.organisms:
            raise ValueError("`organisms` must name at least one regime, got none")
        for regime, given in self.organisms.items():
            check_folder_name("organisms", regime)
            if not isinstance(given, OrganismConfig):
                check_choice(f"organisms[{regime!r}]", given, shipped_organisms())
        check_count("tokens.k", self.tokens.k, at_most=self.tokens.expansion * self.d_model)
        for name, expansion in self.pooled.expansions.items():
            if name.startswith("crosscoder"):
                check_count("pooled.k", self.pooled.k, at_most=expansion * self.d_model)

    def check_feasible(self) -> None:
        """Refuse texts that the splits do not have, and layers that the model does not have.

        Raises:
            ValueError: names the setting.
            ModelUnavailableError: the base model cannot be had.
        """
        drawn = {
            "pooled.texts": self.pooled.texts,
            "tokens.texts": self.tokens.texts,
            "scored[0]": self.scored[0],
            "scored[1]": self.scored[1],
            "causes.select": self.causes.select,
            "causes.test": self.causes.test,
        }
        for name, texts in drawn.items():
            check_draw(name, texts.n_texts, partial(steps.samples_of, asdict(texts)))
        size = model_size(self.base)
        check_layers("layers", self.layers, size)
        if size.d_model != self.d_model:
            raise ValueError(f"`d_model` is {self.d_model}, but {self.base} is {size.d_model} wide")

    def cells(self) -> list[Cell]:
        """The study's cells, in an order in which they can be computed."""
        return [cell for regime in self.organisms for cell in self._of_regime(regime)]

    def _of_regime(self, regime: str) -> Iterator[Cell]:
        base = {"base": self.base}
        given = self.organisms[regime]
        shipped = given if isinstance(given, str) else None
        organism = f"{regime}/organism"
        yield Cell(
            name=organism,
            run=steps.organism,
            config=base
            | {
                "name": f"organism-{regime}",
                "shipped": shipped,
                "organism": {} if isinstance(given, str) else asdict(given),
                "n_prompts": self.n_card_prompts,
                "weights_sha256": self._weights_digest(shipped),
            },
            cost=Cost(seconds=1, gigabytes=0.5)
            if isinstance(given, str)
            else self._training_cost(given),
        )
        layers = base | {"layers": list(self.layers)}
        pooled, tokens = f"{regime}/pooled", f"{regime}/tokens"
        for name, run, texts, extra in (
            (pooled, steps.pooled, self.pooled.texts, {}),
            (tokens, steps.tokens, self.tokens.texts, {"seed": self.seed}),
        ):
            yield Cell(
                name=name,
                run=run,
                config=layers | {"texts": asdict(texts)} | extra,
                inputs=(organism,),
                cost=Cost(seconds=self._harvest_seconds(texts), gigabytes=self._model_gigabytes),
            )
        for layer in self.layers:
            yield from self._of_layer(regime, layer, organism, pooled, tokens)

    def _of_layer(
        self, regime: str, layer: int, organism: str, pooled: str, tokens: str
    ) -> Iterator[Cell]:
        at = f"{regime}/{layer}"
        common = {"base": self.base, "layer": layer, "seed": self.seed}
        published = []
        for name, expansion in self.pooled.expansions.items():
            view = "concat" if name.startswith("crosscoder") else "diff"
            published.append(f"{at}/{name}")
            d_in = self.d_model * (2 if view == "concat" else 1)
            options = _without(self.pooled, "texts", "expansions")
            yield Cell(
                name=published[-1],
                run=steps.paper_dictionary,
                config={"layer": layer, "seed": self.seed, "view": view, "expansion": expansion}
                | options,
                inputs=(pooled,),
                cost=self._dense_cost(d_in, expansion * self.d_model),
            )
        usual = f"{at}/dictionaries"
        options = _without(self.tokens, "texts")
        yield Cell(
            name=usual,
            run=steps.dictionaries,
            config={"layer": layer, "seed": self.seed, "d_model": self.d_model} | options,
            inputs=(tokens,),
            cost=Cost(
                seconds=round(0.2 * self.tokens.n_steps * (self.d_model / 576) ** 2), gigabytes=2.5
            ),
        )
        select, test = self.scored
        yield Cell(
            name=f"{at}/scores",
            run=steps.scores,
            version=2,
            config=common
            | {
                "select": asdict(select),
                "test": asdict(test),
                "n_resamples": self.n_resamples,
                "published": list(self.pooled.expansions),
            },
            inputs=(organism, pooled, *published, usual),
            cost=Cost(seconds=self._scores_seconds(), gigabytes=self._model_gigabytes + 1.5),
        )
        yield Cell(
            name=f"{at}/causes",
            run=steps.causes,
            config=common
            | _without(self.causes, "select", "test", "counts")
            | {
                "counts": list(self.causes.counts),
                "select": asdict(self.causes.select),
                "test": asdict(self.causes.test),
            },
            inputs=(organism, *published, usual),
            cost=Cost(
                seconds=self._causes_seconds(len(published) + 3),
                gigabytes=self._model_gigabytes + 1.5,
            ),
        )

    def _weights_digest(self, shipped: str | None) -> dict[str, str]:
        """Of a base in a local folder and of a shipped adapter, whose names alone do not say it."""
        folders = [Path(self.base)] if Path(self.base).is_dir() else []
        folders += [SHIPPED_ORGANISMS_DIR / shipped] if shipped else []
        return {
            file.name: sha256(file)
            for folder in folders
            for file in sorted(folder.glob("*.safetensors"))
        }

    # Costs: fitted to what the embedded model took on two CPU cores; larger models take longer in
    # proportion to how many tokens a second they read.

    @property
    def _slower(self) -> float:
        return EMBEDDED_TOKENS_PER_SECOND / self.tokens_per_second

    @property
    def _model_gigabytes(self) -> float:
        """Of both models and their activations."""
        return 1.5 + 1.2 * self._slower

    def _harvest_seconds(self, texts: Texts) -> int:
        return round(texts.n_texts * 160 / self.tokens_per_second)

    def _training_cost(self, config: OrganismConfig) -> Cost:
        n_prompts = config.n_steps * config.batch_size
        return Cost(
            seconds=round(self._slower * (0.65 * n_prompts + 3 * self.n_card_prompts)),
            gigabytes=round((4 if config.lora_rank else 6) * max(1.0, self._slower), 1),
        )

    def _dense_cost(self, d_in: int, d_sae: int) -> Cost:
        n_vectors = self.pooled.n_passes * self.pooled.texts.n_texts
        operations = 12 * n_vectors * d_in * d_sae  # 2 * 2 products forward, twice that backward
        return Cost(
            seconds=round(operations / 1.05e11), gigabytes=round(32 * d_in * d_sae / 1e9 + 1, 1)
        )

    def _scores_seconds(self) -> int:
        n_features = self.d_model * sum(self.pooled.expansions.values())
        resampled = self.pooled.texts.n_texts * n_features * self.n_resamples
        n_prompts = sum(texts.n_texts for texts in self.scored)
        return round(self._slower * 0.55 * n_prompts + 5.5e-9 * resampled)

    def _causes_seconds(self, n_dictionaries: int) -> int:
        n_rows = 2 + 2 * len(self.causes.counts) * n_dictionaries
        n_generated = n_rows * self.causes.test.n_texts
        n_attributed = n_dictionaries * self.causes.n_rounds * self.causes.select.n_trigger
        return round(self._slower * (1.3 * n_generated + 1.2 * n_attributed))


def _check_training(config: PooledConfig | TokensConfig, *counts: str) -> None:
    """Refuse numbers that a dictionary cannot be trained with."""
    for name in ("k", "batch_size", *counts):
        check_count(name, getattr(config, name))
    check_number("learning_rate", config.learning_rate, low=0, low_open=True)


def _without(record: Any, *names: str) -> dict[str, Any]:
    """A config's fields but those of cells' own."""
    return {k: v for k, v in asdict(record).items() if k not in names}
