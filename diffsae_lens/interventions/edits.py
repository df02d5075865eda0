"""Rewrite a virtual hook point's value while a context is open: where, how often, and that it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffsae_lens.pair import HookedModelPair

NamedPositions = Literal["all", "prompt", "generated"]
Where = NamedPositions | Callable[[Tensor], Tensor]
"""Positions acted on: all, those of the prompt, those generated after it (with a KV cache, or under
teacher forcing), or where a function of the tokens, `[batch, pos]` to the same shape, is True."""


_prompt_mask: ContextVar[Tensor | None] = ContextVar("prompt_mask", default=None)


@dataclass(eq=False)
class Sharing:
    """Which of several interventions that are open together act, and on which rows of a batch."""

    alone: int | None = None
    """The one that acts on every row, all others being silent."""
    rows: dict[int, slice] = field(default_factory=dict)
    """What each acts on where they act side by side; silent those that are not in it."""

    def rows_of(self, index: int) -> slice | None:
        """Rows an intervention acts on now; None where it is silent."""
        return slice(None) if self.alone == index else self.rows.get(index)

    @contextmanager
    def only(self, index: int) -> Iterator[None]:
        """Interventions opened inside are number `index`, and act alone inside."""
        token, before = _share.set((self, index)), self.alone
        self.alone = index
        try:
            yield
        finally:
            self.alone = before
            _share.reset(token)

    @contextmanager
    def side_by_side(self, indices: Sequence[int]) -> Iterator[None]:
        """In batches run inside each of these has every `len(indices)`th row."""
        n = len(indices)
        self.rows = {index: slice(at, None, n) for at, index in enumerate(indices)}
        try:
            yield
        finally:
            self.rows = {}


_share: ContextVar[tuple[Sharing, int] | None] = ContextVar("share", default=None)


@contextmanager
def reading(prompt_mask: Tensor) -> Iterator[None]:
    """Say which tokens are of the prompt, `[batch, pos]`, where it and its completion are one pass.

    Interventions on `prompt` or `generated` tokens act by it.
    """
    token = _prompt_mask.set(prompt_mask)
    try:
        yield
    finally:
        _prompt_mask.reset(token)


@dataclass
class Intervention:
    """What a context manager yields: how often the intervention acted."""

    hook_name: str
    """The virtual hook point it acts on."""
    n_forward_passes: int = 0
    """Forward passes it saw (each generated token is one)."""
    n_changes: int = 0
    """Forward passes with something to change: 0 if ablated features never fired."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an intervention acts."""

    hook_name: str
    where: Where
    skip_positions: int = 0
    """Leading tokens of the prompt left alone."""
    share: tuple[Sharing, int] | None = field(default_factory=_share.get)
    """With whom it shares batches, and its number there."""

    def __post_init__(self) -> None:
        if not callable(self.where) and self.where not in get_args(NamedPositions):
            raise ValueError(
                f"`where` must be one of {get_args(NamedPositions)} or a function of the tokens, got "
                f"{self.where!r}"
            )

    @property
    def rows(self) -> slice | None:
        """Rows of a batch acted on in this forward pass; None for none of them."""
        if self.share is None:
            return slice(None)
        sharing, index = self.share
        return sharing.rows_of(index)

    def positions(self, pair: HookedModelPair, value: Tensor, rows: slice) -> Tensor | None:
        """Positions of these rows acted on, `[row or 1, pos]`; None for all of them.

        Args:
            pair: the two models.
            value: of the whole batch, `[batch, pos, d_in]`.
            rows: those that are acted on.
        """
        n = value.shape[1]
        # With a KV cache the prompt passes at once, and each generated token alone after it.
        is_prompt = torch.full((1, n), n > 1, device=value.device)
        known = _prompt_mask.get()
        if known is not None:
            is_prompt = known.to(value.device)
        acted = torch.ones_like(is_prompt)
        if callable(self.where):
            acted = self.where(pair.tokens).to(value.device)  # type: ignore[arg-type]
        elif self.where != "all":
            acted = is_prompt if self.where == "prompt" else ~is_prompt
        if self.skip_positions and n > 1:
            acted = acted & ~_leading(pair, value, self.skip_positions)
        acted = acted[rows] if len(acted) > 1 else acted
        return None if acted.all() else acted


@contextmanager
def edit_hook_point(
    pair: HookedModelPair, target: Target, edit: Callable[[Tensor], Tensor | None]
) -> Iterator[Intervention]:
    """Rewrite one hook point's value, and insist that it was reached."""
    pair.check_hook_name(target.hook_name)
    intervention = Intervention(target.hook_name)

    def hook_fn(value: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
        rows = target.rows
        if rows is None:
            return None
        acted = target.positions(pair, value, rows)
        if acted is not None and not acted.any():
            return None
        intervention.n_forward_passes += 1
        own = value[rows]
        edited = edit(own)
        if edited is None:
            return None
        intervention.n_changes += 1
        new = edited if acted is None else torch.where(acted[..., None], edited, own)
        if rows == slice(None):
            return new
        whole = value.clone()
        whole[rows] = new
        return whole

    with pair.hooks(fwd_hooks=[(target.hook_name, hook_fn)]):
        yield intervention
    if intervention.n_forward_passes == 0:
        raise RuntimeError(
            f"the intervention on {target.hook_name} never acted: no forward pass of the pair ran "
            "while it was open, or none where it acts (calls on `pair.finetuned` do not count; call "
            "the pair itself)"
        )


def _leading(pair: HookedModelPair, value: Tensor, n: int) -> Tensor:
    """The first `n` tokens of each row that are no padding, `[batch or 1, pos]`."""
    positions = torch.arange(value.shape[1], device=value.device)[None]
    mask = pair.attention_mask
    if mask is None or mask.ndim != 2 or mask.shape[1] != value.shape[1]:
        return positions < n
    return positions < mask.to(value.device).int().argmax(1, keepdim=True) + n
