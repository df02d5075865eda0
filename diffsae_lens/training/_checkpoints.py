"""Resume from SAELens's checkpoints, but only from those of the same run."""

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sae_lens import TrainingSAEConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from diffsae_lens import _hosts
from diffsae_lens._artifact import (
    FORMAT,
    differences,
    locked,
    naming,
    open_artifact,
    plain,
    read_json,
    seal,
    set_aside,
    write_json,
)
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.training._mixing import Feed
from diffsae_lens.training._text_stream import FIRST_TEXTS, ONCE

logger = logging.getLogger(__name__)

MARK = "checkpoints.json"


class Checkpoints:
    """The checkpoints of one run, in the folder of its `SAETrainerConfig.checkpoint_path`.

    The folder has a mark with the recipes of the dictionaries; every checkpoint gets a manifest with its
    hashes once it is completely written. `folder` is None for a run without checkpoints.
    """

    def __init__(self, folder: str | None, recipes: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.recipes = plain(recipes)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Claim the folder for the dictionaries of this run, and remove its checkpoints at the end.

        Raises:
            ValueError: the folder holds checkpoints of another run, or of something else.
        """
        if self.folder is None:
            yield
            return
        with locked(self.folder):
            self._claim(self.folder)
            try:
                yield
            except BaseException:
                if not self._written():  # there is nothing to resume from
                    self.remove()
                raise
            self.remove()

    def _claim(self, folder: Path) -> None:
        marked = (folder / MARK).exists()
        written = self._written()
        if written and not marked:
            raise InvalidValueError(
                f"`trainer.checkpoint_path` {folder} holds checkpoints that this package did not write "
                f"(such as {written[0].name!r}), so it is not touched; choose another path"
            )
        if written:
            stored = self._stored()
            stored = {name: stored.get(name) for name in self.recipes}
            if stored != self.recipes:
                found = differences(stored, self.recipes)
                anew = f" ({ONCE})" if FIRST_TEXTS in found else ""
                raise InvalidValueError(
                    f"the checkpoints in {folder} are of a run with other settings ({found}); give each "
                    f"run a `checkpoint_path` of its own, or remove it{anew}"
                )
            return
        write_json(folder / MARK, {"format": FORMAT, "recipes": self.recipes})

    def _stored(self) -> dict[str, Any]:
        mark = read_json(self.folder / MARK) if self.folder else {}
        return mark.get("recipes", {}) if isinstance(mark, dict) else {}

    def _written(self) -> list[Path]:
        """Return the checkpoints, found by the names that SAELens gives them, and those set aside."""
        if self.folder is None or not self.folder.is_dir():
            return []
        return [
            entry
            for entry in self.folder.iterdir()
            if entry.is_dir() and entry.name.split(".")[0].removeprefix("final_").isdigit()
        ]

    def naming(self) -> AbstractContextManager[None]:
        """Make disk errors name this folder."""
        return nullcontext() if self.folder is None else naming(self.folder, kept=self.folder)

    def seal(self, checkpoint_path: Path | None) -> None:
        """Mark a checkpoint as complete, once all of it is written."""
        if checkpoint_path is not None:
            seal(checkpoint_path, {"checkpoint": checkpoint_path.name})

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or None; set damaged ones aside with a warning."""
        if self.folder is None:
            return None
        found = (entry for entry in self.folder.iterdir() if entry.name.isdigit())
        for checkpoint in sorted(found, key=lambda entry: int(entry.name), reverse=True):
            try:
                open_artifact(checkpoint)
            except FileNotFoundError:  # incomplete; written again when the run gets there
                continue
            except ValueError as error:
                set_aside(checkpoint, str(error))
            else:
                return checkpoint
        return None

    def remove(self) -> None:
        """Remove the checkpoints of a finished run, except that of `save_final_checkpoint`."""
        if self.folder is None or not (self.folder / MARK).exists():
            return
        entries = self._written()
        final = [entry for entry in entries if entry.name.startswith("final_")]
        for entry in entries:
            if entry not in final:
                shutil.rmtree(entry)
        if final:
            return
        (self.folder / MARK).unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def clean_up(self) -> None:
        """Remove the checkpoints of a run that was killed after its dictionaries were saved."""
        if self.folder is None or not (self.folder / MARK).exists():
            return
        try:
            with locked(self.folder):
                stored = self._stored()
                if all(stored.get(name) == recipe for name, recipe in self.recipes.items()):
                    self.remove()
        except (OSError, ValueError) as error:  # a read-only disk
            logger.debug("%s stays: %s", self.folder, error)


def go_on(trainer: MultiSAETrainer, feed: Feed, checkpoint: Path) -> None:
    """Restore a trainer and its feed to where they were when a checkpoint was written."""
    logger.info("going on from %s", checkpoint)
    trainer.load_checkpoint(checkpoint)
    feed.go_on(checkpoint, _n_batches_seen(trainer))
    _hosts.go_past_checkpoint(trainer)


def estimates_norms(configs: Iterable[TrainingSAEConfig]) -> bool:
    """Return whether SAELens's trainer draws batches for a norm estimate before training."""
    return any(
        cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening")
        for cfg in configs
    )


def _n_batches_seen(trainer: MultiSAETrainer) -> int:
    """Return how many batches an interrupted trainer has drawn, including those for its norm estimate."""
    seen = trainer.n_training_samples // trainer.cfg.train_batch_size_samples
    estimates = estimates_norms(sae.cfg for sae in trainer.saes.values())
    return seen + estimates * trainer.cfg.n_batches_for_norm_estimate
