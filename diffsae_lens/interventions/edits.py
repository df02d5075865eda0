"""Rewrite a virtual hook point's value while a context is open: where, how often, and that it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.tokens import EVERY_TOKEN, TokenPolicy

NamedPositions = Literal["all", "prompt", "generated"]
Where = NamedPositions | Callable[[Tensor], Tensor]
"""Positions acted on: all, those of the prompt, those generated after it (or written after it, under
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


@dataclass(eq=False)
class Intervention:
    """What a context manager yields: how often the intervention acted."""

    hook_name: str
    """The virtual hook point it acts on."""
    n_forward_passes: int = 0
    """Forward passes it saw (each generated token is one)."""
    n_changes: int = 0
    """Forward passes with something to change: 0 if ablated features never fired."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """Where an intervention acts."""

    hook_name: str
    where: Where
    policy: TokenPolicy = EVERY_TOKEN
    """Tokens left alone wherever they stand; padding always is."""
    share: tuple[Sharing, int] | None = field(default_factory=_share.get)
    """With whom it shares batches, and its number there."""

    def __post_init__(self) -> None:
        named = get_args(NamedPositions)
        if not callable(self.where) and (
            not isinstance(self.where, str) or self.where not in named
        ):
            raise ValueError(
                f"`where` must be one of {named} or a function of the tokens, got {self.where!r}; "
                "choose one"
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
        tokens, positions = pair.tokens, pair.positions
        if (
            tokens is None or positions is None
        ):  # embeddings were passed: nothing tells tokens apart
            positions = torch.arange(value.shape[1], device=value.device)[None]
            tokens = torch.zeros_like(positions)
        acted = self.policy.counted(tokens, positions).to(value.device)
        if callable(self.where):
            acted = acted & _chosen(self.where, tokens).to(value.device)
        elif self.where != "all":
            is_prompt = _is_prompt(pair, value)
            acted = acted & (is_prompt if self.where == "prompt" else ~is_prompt)
        acted = acted[rows] if len(acted) > 1 else acted
        return None if acted.all() else acted


def _chosen(where: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    chosen = where(tokens)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != tokens.shape:
        got = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else repr(chosen)
        raise ValueError(
            f"`where` must return a boolean tensor of shape {list(tokens.shape)}, got {got}"
        )
    return chosen


def _is_prompt(pair: HookedModelPair, value: Tensor) -> Tensor:
    """Which positions of the pass under way are of the prompt, `[batch or 1, pos]`."""
    known = _prompt_mask.get()
    if known is not None:
        return known.to(value.device)
    columns = pair.columns
    if columns is None:
        return torch.ones(1, value.shape[1], dtype=torch.bool, device=value.device)
    # Outside of `generate`, what a KV cache is gone on with has been generated.
    n_prompt = pair.n_prompt
    is_prompt = (
        columns < n_prompt if n_prompt is not None else (columns[:1] == 0).expand_as(columns)
    )
    return is_prompt[None].to(value.device)


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
        new = edited if acted is None else torch.where(acted[..., None], edited, own)
        if acted is not None and torch.equal(new, own):
            return None
        intervention.n_changes += 1
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
