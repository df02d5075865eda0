"""Rows of a batch that read the same text: what they share is computed once, what differs per row.

Below the lowest block that an edit acts on, all readings of a text are the same. A pass over such rows
starts with one row per text; a reading gets its own row where an edit acts on it alone, or once it has
generated something different. Nothing acts on the base, so it reads every text once.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from diffsae_lens import _hosts
from diffsae_lens._checks import check_list
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._hook import VirtualHook

_ENDS = ("hook_resid_post", "hook_out")
"""The hooks on a block's output."""


def n_alike(hooks: Sequence[str], n_blocks: int) -> int:
    """Return through how many blocks a reading with these hook points is the same as one without any.

    Examples:
        >>> n_alike(["blocks.18.hook_resid_post.diff", "blocks.20.hook_mlp_out.diff"], 30)
        19
        >>> n_alike([], 30)
        30
    """
    return min((_n_before(VirtualHook.parse(name)) for name in hooks), default=n_blocks)


def check_repeats(repeats: Any) -> list[list[str]]:
    """Return the hook points of each reading of a text.

    Raises:
        TypeError: not a list of lists of names.
        ValueError: no readings, or a name that is not a virtual hook point's.
    """
    readings = [
        check_list("repeats", hooks, "virtual hook points")
        for hooks in check_list("repeats", repeats, "lists of virtual hook points")
    ]
    if not readings:
        raise InvalidValueError("`repeats` is empty; give the hook points of each reading")
    for name in {name for hooks in readings for name in hooks}:
        VirtualHook.parse(name)
    return readings


def _n_before(hook: VirtualHook) -> int:
    if hook.layer is None:
        return 0
    return hook.layer + (hook.site in {f"blocks.{hook.layer}.{end}" for end in _ENDS})


