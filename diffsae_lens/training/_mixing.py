"""Shuffling of tokens through a buffer, and the feed of batches that a trainer draws from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

Batch = dict[str, Tensor]
"""Tokens of several hook points, aligned: `[token, d_in]` by name."""


class Mixer:
    """A buffer that shuffles added tokens with those left from earlier additions and serves batches.

    SAELens's `mixing_buffer` does the same, but it draws from torch's global generator and keeps its buffer
    in a local variable, so that a checkpoint can hold neither; and it copies the buffer at every addition.
    """

    def __init__(self, batch_size: int, generator: torch.Generator, *, n_mixed: int = 0) -> None:
        self.batch_size = batch_size
        self.generator = generator
        self.n_mixed = n_mixed
        """Minimum number of tokens kept to mix with the next addition; up to a batch more are kept."""
        self.n_batches = 0
        """Number of batches that can be served now."""
        self._rows: Batch = {}
        self._order = torch.empty(0, dtype=torch.long)

    @property
    def n_tokens(self) -> int:
        """Number of tokens held, including those served since the last addition."""
        return len(next(iter(self._rows.values()), self._order))

    @property
    def left(self) -> Batch:
        """The tokens not yet served, in the order in which they will be."""
        return {name: rows[self._order] for name, rows in self._rows.items()}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add tokens and shuffle them with those left."""
        left = self.left
        self._rows = {n: torch.cat([left.pop(n), rows[n]]) if left else rows[n] for n in rows}
        self._order = torch.randperm(self.n_tokens, generator=self.generator)
        self.n_batches = max(0, self.n_tokens - self.n_mixed) // self.batch_size

    def put_back(self, left: Mapping[str, Tensor], n_batches: int) -> None:
        """Restore the tokens that another mixer had left."""
        self._rows = dict(left)
        self._order = torch.arange(self.n_tokens)
        self.n_batches = n_batches

    def release(self) -> None:
        """Allow everything to be served, since nothing more will be added."""
        self.n_batches = len(self._order) // self.batch_size

    def serve(self) -> Batch:
        """Return the next batch."""
        index, self._order = self._order.tensor_split([self.batch_size])
        self.n_batches -= 1
        return {name: rows[index] for name, rows in self._rows.items()}


class Feed(Iterator[Batch]):
    """Batches for a trainer, which can resume from a checkpoint."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    @override
    def __next__(self) -> Batch:
        return next(self._batches)

    def save(self, checkpoint: Path) -> None:
        """Save to a checkpoint what resuming needs: nothing if the batches can be drawn again."""

    def go_on(self, checkpoint: Path, n_batches: int) -> None:  # noqa: ARG002
        """Move to where the feed was when the checkpoint was written, after `n_batches`."""
        for _ in range(n_batches):
            next(self)

    def close(self) -> None:
        """Stop drawing."""
