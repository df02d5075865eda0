"""Reading paired activations from disk: aligned rows, and shuffled batches for training.

The folder is a `datasets` folder with a `token_ids` column and, in float32, one `Array2D(context_size, d_in)`
column per virtual hook point, which is what SAELens reads with `use_cached_activations=True`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens._artifact import Manifest, open_artifact
from diffsae_lens._checks import check_count
from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._tokens import TokenPolicy
from diffsae_lens.training._columns import (
    StoredDtype,
    columns_of,
    read_columns,
    seen,
    stored_columns,
)
from diffsae_lens.training._mixing import Batch, Feed, Mixer
from diffsae_lens.training._run_config import TrainingRun

KIND = "harvest"
"""The `kind` in the recipe of a harvest."""


@dataclass(frozen=True)
class PairedActivations(Record):
    """A finished harvest on disk; in float32, SAELens can read `path` as `cached_activations_path`."""

    path: Path
    hook_names: tuple[str, ...]
    """Virtual hook points, such as `blocks.18.hook_resid_post.diff`."""
    context_size: int
    """Number of positions kept per sequence."""
    n_sequences: int
    ignored_token_ids: tuple[int, ...]
    """Padding and special tokens; their activations are stored but never yielded."""
    pair: PairMetadata = field(repr=False)
    """The two models."""
    recipe: dict[str, Any] = field(repr=False)
    """What the activations depend on: the models' fingerprints, tokens, hook points and settings."""

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "PairedActivations":
        """Open the harvest that a manifest describes."""
        recipe = manifest.recipe
        n_sequences, width = recipe["tokens_shape"]
        return cls(
            path=manifest.path,
            hook_names=tuple(recipe["hook_names"]),
            context_size=width - recipe["skip_positions"],
            n_sequences=n_sequences,
            ignored_token_ids=tuple(recipe["ignored_token_ids"]),
            pair=PairMetadata.of_stored(manifest.facts["pair"]),
            recipe=recipe,
        )

    @property
    def policy(self) -> TokenPolicy:
        """Which tokens the harvest yields."""
        return TokenPolicy(
            skip_positions=self.recipe["skip_positions"], ignored_token_ids=self.ignored_token_ids
        )

    @property
    def stored_as(self) -> StoredDtype:
        """The dtype on disk; reading always gives float32."""
        return self.recipe.get("stored_as", "float32")

    def showing(self, hooks: Sequence[VirtualHook]) -> "PairedActivations":
        """Return the same harvest with other hook points, each harvested or derived from its `.concat`.

        Raises:
            ValueError: a hook point that is neither.
        """
        stored = self.recipe["hook_names"]
        for hook in hooks:
            if not {hook.name, hook.with_view("concat").name} & set(stored):
                raise InvalidValueError(
                    f"`hooks` must be of what was harvested, {stored}, got {hook.name!r}"
                )
        return replace(self, hook_names=tuple(hook.name for hook in hooks))

    def sequences(self, start: int, stop: int) -> dict[str, Float[Tensor, "seq pos d_in"]]:
        """Read whole sequences into memory, including padding and special tokens."""
        rows = self._read(range(start, min(stop, self.n_sequences)))
        return {name: seen(name, rows) for name in self.hook_names}

    def rows(self, start: int, stop: int) -> dict[str, Float[Tensor, "token d_in"]]:
        """Read the kept tokens of some sequences into memory, aligned across hook points."""
        return self._take(range(start, min(stop, self.n_sequences)))

    def _read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Read these sequences of the columns that the hook points are derived from."""
        stored = stored_columns(self.recipe["hook_names"], self.stored_as)
        columns = columns_of(self.hook_names, stored=stored)
        return read_columns(load_dataset(self.path), indices, columns, self.stored_as)

    def _take(self, indices: Sequence[int]) -> Batch:
        rows = self._read(indices)
        kept = ~torch.isin(rows.pop("token_ids"), torch.tensor(self.ignored_token_ids))
        rows = {column: values[kept] for column, values in rows.items()}
        return {name: seen(name, rows) for name in self.hook_names}

    @property
    def widths(self) -> dict[str, int]:
        """The width of each hook point."""
        return {name: rows.shape[1] for name, rows in self.rows(0, 1).items()}

    def feed(self, run: TrainingRun) -> Feed:
        """Return the batches for a training run."""
        return Feed(self._training_batches(run))

    def first_batches(self, run: TrainingRun) -> Iterator[Batch]:
        """Return the first batches of a training run, on which its normalisation is estimated."""
        n_tokens = run.n_training(self.n_sequences) * self.context_size
        in_one_pass = max(1, n_tokens // run.trainer.train_batch_size_samples)
        n_batches = min(run.trainer.n_batches_for_norm_estimate, in_one_pass)
        return islice(self._training_batches(run), n_batches)

    def held_out(self, run: TrainingRun) -> Batch:
        """Read the tokens that a training run holds out."""
        return self.rows(run.n_training(self.n_sequences), self.n_sequences)

    def _training_batches(self, run: TrainingRun) -> Iterator[Batch]:
        stop = run.n_training(self.n_sequences)
        return self.batches(run.trainer.train_batch_size_samples, seed=run.seed, stop=stop)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        stop: int | None = None,
        sequences_in_memory: int = 512,
    ) -> Iterator[dict[str, Float[Tensor, "batch d_in"]]]:
        """Yield shuffled token batches forever, with the same tokens for every hook point.

        Args:
            batch_size: tokens per batch.
            seed: seed of the order; the same seed gives the same batches.
            start: first sequence used.
            stop: end of the sequences used; None for all.
            sequences_in_memory: how many sequences are read and shuffled together.

        Raises:
            ValueError: there are fewer tokens than one batch needs.
        """
        check_count("batch_size", batch_size)
        generator = torch.Generator().manual_seed(seed)
        stop = self.n_sequences if stop is None else stop
        while True:
            order = (start + torch.randperm(stop - start, generator=generator)).tolist()
            mixer = Mixer(batch_size, generator)
            n_batches = 0
            for i in range(0, len(order), sequences_in_memory):
                mixer.add(self._take(order[i : i + sequences_in_memory]))
                n_batches += mixer.n_batches
                while mixer.n_batches:
                    yield mixer.serve()
            if n_batches == 0:
                raise InvalidValueError(
                    f"`batch_size` {batch_size} is more than the tokens of the harvest in {self.path}"
                )


@typed
def open_harvest(path: str | Path) -> PairedActivations:
    """Open a finished harvest and check its files against their hashes.

    Raises:
        FileNotFoundError: there is no harvest, or it is not finished.
        ValueError: a file is missing or fails its hash, or `path` is another kind of artifact.
    """
    manifest = open_artifact(path)
    if manifest.recipe.get("kind") != KIND:
        raise InvalidValueError(
            f"`path` {path} is not a harvest, but a {manifest.recipe.get('kind')}"
        )
    return PairedActivations.of_manifest(manifest)


def load_dataset(path: Path) -> datasets.Dataset:
    """Open a folder that holds one dataset.

    Raises:
        ValueError: the folder holds several datasets.
    """
    dataset = datasets.load_from_disk(str(path))
    if not isinstance(dataset, datasets.Dataset):
        raise InvalidValueError(f"{path} holds several datasets, not one harvest; remove it")
    return dataset