@dataclass(eq=False)
class SharedRows:
    """The rows of a forward pass or of a generation: row `t * n + i` is the i-th of n readings of text t.

    A block computes two readings once as long as nothing below it has made them differ and they read the
    same text: in the prompt, and in the completion up to the first token that differs.
    """

    depths: tuple[int, ...]
    """Through how many blocks each reading is the same as one that nothing acts on."""
    n_texts: int
    n_blocks: int
    block: int = -1
    """The block whose rows are present; -1 before the first block, when all rows are."""

    def __post_init__(self) -> None:
        """Start with the prompts, where all readings of a text are the same."""
        self._all = torch.arange(self.n_texts * len(self.depths))
        self._texts = self._all // len(self.depths)
        self._bounds = sorted(set(self.depths))
        self._plan_all()

    def _plan_all(self) -> None:
        """Plan which rows are computed, by how many of the depths have been passed.

        Each plan holds the first row of every group that is computed as one, `[computed]`, and the index
        of each row's group among these, `[row]`.
        """
        depths = torch.tensor(self.depths)[self._all % len(self.depths)]
        rows = torch.arange(len(self._all))
        self._plans: list[tuple[Int[Tensor, "computed"], Int[Tensor, "row"]]] = []
        for passed in (-1, *self._bounds):
            own = depths <= passed
            alike = torch.where(own, len(rows), rows)
            first = rows.new_full((len(rows),), len(rows))
            first = first.scatter_reduce(0, self._texts, alike, "amin")[self._texts]
            self._plans.append(torch.where(own, rows, first).unique(return_inverse=True))

    def _plan(self, block: int) -> tuple[Tensor, Tensor]:
        return self._plans[-1 if block < 0 else bisect_right(self._bounds, block)]

    @property
    def there(self) -> Int[Tensor, "computed"] | None:
        """The rows of the batch that are present now, one per group computed as one; None for all."""
        first = self._plan(self.block)[0]
        return None if self.block < 0 or len(first) == len(self._all) else first

    @property
    def rows(self) -> Int[Tensor, "computed"]:
        """The indices of the rows that are present."""
        return self._all if self.there is None else self._all[self.there]

    @property
    def of_base(self) -> Int[Tensor, "text"]:
        """The rows of the batch that the base computes, one per text."""
        return self._plans[0][0]

    def spread(self, of_base: Tensor) -> Tensor:
        """Return the base's values for each of the rows that are present."""
        place = self._plans[0][1]
        return of_base[(place if self.there is None else place[self.there]).to(of_base.device)]

    @property
    def narrow_blocks(self) -> list[int]:
        """The blocks that may compute fewer rows than the whole batch."""
        return list(range(min(self.n_blocks, max(self.depths))))

    def enter(self, block: int, given: Any) -> Any:
        """Narrow a block's inputs to its rows: masks, positions and, in the first block, the stream."""
        self.block = block
        there = self.there
        return given if there is None else narrowed(given, len(self._all), there)

    def leave(self, block: int, stream: Tensor) -> Tensor:
        """Give separate rows to the readings that differ from here on."""
        place = self._plan(block)[1]
        self.block = block + 1
        index = place if self.there is None else place[self.there]
        return stream if len(index) == len(stream) else stream[index.to(stream.device)]

    def go_on(
        self, tokens: Int[Tensor, "row"], kept: Int[Tensor, "row"] | None = None
    ) -> Callable[[int], Int[Tensor, "computed"] | None]:
        """Separate rows of one text by the tokens that they read next.

        Args:
            tokens: the next token of each row that continues.
            kept: the previous indices of these rows; None if all continue.

        Returns:
            A function that takes a block (-1 for the base) and returns, for each row that it will
            compute, the previously computed row that it continues; None if no row moves.
        """
        kept = torch.arange(len(self._all)) if kept is None else kept.cpu()
        before = [(len(first), place[kept]) for first, place in self._plans]
        self._all = self._all[kept]
        pairs = torch.stack([self._texts[kept], tokens.cpu()], dim=1)
        self._texts = pairs.unique(dim=0, return_inverse=True)[1]
        self._plan_all()

        @cache
        def gone_on_from(passed: int) -> Tensor | None:
            n_before, place = before[passed]
            index = place[self._plans[passed][0]]
            return None if torch.equal(index, torch.arange(n_before)) else index

        return lambda block: gone_on_from(0 if block < 0 else bisect_right(self._bounds, block))

    @contextmanager
    def on(self, model: TransformerBridge, is_on: Callable[[], bool]) -> Iterator[None]:
        """Make each of a model's blocks run only on its rows while `is_on` returns True."""
        blocks = self.narrow_blocks

        def enter(_: Any, args: tuple, kwargs: Mapping[str, Any], *, block: int) -> Any:
            return self.enter(block, (args, dict(kwargs))) if is_on() else None

        def leave(stream: Tensor, hook: Any, *, block: int) -> Tensor | None:  # noqa: ARG001
            return self.leave(block, stream) if is_on() else None

        with ExitStack() as stack:
            for block in blocks:
                entering = model.blocks[block].register_forward_pre_hook(
                    partial(enter, block=block), with_kwargs=True
                )
                stack.callback(entering.remove)
            leaving = [
                (f"blocks.{block}.hook_resid_post", partial(leave, block=block)) for block in blocks
            ]
            stack.enter_context(_hosts.hooks_on(model, leaving))
            yield


def narrowed(given: Any, n_rows: int, rows: Tensor) -> Any:
    """Return nested inputs with every tensor of `n_rows` rows narrowed to the given rows."""
    if isinstance(given, Tensor):
        has_rows = given.ndim > 1 and len(given) == n_rows
        return given[rows.to(given.device)] if has_rows else given
    if type(given) in (tuple, list):
        return type(given)(narrowed(item, n_rows, rows) for item in given)
    if type(given) is dict:
        return {name: narrowed(item, n_rows, rows) for name, item in given.items()}
    return given
