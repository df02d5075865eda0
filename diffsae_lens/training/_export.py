"""Export of a finished training run: the inference form, its threshold and its record."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_lens import SAE, BatchTopKTrainingSAEConfig, TrainingSAE
from torch import Tensor

from diffsae_lens._artifact import Job, build, write_json
from diffsae_lens.dictionaries._delta import DeltaCrosscoderTrainingSAEConfig
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.training._calibration import calibrate_threshold
from diffsae_lens.training._mixing import Batch
from diffsae_lens.training._run_config import (
    DictionaryRunnerConfig,
    TrainingRun,
)
from diffsae_lens.training._stream import Activations


def record_of(
    config: DictionaryRunnerConfig,
    activations: Activations,
    run: TrainingRun,
    normalization: Mapping[str, Any] | None,
) -> DictionaryRecord:
    """Return the record needed to use a dictionary on the right pair, hook and tokens."""
    return DictionaryRecord(
        hook_name=config.hook.name,
        pair=activations.pair,
        tokens=activations.policy,
        seed=run.seed,
        normalization=normalization,
        frozen_decoder=getattr(config.sae, "frozen_decoder", False),
        tokens_sha256=activations.recipe.get("tokens_sha256"),
        model_name=activations.pair.finetuned,
        prepend_bos=activations.recipe["prepend_bos"],
        context_size=activations.context_size,
        versions={
            name: version(name)
            for name in ("diffsae-lens", "sae-lens", "transformer-lens", "torch")
        },
    )


def export(
    sae: TrainingSAE,
    config: DictionaryRunnerConfig,
    recipe: Mapping[str, Any],
    held_out: Callable[[], Batch],
    path: Path,
    run: TrainingRun,
) -> None:
    """Save the inference form, with the threshold calibrated on held-out tokens."""

    def write(job: Job) -> None:
        sae.save_inference_model(job.out)
        if isinstance(config.sae, BatchTopKTrainingSAEConfig):
            tokens = held_out()[config.hook.name].to(run.trainer.device)
            _calibrate(job.out, config.sae, tokens)
        settings = {k: v for k, v in vars(run.trainer).items() if k != "logger"}
        write_json(job.out / "trainer_cfg.json", settings)

    build(path, recipe, write)


def _calibrate(folder: Path, config: BatchTopKTrainingSAEConfig, held_out: Tensor) -> None:
    inference = SAE.load_from_disk(folder, device=str(held_out.device))
    budgets = _budgets(config)
    l0 = [calibrate_threshold(inference, held_out, k=k, features=f) for f, k in budgets][-1]
    k = sum(k for _, k in budgets)
    replace(DictionaryRecord.of(inference), k=k, l0=l0).write_to(inference.cfg)
    inference.save_model(folder)


def _budgets(config: BatchTopKTrainingSAEConfig) -> list[tuple[slice, int | float]]:
    """Return which features share a BatchTopK budget, and how many of them fire."""
    if isinstance(config, DeltaCrosscoderTrainingSAEConfig):
        n_delta = config.n_delta_features
        return [(slice(0, n_delta), config.k_delta), (slice(n_delta, config.d_sae), config.k)]
    return [(slice(0, config.d_sae), config.k)]
