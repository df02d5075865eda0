"""What hooks may ask a pair about the forward pass under way, and tell it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from diffsae_lens.pair._paired_pass import PairedPass
from diffsae_lens.pair._points import PairedPoints
from diffsae_lens.pair._shared import SharedRows


class PassUnderWay(PairedPoints):
    """A pair of models and the forward pass that it is in, if it is in one."""

    _run: PairedPass | None = None
    _n_prompt: int | None = None

    @property
    def rows(self) -> Tensor | None:
        """The numbers of the rows that the pass under way computes, `[batch]`; None if it has them all.

        Rows that read one text (`repeats`) are computed once for as long as nothing tells them apart,
        and rows that have ended are no longer there.
        """
        return None if self._run is None else self._run.rows

    @property
    def attention_mask(self) -> Tensor | None:
        """That of the forward pass under way, `[batch, pos]`, for hooks to read; None without one."""
        return None if self._run is None else self._run.shown(self._run.attention_mask)

    @property
    def tokens(self) -> Tensor | None:
        """What the forward pass under way reads, `[batch, pos]`, for hooks; None without one."""
        return None if self._run is None else self._run.shown(self._run.tokens)

    @property
    def columns(self) -> Tensor | None:
        """Where in the (padded) sequence the tokens of the forward pass under way stand, `[pos]`."""
        return None if self._run is None else self._run.columns

    @property
    def positions(self) -> Tensor | None:
        """How many tokens of its row stand before each token of the pass under way, `[batch or 1, pos]`.

        Padding does not count and is -1; tokens that the KV cache holds count.
        """
        return None if self._run is None else self._run.shown(self._run.positions)

    @property
    def prompt_mask(self) -> Tensor | None:
        """Which tokens of the pass under way are of the prompt, if `forward` was told; else None."""
        return None if self._run is None else self._run.shown(self._run.prompt_mask)

    def note_written(self, written_at: Tensor) -> None:
        """Say at which positions the hook under way writes, `[batch, pos]`, for hooks to call.

        The fine-tuned model then goes on as it was at those where no hook writes. By default it goes on
        with the value everywhere, and that of `.base` is another model's.
        """
        if self._run is not None:
            self._run.written_at.append(written_at)

    @property
    def n_prompt(self) -> int | None:
        """Columns of the (padded) prompt while `generate` runs; None in a plain forward pass."""
        return self._n_prompt

    @contextmanager
    def _running(
        self, shared: SharedRows | None = None, *, attention: str | None = None
    ) -> Iterator[PairedPass]:
        """Have forward passes of the fine-tuned model show the pair's hook points.

        Args:
            shared: the rows, where several read one text.
            attention: the implementation by which the models compute attention, and all else as
                transformers has it, where nobody hooks them; None for the bridges' own computation.
        """
        raise NotImplementedError(shared, attention)
        yield
