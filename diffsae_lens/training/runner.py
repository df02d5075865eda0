"""Train Diff-SAEs and crosscoders in lockstep on one harvest, with SAELens's trainers."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from diffsae_lens.saes.delta import DeltaCrosscoderTrainingSAEConfig
from diffsae_lens.saes.paper import TiedTrainingSAEConfig
from diffsae_lens.saes.sparse import Workspace
from diffsae_lens.saes.topk import SparseStep
from diffsae_lens.training.calibration import calibrate_threshold
from diffsae_lens.training.checkpoints import (
    check_checkpoint,
    mark_whole,
    n_batches_seen,
    newest_checkpoint,
)
from diffsae_lens.training.harvest import PairedActivations
from diffsae_lens.training.normalization import (
    Normalization,
    activation_statistics,
    as_whitening,
    describe,
)
from diffsae_lens.training.optimizer import fuse_adam

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DictionaryRunnerConfig:
    """One dictionary to train: where it reads, and any SAELens training architecture."""

    view: ClassVar[str]
    """Which view of the hook it reads."""
    n_parts: ClassVar[int] = 1
    """How many models' activations its input is made of."""

    hook_name: str
    """The models' hook, such as `blocks.18.hook_resid_post`."""
    sae: TrainingSAEConfig
    """SAELens's own config, or one of `diffsae_lens.saes`; its `d_in` is the view's width."""
    normalization: Normalization | None = None
    """Per-model mean and scale, folded into the saved weights; None for what `sae` itself says."""

    def __post_init__(self) -> None:
        """Refuse two normalisations at once."""
        if self.normalization and self.sae.normalize_activations != "none":
            raise ValueError(
                "`normalization` replaces SAELens's own, so `sae.normalize_activations` must be "
                f"'none', got {self.sae.normalize_activations!r}"
            )
        if self.normalization and isinstance(self.sae, TiedTrainingSAEConfig):
            raise ValueError(
                f"the published {self.sae.architecture()} takes raw activations; leave "
                "`normalization` out"
            )
        if isinstance(self.sae, DeltaCrosscoderTrainingSAEConfig) and (
            self.normalization is None or self.normalization.scale == "by model"
        ):
            raise ValueError(
                "a Delta-crosscoder rebuilds finetuned - base, which two scales would distort; give "
                "it `Normalization(scale='common')`"
            )

    @property
    def virtual_hook_name(self) -> str:
        """The pair's hook point the dictionary reads."""
        return f"{self.hook_name}.{self.view}"


@dataclass(frozen=True, kw_only=True)
class DiffSAERunnerConfig(DictionaryRunnerConfig):
    """A dictionary on `finetuned - base`; `sae.d_in` is d_model."""

    view: ClassVar[str] = "diff"


@dataclass(frozen=True, kw_only=True)
class CrosscoderRunnerConfig(DictionaryRunnerConfig):
    """A dictionary on `[base ; finetuned]`; `sae.d_in` is 2 * d_model."""

    view: ClassVar[str] = "concat"
    n_parts: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class FinetunedSAERunnerConfig(DictionaryRunnerConfig):
    """A plain SAE on the fine-tuned model alone; `sae.d_in` is d_model."""

    view: ClassVar[str] = "finetuned"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """How long and on what several dictionaries are trained together."""

    trainer: SAETrainerConfig
    """SAELens's own: samples, batch size, learning rate and schedule, checkpoints, W&B."""
    calibration_fraction: float = 0.1
    """Share of the sequences kept out of training; the inference threshold is set on them."""
    seed: int = 0
    """Of initialisation and batch order."""

    def __post_init__(self) -> None:
        """Refuse what SAELens would stumble over later."""
        if not 0 < self.calibration_fraction < 1:
            raise ValueError(
                f"`calibration_fraction` must lie in (0, 1), got {self.calibration_fraction}"
            )
        n_steps = self.trainer.total_training_samples // self.trainer.train_batch_size_samples
        if self.trainer.dead_feature_window >= n_steps:
            logger.warning(
                "`trainer.dead_feature_window` is %d steps of a run of %d: no feature is ever found "
                "dead, and AuxK never acts",
                self.trainer.dead_feature_window,
                n_steps,
            )
        if self.trainer.lr_end is None:
            raise ValueError(
                "`trainer.lr_end` must be set (SAETrainer asserts it and sets no default); "
                "for a constant schedule give it the value of `lr`"
            )


