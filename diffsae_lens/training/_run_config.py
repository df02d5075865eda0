"""Configs of what is trained and for how long, checked on construction."""

import logging
from dataclasses import dataclass, fields
from typing import ClassVar

from sae_lens import BatchTopKTrainingSAEConfig, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from diffsae_lens._checks import check_count, check_number
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import check_fields
from diffsae_lens.dictionaries._delta import DeltaCrosscoderTrainingSAEConfig
from diffsae_lens.dictionaries._paper import TiedTrainingSAEConfig
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.training._normalization import Normalization

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DictionaryRunnerConfig:
    """One dictionary to train: the hook it reads, and any SAELens training architecture."""

    view: ClassVar[str]
    """The view of the hook that it reads."""

    hook_name: str
    """The models' hook, such as `blocks.18.hook_resid_post`."""
    sae: TrainingSAEConfig
    """SAELens's own config, or one of `diffsae_lens.dictionaries`; its `d_in` is the view's width."""
    normalization: Normalization | None = None
    """Per-model mean and scale, folded into the saved weights; None for the setting of `sae` itself."""

    def __post_init__(self) -> None:
        """Refuse invalid sizes, and two normalisations at once."""
        check_fields(self)
        if "." not in self.hook_name or VirtualHook.is_virtual(self.hook_name):
            raise InvalidValueError(
                "`hook_name` must be the models' own, such as 'blocks.18.hook_resid_post', without a view, "
                f"got {self.hook_name!r}"
            )
        _check_sizes(self.sae)
        if self.normalization and self.sae.normalize_activations != "none":
            raise InvalidValueError(
                "`normalization` replaces SAELens's own, so `sae.normalize_activations` must be "
                f"'none', got {self.sae.normalize_activations!r}"
            )
        if self.normalization and isinstance(self.sae, TiedTrainingSAEConfig):
            raise InvalidValueError(
                f"the published {self.sae.architecture()} takes raw activations; leave "
                "`normalization` out"
            )
        if isinstance(self.sae, DeltaCrosscoderTrainingSAEConfig) and (
            self.normalization is None or self.normalization.scale == "by model"
        ):
            raise InvalidValueError(
                "a Delta-crosscoder rebuilds finetuned - base, which two scales would distort; give "
                "it `Normalization(scale='common')`"
            )

    @property
    def hook(self) -> VirtualHook:
        """The virtual hook point that the dictionary reads."""
        return VirtualHook(self.hook_name, self.view)


@dataclass(frozen=True, kw_only=True)
class DiffSAERunnerConfig(DictionaryRunnerConfig):
    """A dictionary on `finetuned - base`; `sae.d_in` is d_model."""

    view: ClassVar[str] = "diff"


@dataclass(frozen=True, kw_only=True)
class CrosscoderRunnerConfig(DictionaryRunnerConfig):
    """A dictionary on `[base ; finetuned]`; `sae.d_in` is 2 * d_model."""

    view: ClassVar[str] = "concat"


@dataclass(frozen=True, kw_only=True)
class FinetunedSAERunnerConfig(DictionaryRunnerConfig):
    """A plain SAE on the fine-tuned model alone; `sae.d_in` is d_model."""

    view: ClassVar[str] = "finetuned"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """How several dictionaries are trained together: length, held-out share and seed."""

    trainer: SAETrainerConfig
    """SAELens's own config: samples, batch size, learning rate and schedule, checkpoints, W&B."""
    calibration_fraction: float = 0.1
    """Share of the sequences held out from training; the inference threshold is set on them."""
    seed: int = 0
    """Seed of the initialisation and of the batch order."""

    def n_training(self, n_sequences: int) -> int:
        """Return how many of the first sequences are used for training; the others are held out."""
        return n_sequences - max(1, round(n_sequences * self.calibration_fraction))

    def __post_init__(self) -> None:
        """Refuse settings with which SAELens would fail later."""
        check_fields(self)
        check_number(
            "calibration_fraction",
            self.calibration_fraction,
            low=0.0,
            high=1.0,
            low_open=True,
            high_open=True,
        )
        check_count("seed", self.seed, at_least=0)
        if self.trainer.lr_end is None:
            raise InvalidValueError(
                "`trainer.lr_end` must be set (SAETrainer asserts it and sets no default); "
                "for a constant schedule give it the value of `lr`"
            )
        _check_trainer(self.trainer)
        n_steps = self.trainer.total_training_samples // self.trainer.train_batch_size_samples
        if self.trainer.dead_feature_window >= n_steps:
            logger.warning(
                "`trainer.dead_feature_window` is %d steps of a run of %d: no feature is ever found "
                "dead, and AuxK never acts",
                self.trainer.dead_feature_window,
                n_steps,
            )


def _check_trainer(trainer: SAETrainerConfig) -> None:
    for name in ("train_batch_size_samples", "dead_feature_window", "feature_sampling_window"):
        check_count(f"trainer.{name}", getattr(trainer, name))
    check_count(
        "trainer.total_training_samples",
        trainer.total_training_samples,
        at_least=trainer.train_batch_size_samples,
    )
    check_count("trainer.n_batches_for_norm_estimate", trainer.n_batches_for_norm_estimate)
    for name in ("lr_warm_up_steps", "lr_decay_steps", "n_checkpoints"):
        check_count(f"trainer.{name}", getattr(trainer, name), at_least=0)
    check_number("trainer.lr", trainer.lr, low=0.0, low_open=True)
    check_number("trainer.lr_end", trainer.lr_end, low=0.0)
    for name in ("adam_beta1", "adam_beta2"):
        check_number(f"trainer.{name}", getattr(trainer, name), low=0.0, high=1.0, high_open=True)


def _check_sizes(sae: TrainingSAEConfig) -> None:
    check_count("sae.d_in", sae.d_in)
    check_count("sae.d_sae", sae.d_sae)
    for field in fields(sae):
        value = getattr(sae, field.name)
        if field.name in ("k_delta", "k_initial") and value is not None:
            check_number(f"sae.{field.name}", value, low=0.0, high=float(sae.d_sae))
        elif field.name.endswith("_coefficient") and value is not None:
            check_number(f"sae.{field.name}", value, low=0.0)
    k = getattr(sae, "k", None)
    if isinstance(sae, BatchTopKTrainingSAEConfig):  # its k is a mean
        check_number("sae.k", k, low=0.0, low_open=True, high=float(sae.d_sae))
    elif k is not None:
        check_count("sae.k", k, at_most=sae.d_sae)
