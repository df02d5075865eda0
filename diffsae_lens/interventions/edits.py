"""Rewrite a virtual hook point's value while a context is open: where, how often, and that it was."""

from collections.abc import Callable, Iterator
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


_share: ContextVar[int | None] = ContextVar("share", default=None)
_n_shares: ContextVar[int | None] = ContextVar("n_shares", default=None)


@contextmanager
def taking_share(index: int) -> Iterator[None]:
    """Interventions opened inside act on their share of a batch alone, once `shares` are made.

    Nothing acts on what is run inside, so that one intervention does not see those beside it.
    """
    share, n_shares = _share.set(index), _n_shares.set(0)
    try:
        yield
    finally:
        _share.reset(share)
        _n_shares.reset(n_shares)


@contextmanager
def shares(n: int) -> Iterator[None]:
    """In forward passes inside every `n`th row is of the same share."""
    token = _n_shares.set(n)
    try:
        yield
    finally:
        _n_shares.reset(token)


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
    share: int | None = field(default_factory=_share.get)
    """Which rows, if a batch is shared; see `taking_share`."""

    def __post_init__(self) -> None:
        if not callable(self.where) and self.where not in get_args(NamedPositions):
            raise ValueError(
                f"`where` must be one of {get_args(NamedPositions)} or a function of the tokens, got "
                f"{self.where!r}"
            )

    def positions(self, pair: HookedModelPair, value: Tensor) -> Tensor | None:
        """Positions acted on in this forward pass, `[batch or 1, pos]`; None for all of them."""
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
        n_shares = None if self.share is None else _n_shares.get()
        if n_shares is not None:
            rows = torch.arange(len(value), device=value.device)[:, None]
            acted = acted & (rows % n_shares == self.share if n_shares else rows < 0)
        return None if acted.all() else acted


@contextmanager
def edit_hook_point(
    pair: HookedModelPair, target: Target, edit: Callable[[Tensor], Tensor | None]
) -> Iterator[Intervention]:
    """Rewrite one hook point's value, and insist that it was reached."""
    pair.check_hook_name(target.hook_name)
    intervention = Intervention(target.hook_name)

    def hook_fn(value: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
        acted = target.positions(pair, value)
        if acted is not None and not acted.any():
            return None
        intervention.n_forward_passes += 1
        edited = edit(value)
        if edited is None:
            return None
        intervention.n_changes += 1
        return edited if acted is None else torch.where(acted[..., None], edited, value)

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
