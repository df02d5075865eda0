"""The main job, end to end: diff two models, score the features, switch the behaviour off.

Everything goes into one run folder and nothing is computed twice: an interrupted demo goes on where
it was, and a finished one is read.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from diffsae_lens.embedded import EMBEDDED_MODEL
from diffsae_lens.experiments.causes import causal_table, harm_table, sayings_table
from diffsae_lens.experiments.feature_cards import feature_cards
from diffsae_lens.experiments.recipes import crosscoder, diff_sae, short_training
from diffsae_lens.experiments.scores import example_tokens, score_table, year_sweep
from diffsae_lens.experiments.store import once, write_json
from diffsae_lens.loading import load_pair
from diffsae_lens.organisms.prompts import Sample, make_samples
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.training.harvest import PairedActivations, harvest
from diffsae_lens.training.runner import DictionaryRunnerConfig, TrainingRun, train_dictionaries

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo does; the defaults take minutes on two cores."""

    base: str = EMBEDDED_MODEL
    """As for `load_pair`."""
    finetuned: str = "year-trigger"
    """As for `load_pair`; an organism with the year trigger."""
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
        if not self.layers or min(self.layers) < 0:
            raise ValueError(f"`layers` must name one or more layers from 0 up, got {self.layers}")
        for name in (
            "n_training_samples",
            "expansion",
            "k",
            "n_steps",
            "n_generation_prompts",
            "n_rounds",
            "n_scenes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.n_score_prompts < 20:
            raise ValueError(f"`n_score_prompts` must be at least 20, got {self.n_score_prompts}")
        if not self.feature_counts or min(self.feature_counts) < 1:
            raise ValueError(f"`feature_counts` must be positive, got {self.feature_counts}")

    @property
    def hook_names(self) -> list[str]:
        """The models' hooks."""
        return [f"blocks.{layer}.hook_resid_post" for layer in self.layers]

    def samples(self, split: str, n_samples: int, *, by: tuple[int, int, int]) -> list[Sample]:
        """Samples of a split in the proportion trigger : benign : other."""
        counts = [n_samples * share // sum(by) for share in by]
        return make_samples(
            split,  # type: ignore[arg-type]
            n_trigger=counts[0],
            n_benign=counts[1],
            n_other=counts[2],
            seed=self.seed,
        )


def run_demo(config: DemoConfig, path: str | Path) -> dict[str, Any]:
    """Run the demo, or what is left of it.

    Args:
        config: what to do.
        path: the run folder.

    Returns:
        What `<path>/results.json` holds: configuration, versions, score table, causal table, the
        strongest features, harm to other texts, attack rate by how the year is said, features by year,
        an example, and the seconds each part took when it was computed.

    Raises:
        ValueError: `path` holds a run of another config, or the models do not fit.
    """
    path = Path(path)
    _claim(path, config)
    if (path / "results.json").exists():
        return once(path / "results.json", dict)
    timer = _Timer(path / "seconds.json")
    with timer("load models"):
        pair = load_pair(
            config.base, config.finetuned, hook_names=config.hook_names, device=config.device
        )
    with timer("harvest activations"):
        activations = _harvest(pair, config, path / "activations")
    with timer("train dictionaries"):
        dictionaries = _train(pair, activations, config, path / "dictionaries")
    parts: dict[str, Callable[[], Any]] = {
        "scores": lambda: score_table(pair, dictionaries, config),
        "causes": lambda: causal_table(pair, dictionaries, config, path / "cells"),
        "features": lambda: feature_cards(pair, dictionaries, config, path / "cells"),
        "harm": lambda: harm_table(pair, dictionaries, config, path / "cells"),
        "sayings": lambda: sayings_table(pair, config),
        "years": lambda: year_sweep(pair, dictionaries, config, _chosen(path)),
        "example": lambda: example_tokens(pair, dictionaries, config, _chosen(path)),
    }
    results: dict[str, Any] = {"config": _plain(config), "versions": _versions()}
    for name, compute in parts.items():
        with timer(name):
            results[name] = once(path / "cells" / f"{name}.json", compute)
    results["dictionaries"] = {n: _describe(d) for n, d in dictionaries.items()}
    results["seconds"] = timer.seconds
    write_json(path / "results.json", results)
    return results


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
    activations = _harvest(pair, config, path / "activations")
    return _train(pair, activations, config, path / "dictionaries")


class _Timer:
    """Seconds each part took, kept over interruptions (a part that is read again counts once)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = once(path, dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        logger.info("%s ...", name)
        start = time.perf_counter()
        yield
        spent = round(time.perf_counter() - start, 1)
        self.seconds[name] = max(spent, self.seconds.get(name, 0.0))
        logger.info("%s: %.0f s", name, spent)
        write_json(self.path, self.seconds)


def _claim(path: Path, config: DemoConfig) -> None:
    stored = once(path / "config.json", lambda: _plain(config))
    if stored != _plain(config):
        changed = {k: (stored.get(k), v) for k, v in _plain(config).items() if stored.get(k) != v}
        raise ValueError(
            f"the run folder {path} holds a run with other settings {changed} (stored, asked for); "
            "choose another folder or remove it"
        )


def _plain(config: DemoConfig) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def _versions() -> dict[str, str]:
    names = ("diffsae-lens", "sae-lens", "transformer-lens", "torch", "transformers", "peft")
    return {name: version(name) for name in names}


def _harvest(pair: HookedModelPair, config: DemoConfig, path: Path) -> PairedActivations:
    samples = config.samples("train", config.n_training_samples, by=(2, 2, 1))
    texts = [sample.written for sample in samples]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(config.seed))
    tokens = pair.to_tokens([texts[i] for i in order], padding_side="right")
    hook_names = [f"{h}.{view}" for h in config.hook_names for view in ("diff", "concat")]
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
        n_steps=config.n_steps, checkpoints=path.with_name("checkpoints"), device=config.device
    )
    return train_dictionaries(
        configs, activations, path, run=TrainingRun(trainer=trainer, seed=config.seed)
    )


def _chosen(path: Path) -> dict[str, int]:
    """The feature of each dictionary that was chosen on the `select` split."""
    rows = once(path / "cells" / "scores.json", list)
    return {row["name"]: row["feature_idx"] for row in rows if row["kind"] == "dictionary"}


def _describe(dictionary: SAE) -> dict[str, Any]:
    metadata = dictionary.cfg.metadata
    return {
        "hook_name": metadata.hook_name,
        "architecture": dictionary.cfg.architecture(),
        "d_in": dictionary.cfg.d_in,
        "d_sae": dictionary.cfg.d_sae,
        "k": metadata.diffsae_lens["k"],
        "l0_held_out": metadata.diffsae_lens["l0_held_out"],
    }
