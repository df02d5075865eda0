"""What hooks can ask a pair about the current forward pass, and tell it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from diffsae_lens.pair._paired_pass import PairedPass
from diffsae_lens.pair._points import PairedPoints
from diffsae_lens.pair._shared import SharedRows


class PassUnderWay(PairedPoints):
    """A pair of models and its current forward pass, if any."""

    _run: PairedPass | None = None
    _n_prompt: int | None = None
    _resumes: bool | None = None
    """Whether passes can resume from what an earlier one computed; None until it has been tested."""

    @property
    def rows(self) -> Tensor | None:
        """The indices of the rows that the current pass computes, `[batch]`; None if it computes all rows.

        Rows that read the same text (`repeats`) are computed once until something makes them differ, and
        rows that have ended are dropped.
        """
        return None if self._run is None else self._run.rows

    @property
    def attention_mask(self) -> Tensor | None:
        """The current forward pass's attention mask, `[batch, pos]`, for hooks; None without one."""
        return None if self._run is None else self._run.shown(self._run.attention_mask)

    @property
    def tokens(self) -> Tensor | None:
        """The tokens that the current forward pass reads, `[batch, pos]`, for hooks; None without one."""
        return None if self._run is None else self._run.shown(self._run.tokens)

    @property
    def columns(self) -> Tensor | None:
        """Column indices of the current forward pass's tokens in the (padded) sequence, `[pos]`."""
        return None if self._run is None else self._run.columns

    @property
    def positions(self) -> Tensor | None:
        """Number of tokens that precede each token of the current pass in its row, `[batch or 1, pos]`.

        Padding is not counted and is -1 itself; tokens in the KV cache are counted.
        """
        return None if self._run is None else self._run.shown(self._run.positions)

    @property
    def prompt_mask(self) -> Tensor | None:
        """Which tokens of the current pass belong to the prompt, as given to `forward`; otherwise None."""
        return None if self._run is None else self._run.shown(self._run.prompt_mask)

    def note_written(self, written_at: Tensor) -> None:
        """Record at which positions the current hook writes, `[batch, pos]`; for hooks to call.

        The fine-tuned model then continues unchanged at positions where no hook writes. By default it
        continues with the hook's value everywhere, which on `.base` is another model's.
        """
        if self._run is not None:
            self._run.written_at.append(written_at)

    @property
    def n_prompt(self) -> int | None:
        """Number of columns of the (padded) prompt while `generate` runs; None in a plain forward pass."""
        return self._n_prompt

    @contextmanager
    def _running(
        self, shared: SharedRows | None = None, *, attention: str | None = None
    ) -> Iterator[PairedPass]:
        """Make forward passes of the fine-tuned model fire the pair's hook points.

        Args:
            shared: the rows, if several read the same text.
            attention: the attention implementation for modules without hooks, which then run as plain
                transformers modules; None for the bridges' own computation.
        """
        raise NotImplementedError(shared, attention)
        yield