def train_dictionaries(
    configs: Mapping[str, DictionaryRunnerConfig],
    activations: PairedActivations,
    path: str | Path,
    *,
    run: TrainingRun,
) -> dict[str, SAE]:
    """Train several dictionaries in lockstep: the same tokens, in the same order.

    SAELens's `MultiSAETrainer` does the training. The BatchTopK family is then given the threshold
    at which held-out tokens fire k features on average (SAELens's own is a moving average that a
    short run leaves unconverged), and everything is saved in SAELens's inference format. A
    dictionary whose folder exists is loaded, not trained again.

    Args:
        configs: the dictionaries by name; the name becomes the folder's.
        activations: a harvest with every hook point the configs read.
        path: folder for the dictionaries, each `<path>/<name>`.
        run: training length, batch size, seed.

    Returns:
        The inference dictionaries by name, as `SAE.load_from_disk` gives them.

    Raises:
        ValueError: no configs, a hook point that was not harvested, or a `d_in` that does not fit.
    """
    path = Path(path)
    _check(configs, activations)
    missing = {name: config for name, config in configs.items() if not (path / name).exists()}
    if missing:
        n_held_out = max(1, round(activations.n_sequences * run.calibration_fraction))
        split = activations.n_sequences - n_held_out
        trained = _fit(missing, activations, path, run, split)
        for name, sae in trained.items():
            _export(sae, missing[name], activations, path / name, run, split)
    return {name: SAE.load_from_disk(path / name, device=run.trainer.device) for name in configs}


def _check(configs: Mapping[str, DictionaryRunnerConfig], activations: PairedActivations) -> None:
    if not configs:
        raise ValueError("`configs` is empty: name at least one dictionary")
    sample = activations.rows(0, 1)
    for name, config in configs.items():
        if Path(name).name != name:
            raise ValueError(
                f"the name {name!r} in `configs` becomes a folder's: it must have no '/'"
            )
        hook_name = config.virtual_hook_name
        if hook_name not in activations.hook_names:
            raise ValueError(
                f"`configs[{name!r}]` reads {hook_name!r}, which was not harvested "
                f"(there are {list(activations.hook_names)})"
            )
        d_in = sample[hook_name].shape[-1]
        if config.sae.d_in != d_in:
            raise ValueError(
                f"`configs[{name!r}].sae.d_in` is {config.sae.d_in}, but {hook_name!r} is {d_in} wide"
            )


def _fit(
    configs: Mapping[str, DictionaryRunnerConfig],
    activations: PairedActivations,
    path: Path,
    run: TrainingRun,
    split: int,
) -> dict[str, TrainingSAE]:
    """Train, going on from the newest checkpoint of an interrupted run."""
    saes: dict[str, TrainingSAE] = {}
    workspace = Workspace()
    with torch.random.fork_rng():
        for name, config in configs.items():
            torch.manual_seed(run.seed)
            sae = TrainingSAE.from_dict(config.sae.to_dict()).to(run.trainer.device)
            if isinstance(sae, SparseStep):
                sae.workspace = workspace  # they step in turn
            _describe(sae, config, activations, run)
            saes[name] = sae
        trainer = MultiSAETrainer(
            cfg=run.trainer,
            saes=saes,
            hook_names={name: config.virtual_hook_name for name, config in configs.items()},
            data_provider=activations.batches(
                run.trainer.train_batch_size_samples, seed=run.seed, stop=split
            ),
            save_checkpoint_fn=mark_whole,
        )
        for name, config in configs.items():
            _prepare(trainer.trainers[name], config, activations, run, split)
        checkpoint = newest_checkpoint(run.trainer.checkpoint_path, set(configs))
        if checkpoint is not None:
            check_checkpoint(checkpoint, saes)
            logger.info("going on from %s", checkpoint)
            trainer.load_checkpoint(checkpoint)
            for _ in range(n_batches_seen(trainer)):
                next(trainer.data_provider)
        path.mkdir(parents=True, exist_ok=True)
        return trainer.fit()


