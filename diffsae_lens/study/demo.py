"""The main job, end to end: diff two models, score the features, switch the behaviour off.

Everything goes into one run folder and nothing is computed twice: an interrupted demo goes on where
it was, and a finished one is read.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._artifact import locked
from diffsae_lens._checks import check_count
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.organisms.behaviour import Sample, get_behaviour
from diffsae_lens.pair.embedded import EMBEDDED_MODEL
from diffsae_lens.pair.hook import VirtualHook
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.loading import LoadOptions, load_pair
from diffsae_lens.study.causes import causal_table, harm_table, sayings_table
from diffsae_lens.study.feasible import (
    check_counts,
    check_draw,
    check_layers,
    check_memory,
    check_out_folder,
    model_size,
)
from diffsae_lens.study.feature_cards import feature_cards
from diffsae_lens.study.parts import Parts, dictionary_identity
from diffsae_lens.study.run_folder import (
    RESULTS,
    Timer,
    check_claim,
    claim,
    finish,
    remove_if_empty,
)
from diffsae_lens.study.scores import example_tokens, score_table, year_sweep
from diffsae_lens.training.activations import PairedActivations
from diffsae_lens.training.harvest import harvest
from diffsae_lens.training.recipes import crosscoder, diff_sae, short_training
from diffsae_lens.training.runner import DictionaryRunnerConfig, TrainingRun, train_dictionaries

logger = logging.getLogger(__name__)


CHECKPOINTS = "checkpoints"
"""The folder in the run's; gone when the run is finished."""
BATCH_SIZE = 512
"""Tokens per training step."""
TRAINED_ON, SCORED_ON = (2, 2, 1), (1, 2, 2)
"""Proportions of the groups: trigger, benign, other."""
_LEAST = {
    # One in ten is held out, to set the threshold on.
    "n_training_samples": 10,
    "expansion": 1,
    "k": 1,
    "n_steps": 1,
    "n_score_prompts": 20,
    "n_generation_prompts": 1,
    "n_likelihood_prompts": 1,
    "n_rounds": 1,
    "n_scenes": 1,
    "seed": 0,
}
_MADE_BY = ("diffsae-lens", "sae-lens", "transformer-lens")
"""The packages whose new versions make new results."""
_NAMES = ("base", "finetuned", "device")
"""Settings that say where the models are found and run; what they are, their fingerprints say."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo does; the defaults take minutes on two cores."""

    base: str = EMBEDDED_MODEL
    """As for `load_pair`."""
    finetuned: str = "year-trigger"
    """As for `load_pair`; an organism with the year trigger."""
    behaviour: str = "year-trigger"
    """The behaviour that is looked for: whose prompts and judge are used."""
    layers: tuple[int, ...] = (18,)
    """Residual-stream layers with a dictionary of each kind; causes are shown at the last one."""
    device: str = "cpu"
    """A torch device."""
    n_training_samples: int = 200
    """Prompts with completions the dictionaries are trained on, of the `train` split."""
    expansion: int = 2
    """d_sae as a multiple of d_model, for Diff-SAE and crosscoder alike."""
    k: int = 32
    """Active features a token (L0)."""
    n_steps: int = 250
    """Training steps of 512 tokens."""
    n_score_prompts: int = 80
    """Prompts of the `select` and of the `test` split each: 1 trigger to 2 benign to 2 other."""
    n_generation_prompts: int = 6
    """Trigger prompts, and as many benign ones, completed under every intervention."""
    n_likelihood_prompts: int = 2
    """How many of them are scored under teacher forcing too."""
    feature_counts: tuple[int, ...] = (8, 32)
    """How many features are ablated."""
    n_rounds: int = 2
    """Attributions in which they are ordered; see `greedy_order`."""
    n_scenes: int = 2
    """Scenes in which the year is said in other ways."""
    seed: int = 0
    """Of prompts, training and controls."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is loaded."""
        for name, at_least in _LEAST.items():
            check_count(name, getattr(self, name), at_least=at_least)
        check_counts("layers", self.layers, at_least=0)
        check_counts("feature_counts", self.feature_counts)
        if self.n_likelihood_prompts > self.n_generation_prompts:
            raise ValueError(
                f"`n_likelihood_prompts` are some of the `n_generation_prompts`, which are "
                f"{self.n_generation_prompts}; got {self.n_likelihood_prompts}, ask for fewer"
            )
        get_behaviour(self.behaviour)
        self._check_draws()

    def _check_draws(self) -> None:
        """Refuse more prompts than the splits have."""
        draws: list[tuple[str, str, int, tuple[int, int, int]]] = [
            ("n_training_samples", "train", self.n_training_samples, TRAINED_ON),
            ("n_score_prompts", "select", self.n_score_prompts, SCORED_ON),
            ("n_score_prompts", "test", self.n_score_prompts, SCORED_ON),
            ("n_generation_prompts", "test", 2 * self.n_generation_prompts, (1, 1, 0)),
        ]
        for name, split, n_samples, shares in draws:
            draw = partial(self.samples, split, n_samples, by=shares)
            check_draw(name, getattr(self, name), draw)
        scenes = partial(
            get_behaviour(self.behaviour).minimal_pairs,
            "test",
            (None,),
            n_scenes=self.n_scenes,
            seed=self.seed,
        )
        check_draw("n_scenes", self.n_scenes, scenes)

    @property
    def hook_names(self) -> list[str]:
        """The models' hooks."""
        return [f"blocks.{layer}.hook_resid_post" for layer in self.layers]

    def samples(self, split: str, n_samples: int, *, by: tuple[int, int, int]) -> list[Sample]:
        """Samples of a split in the proportion trigger : benign : other."""
        counts = [n_samples * share // sum(by) for share in by]
        return get_behaviour(self.behaviour).make_samples(
            split,  # type: ignore[arg-type]
            n_trigger=counts[0],
            n_benign=counts[1],
            n_other=counts[2],
            seed=self.seed,
        )


def run_demo(config: DemoConfig, path: str | Path) -> dict[str, Any]:
    """Run the demo, or what is left of it.

    What is there is used where it was made from the same models (by their weights, not their names),
    settings and versions; what is damaged is named, set aside and made anew. Two demos of one folder
    take turns.

    Args:
        config: what to do.
        path: the run folder.

    Returns:
        What `<path>/results.json` holds: configuration, versions, score table, causal table, the
        strongest features, harm to other texts, attack rate by how the year is said, features by year,
        an example, and the seconds each part took when it was computed.

    Raises:
        ValueError: settings that the models or the machine cannot meet, which leaves no trace in `path`;
            or `path` holds a run of other settings or models.
        OSError: the disk is full or forbids it; names the file.
    """
    path = Path(path).expanduser()
    _check_before_loading(config, path)
    start = time.perf_counter()
    pair = load_pair(
        config.base, config.finetuned, hook_names=config.hook_names, device=config.device
    )
    tokens = _training_tokens(pair, config)
    seconds_to_load = time.perf_counter() - start
    if (path / RESULTS).exists():  # nothing is left to write, so the disk may be read-only
        check_claim(path, _claimed(config, pair))
        return _run(config, pair, tokens, path, Timer(path))
    with locked(path / "demo"):
        claim(path, _claimed(config, pair))
        timer = Timer(path)
        timer.note("load models", seconds_to_load)
        return _run(config, pair, tokens, path, timer)


def _run(
    config: DemoConfig, pair: HookedModelPair, tokens: Tensor, path: Path, timer: Timer
) -> dict[str, Any]:
    """Make or read every part, and put the results together."""
    with timer("harvest activations"):
        activations = _harvest(pair, tokens, config, path / "activations")
    with timer("train dictionaries"):
        dictionaries = _train(pair, activations, config, path / "dictionaries")
    cells = Parts(
        folder=path / "cells",
        made_from={
            **_claimed(config, pair),
            "dictionaries": {
                name: dictionary_identity(path / "dictionaries" / name) for name in dictionaries
            },
        },
    )
    results: dict[str, Any] = {"config": _plain(config), "versions": _versions()}
    parts: dict[str, Callable[[], Any]] = {
        "scores": lambda: score_table(pair, dictionaries, config),
        "causes": lambda: causal_table(pair, dictionaries, config, cells),
        "features": lambda: feature_cards(pair, dictionaries, config, cells),
        "harm": lambda: harm_table(pair, dictionaries, config, cells),
        "sayings": lambda: sayings_table(pair, config),
        "years": lambda: year_sweep(pair, dictionaries, config, _chosen(results["scores"])),
        "example": lambda: example_tokens(pair, dictionaries, config, _chosen(results["scores"])),
    }
    for name, compute in parts.items():
        with timer(name):
            results[name] = cells.get(name, compute)
    results["dictionaries"] = {n: _describe(d) for n, d in dictionaries.items()}
    remove_if_empty(path / CHECKPOINTS)
    return finish(path, results | {"seconds": timer.seconds}, _comparable)


def demo_dictionaries(
    pair: HookedModelPair, path: str | Path, config: DemoConfig | None = None
) -> dict[str, SAE]:
    """Train the demo's dictionaries, or read them where that was done: a minute or two on two cores.

    Args:
        pair: the two models, with the hooks of the config.
        path: the run folder; `activations`, `checkpoints` and `dictionaries` are made in it.
        config: prompts, layers and sizes.

    Returns:
        A Diff-SAE and a crosscoder for each layer, such as `diff-sae-18` and `crosscoder-18`.

    Raises:
        ValueError: the folder holds others.
    """
    config, path = config or DemoConfig(), Path(path)
    tokens = _training_tokens(pair, config)
    activations = _harvest(pair, tokens, config, path / "activations")
    return _train(pair, activations, config, path / "dictionaries")


def _check_before_loading(config: DemoConfig, path: Path) -> None:
    """Refuse what can be told without the models' weights."""
    check_out_folder("path", path)
    LoadOptions(device=config.device)  # says so if it is not there
    check_claim(path, {"settings": _settings(config)})
    size = model_size(config.base)
    check_layers("layers", config.layers, size)
    d_sae = config.expansion * size.d_model
    check_count("k", config.k, at_most=d_sae)
    for n_features in config.feature_counts:
        check_count("feature_counts", n_features, at_most=d_sae)
    # A Diff-SAE's encoder and decoder, and a crosscoder's, which are twice as wide.
    check_memory("expansion", len(config.layers) * 6 * size.d_model * d_sae, config.device)


def _claimed(config: DemoConfig, pair: HookedModelPair) -> dict[str, Any]:
    """What all results of a run depend on."""
    versions = _versions()
    return {
        "settings": _settings(config),
        "models": {
            "base": pair.metadata.base_fingerprint,
            "finetuned": pair.metadata.finetuned_fingerprint,
        },
        "versions": {name: versions[name] for name in _MADE_BY},
    }


def _settings(config: DemoConfig) -> dict[str, Any]:
    return {name: value for name, value in _plain(config).items() if name not in _NAMES}


def _plain(config: DemoConfig) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def _versions() -> dict[str, str]:
    names = ("diffsae-lens", "sae-lens", "transformer-lens", "torch", "transformers", "peft")
    return {name: version(name) for name in names}


def _training_tokens(pair: HookedModelPair, config: DemoConfig) -> Int[Tensor, "seq pos"]:
    """The texts the dictionaries are trained on, as tokens.

    Raises:
        ValueError: they do not fit the context, or do not fill a batch.
    """
    samples = config.samples("train", config.n_training_samples, by=TRAINED_ON)
    texts = [sample.written for sample in samples]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(config.seed))
    tokens = pair.tokenise([texts[i] for i in order]).tokens
    pair.check_tokens(tokens)
    n_trained_on = len(tokens) - max(1, len(tokens) // 10)
    special = torch.tensor(pair.tokenizer.all_special_ids, device=tokens.device)
    n_tokens = int((~torch.isin(tokens[:n_trained_on, 1:], special)).sum())
    if n_tokens < BATCH_SIZE:
        raise ValueError(
            f"`n_training_samples` {config.n_training_samples} give {n_tokens} tokens to train on, "
            f"less than one batch of {BATCH_SIZE}; ask for more"
        )
    return tokens


def _harvest(
    pair: HookedModelPair, tokens: Tensor, config: DemoConfig, path: Path
) -> PairedActivations:
    views = ("diff", "concat")
    hook_names = [VirtualHook(h, view).name for h in config.hook_names for view in views]
    return harvest(pair, tokens, path, hook_names=hook_names)


def _train(
    pair: HookedModelPair, activations: PairedActivations, config: DemoConfig, path: Path
) -> dict[str, SAE]:
    sizes: dict[str, Any] = {
        "d_model": pair.cfg.d_model,
        "d_sae": config.expansion * pair.cfg.d_model,
        "k": config.k,
        "device": config.device,
    }
    configs: dict[str, DictionaryRunnerConfig] = {}
    for layer, hook_name in zip(config.layers, config.hook_names, strict=True):
        configs[f"diff-sae-{layer}"] = diff_sae(hook_name, **sizes)
        configs[f"crosscoder-{layer}"] = crosscoder(hook_name, **sizes)
    trainer = short_training(
        n_steps=config.n_steps, checkpoints=path.with_name(CHECKPOINTS), device=config.device
    )
    return train_dictionaries(
        configs, activations, path, run=TrainingRun(trainer=trainer, seed=config.seed)
    )


def _chosen(scores: list[dict[str, Any]]) -> dict[str, int]:
    """The feature of each dictionary that was chosen on the `select` split."""
    return {row["name"]: row["feature_idx"] for row in scores if row["kind"] == "dictionary"}


def _describe(dictionary: SAE) -> dict[str, Any]:
    record = DictionaryRecord.of(dictionary)
    return {
        "hook_name": record.hook_name,
        "architecture": dictionary.cfg.architecture(),
        "d_in": dictionary.cfg.d_in,
        "d_sae": dictionary.cfg.d_sae,
        "k": record.k,
        "l0_held_out": record.l0,
    }


def _comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what changes nothing: how long they took, where the models were, versions."""
    config = results.get("config")
    named = {k: v for k, v in config.items() if k not in _NAMES} if isinstance(config, dict) else {}
    left_out = {"seconds", "versions"}
    return {k: v for k, v in results.items() if k not in left_out} | {"config": named}
