"""Rows of a batch that read one text: what they have in common is computed once, what differs for each.

Below the lowest block that an edit acts in, all readings of a text are the same. A pass over such rows
begins with one row per text; a reading gets a row of its own where something acts on it alone.
"""

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
"""The hooks of a block's output."""


def n_alike(hooks: Sequence[str], n_blocks: int) -> int:
    """Return through how many blocks a reading under these hook points is like one under none.

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
        ValueError: no reading, or a name that is not a virtual hook point's.
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
    """The rows of one forward pass, text by text: row `t * n + i` is the i-th of n readings of text t."""

    depths: tuple[int, ...]
    """Through how many blocks each reading is like those that nothing acts on."""
    n_texts: int
    n_blocks: int
    block: int = -1
    """The block whose rows are there; -1 before the first, when all are."""

    def __post_init__(self) -> None:
        """Work each block's readings out once."""
        self.readings: Callable[[int], list[int]] = cache(self._readings)

    @property
    def n(self) -> int:
        """Readings of each text."""
        return len(self.depths)

    def _readings(self, block: int) -> list[int]:
        """The readings that a block computes: those that differ by then, and one for all others."""
        if block < 0:
            return list(range(self.n))
        own = [i for i, depth in enumerate(self.depths) if depth <= block]
        alike = [i for i, depth in enumerate(self.depths) if depth > block]
        return sorted(own + alike[:1])

    @property
    def rows(self) -> Int[Tensor, "row"]:
        """The numbers of the rows that are there, one of those alike for all."""
        first = self.n * torch.arange(self.n_texts)[:, None]
        return (first + torch.tensor(self.readings(self.block))).flatten()

    def index(self, block: int, readings: Sequence[int]) -> Int[Tensor, "row"]:
        """Return where readings stand among the rows of a block."""
        there = self.readings(block)
        alike = next((i for i in there if self.depths[i] > block), 0)
        at = [there.index(i if self.depths[i] <= block else alike) for i in readings]
        return (len(there) * torch.arange(self.n_texts)[:, None] + torch.tensor(at)).flatten()

    @property
    def narrow_blocks(self) -> list[int]:
        """The blocks that do not compute all rows."""
        return [i for i in range(self.n_blocks) if len(self.readings(i)) < self.n]

    def enter(self, block: int, given: Any) -> Any:
        """Leave the rows of a block in what it is given: masks, positions, before the first the stream."""
        self.block = block
        return narrowed(given, self.n * self.n_texts, self.rows)

    def leave(self, block: int, stream: Tensor) -> Tensor:
        """Give the readings that differ from now on rows of their own."""
        index = self.index(block, self.readings(block + 1))
        self.block = block + 1
        return stream[index.to(stream.device)]

    @contextmanager
    def on(self, model: TransformerBridge, is_on: Callable[[], bool]) -> Iterator[None]:
        """Have a model's blocks run on the rows of each, while `is_on` says so."""
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

    def spread(self, cache: Any) -> None:
        """Give every row its own place in a KV cache that the narrow blocks filled."""
        for block in self.narrow_blocks:
            _hosts.reorder_cache_layer(cache, block, self.index(block, range(self.n)))


def narrowed(given: Any, n_rows: int, rows: Tensor) -> Any:
    """Leave these rows in every tensor that has all rows."""
    if isinstance(given, Tensor):
        has_rows = given.ndim > 1 and len(given) == n_rows
        return given[rows.to(given.device)] if has_rows else given
    if type(given) in (tuple, list):
        return type(given)(narrowed(item, n_rows, rows) for item in given)
    if type(given) is dict:
        return {name: narrowed(item, n_rows, rows) for name, item in given.items()}
    return given
