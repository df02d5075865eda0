"""The dictionaries that demo and study train, and for how long: minutes on two cores."""

from pathlib import Path

from sae_lens.config import SAETrainerConfig

from diffsae_lens._checks import check_count, check_number
from diffsae_lens._errors import OccupiedPathError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.training._normalization import Normalization
from diffsae_lens.training._runner import CrosscoderRunnerConfig, DiffSAERunnerConfig


@typed
def diff_sae(
    hook_name: str, *, d_model: int, d_sae: int, k: int, device: str = "cpu"
) -> DiffSAERunnerConfig:
    """Return a BatchTopK Diff-SAE on differences that are scaled but not centred."""
    _check(d_model=d_model, d_sae=d_sae, k=k, device=device)
    return DiffSAERunnerConfig(
        hook_name=hook_name,
        sae=SparseBatchTopKTrainingSAEConfig(d_in=d_model, d_sae=d_sae, k=k, device=device),
        normalization=Normalization(center=False),
    )


@typed
def crosscoder(
    hook_name: str, *, d_model: int, d_sae: int, k: int, device: str = "cpu"
) -> CrosscoderRunnerConfig:
    """Return a BatchTopK crosscoder on activations that are centred and scaled by model."""
    _check(d_model=d_model, d_sae=d_sae, k=k, device=device)
    return CrosscoderRunnerConfig(
        hook_name=hook_name,
        sae=BatchTopKCrosscoderTrainingSAEConfig(d_in=2 * d_model, d_sae=d_sae, k=k, device=device),
        normalization=Normalization(),
    )


@typed
def short_training(
    *, n_steps: int, checkpoints: Path, batch_size: int = 512, lr: float = 2e-3, device: str = "cpu"
) -> SAETrainerConfig:
    """Return the config of a run of a few hundred steps: warm-up over a tenth, linear decay to 0 over half.

    Args:
        n_steps: number of training steps.
        checkpoints: the folder of the run's three checkpoints, from which it can resume.
        batch_size: tokens per step.
        lr: peak learning rate.
        device: a torch device.

    Raises:
        TypeError: an argument that is not a count, a number or a path.
        ValueError: a number out of range, or a device that is not available.
        FileExistsError: `checkpoints` is a file.
    """
    n_steps, batch_size = check_count("n_steps", n_steps), check_count("batch_size", batch_size)
    lr = check_number("lr", lr, low=0, low_open=True)
    if checkpoints.is_file():
        raise OccupiedPathError(f"`checkpoints` {checkpoints} is a file; name a folder")
    LoadOptions(device=device)  # raises if the device is not available
    return SAETrainerConfig(
        total_training_samples=n_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_end=lr / 10,  # SAELens requires it; its constant schedule with decay does not read it
        lr_warm_up_steps=n_steps // 10,
        lr_decay_steps=n_steps // 2,
        # In forward passes; the usual 1000 would be longer than the run.
        dead_feature_window=max(20, n_steps // 8),
        n_batches_for_norm_estimate=20,
        device=device,
        n_checkpoints=3,
        checkpoint_path=str(checkpoints),
    )


def _check(*, d_model: int, d_sae: int, k: int, device: str) -> None:
    """Refuse invalid sizes, and a device that is not available."""
    check_count("d_model", d_model)
    check_count("k", k, at_most=check_count("d_sae", d_sae))
    LoadOptions(device=device)
