"""Go on from SAELens's checkpoints, and only from those of the same run."""

import json
from collections.abc import Mapping
from pathlib import Path

from sae_lens import TrainingSAE
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

_WHOLE = "whole"


def mark_whole(checkpoint_path: Path | None) -> None:
    """Say that a checkpoint is whole: the trainer calls this once all of it is written."""
    if checkpoint_path is not None:
        (checkpoint_path / _WHOLE).touch()


def newest_checkpoint(folder: str | None, names: set[str]) -> Path | None:
    """Return the newest one that holds a whole state of every dictionary; None without any."""
    if folder is None or not Path(folder).exists():
        return None
    whole = [
        entry
        for entry in Path(folder).iterdir()
        if entry.name.isdigit()
        and (entry / _WHOLE).exists()
        and all((entry / name).exists() for name in names)
    ]
    return max(whole, key=lambda entry: int(entry.name), default=None)


def check_checkpoint(checkpoint: Path, saes: Mapping[str, TrainingSAE]) -> None:
    """Refuse the checkpoint of another run: other settings, seed, tokens or models."""
    for name, sae in saes.items():
        stored = json.loads((checkpoint / name / SAE_CFG_FILENAME).read_text())
        wanted = json.loads(json.dumps(sae.cfg.to_dict()))
        ignored = {"metadata", "device"}
        changed = sorted(k for k in wanted if k not in ignored and stored.get(k) != wanted[k])
        stored, wanted = (c["metadata"].get("diffsae_lens") or {} for c in (stored, wanted))
        changed += sorted(k for k in wanted if stored.get(k) != wanted[k])
        if changed:
            raise ValueError(
                f"the checkpoint {checkpoint / name} is of a run with another {', '.join(changed)}; "
                "give each run a `checkpoint_path` of its own, or remove it"
            )


def n_batches_seen(trainer: MultiSAETrainer) -> int:
    """Batches an interrupted trainer has drawn, those for its norm estimate included.

    `n_training_steps` will not do: a checkpoint is written before it is counted up.
    """
    estimates = any(
        sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening")
        for sae in trainer.saes.values()
    )
    seen = trainer.n_training_samples // trainer.cfg.train_batch_size_samples
    return seen + estimates * trainer.cfg.n_batches_for_norm_estimate