def _prepare(
    trainer: SAETrainer,
    config: DictionaryRunnerConfig,
    activations: PairedActivations,
    run: TrainingRun,
    split: int,
) -> None:
    """Give one dictionary's trainer its normalisation and the fused optimiser."""
    fuse_adam(trainer)
    if config.normalization is None:
        return
    batch_size = run.trainer.train_batch_size_samples
    n_batches = min(run.trainer.n_batches_for_norm_estimate, _n_batches(activations, split, run))
    batches = activations.batches(batch_size, seed=run.seed, stop=split)
    hook_name = config.virtual_hook_name
    statistics = activation_statistics(
        (batch[hook_name] for batch in islice(batches, n_batches)), n_parts=config.n_parts
    )
    trainer.activation_scaler.whitening = as_whitening(statistics, config.normalization)
    stored = trainer.sae.cfg.metadata.diffsae_lens
    stored["normalization"] = describe(statistics, config.normalization)


def _n_batches(activations: PairedActivations, split: int, run: TrainingRun) -> int:
    """Batches in one pass over the training sequences, or a little more."""
    n_tokens = split * activations.context_size
    return max(1, n_tokens // run.trainer.train_batch_size_samples)


def _describe(
    sae: TrainingSAE,
    config: DictionaryRunnerConfig,
    activations: PairedActivations,
    run: TrainingRun,
) -> None:
    """Write into the metadata what it takes to use the dictionary on the right pair and hook."""
    provenance = activations.provenance
    metadata = sae.cfg.metadata
    metadata.hook_name = config.virtual_hook_name
    metadata.model_name = provenance["pair"]["finetuned"]
    metadata.prepend_bos = provenance["prepend_bos"]
    metadata.context_size = activations.context_size
    metadata.diffsae_lens = {
        "pair": provenance["pair"],
        "view": config.view,
        "sign": "finetuned - base",
        "normalization": None,
        "frozen_decoder": getattr(config.sae, "frozen_decoder", False),
        "skip_positions": provenance["skip_positions"],
        "tokens_sha256": provenance["tokens_sha256"],
        "seed": run.seed,
        "versions": {
            name: version(name)
            for name in ("diffsae-lens", "sae-lens", "transformer-lens", "torch")
        },
    }


def _export(
    sae: TrainingSAE,
    config: DictionaryRunnerConfig,
    activations: PairedActivations,
    path: Path,
    run: TrainingRun,
    split: int,
) -> None:
    """Save the inference form under a temporary name, calibrate it, and rename it."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    sae.save_inference_model(partial)
    if isinstance(config.sae, BatchTopKTrainingSAEConfig):
        inference = SAE.load_from_disk(partial, device=run.trainer.device)
        held_out = activations.rows(split, activations.n_sequences)[config.virtual_hook_name]
        held_out = held_out.to(run.trainer.device)
        budgets = _budgets(config.sae)
        l0 = [calibrate_threshold(inference, held_out, k=k, features=f) for f, k in budgets][-1]
        k = sum(k for _, k in budgets)
        inference.cfg.metadata.diffsae_lens |= {"k": k, "l0_held_out": l0}
        inference.save_model(partial)
    (partial / "trainer_cfg.json").write_text(
        json.dumps({k: v for k, v in vars(run.trainer).items() if k != "logger"})
    )
    partial.rename(path)


def _budgets(config: BatchTopKTrainingSAEConfig) -> list[tuple[slice, int | float]]:
    """Which features share a BatchTopK budget, and how many of them fire."""
    if isinstance(config, DeltaCrosscoderTrainingSAEConfig):
        n_delta = config.n_delta_features
        return [(slice(0, n_delta), config.k_delta), (slice(n_delta, config.d_sae), config.k)]
    return [(slice(0, config.d_sae), config.k)]
