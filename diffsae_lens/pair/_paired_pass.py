"""One forward pass of a pair: the base beside the fine-tuned model, and hooks on what both compute."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from diffsae_lens import _hosts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._hook import VirtualHook

Hook = tuple[str, Callable[..., Tensor | None]]


class _AllGrabbedError(Exception):
    """Ends the base's forward pass once the last activation asked for has been read."""


@dataclass(eq=False)
class PairedPass:
    """One forward pass of a pair, or one generation, with what its hooks may ask about it."""

    points: Mapping[str, HookPoint]
    """The pair's hook points by name."""
    hooked: Mapping[str, Sequence[VirtualHook]]
    """Those that somebody hooks, by site."""
    base_model: Callable[[], AbstractContextManager[TransformerBridge]]
    """Opens the base model."""
    given: Mapping[str, Tensor] | None = None
    """The base's activations by site, if they are known and the base need not run."""
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None
    n_before: int = 0
    """Tokens that the fine-tuned model's KV cache holds."""
    prompt_mask: Tensor | None = None
    """Which tokens are of the prompt, `[batch, pos]`, if whoever runs the pair has said so."""
    _activations: dict[str, Tensor] = field(default_factory=dict)
    _cache: DynamicCache | None = None
    _base_runs: bool = False

    @property
    def columns(self) -> Int[Tensor, "pos"] | None:
        """Where in the (padded) sequence the tokens of this pass stand."""
        if self.tokens is None:
            return None
        return self.n_before + torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def positions(self) -> Int[Tensor, "row pos"] | None:
        """How many tokens of its row stand before each token of this pass; -1 for padding."""
        columns, mask = self.columns, self.attention_mask
        if columns is None:
            return None
        if mask is None or mask.ndim != 2 or mask.shape[1] <= int(columns[-1]):
            return columns[None]
        attended = mask.to(columns.device) != 0
        counted = (attended.long().cumsum(1) - 1).masked_fill(~attended, -1)
        return counted[:, columns]

    @property
    def splices(self) -> list[Hook]:
        """The hooks on the fine-tuned model that show the hooked views their values."""
        return [(site, partial(self._splice, site=site)) for site in self.hooked]

    @property
    def _read_of_base(self) -> list[str]:
        """The sites at which a hooked view needs the base to run."""
        return [
            site
            for site, hooks in self.hooked.items()
            if any(hook.spec.needs_base for hook in hooks)
        ]

    def run_base(self, _: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """Run the base on what the fine-tuned model is about to read, with a KV cache of its own.

        A forward pre-hook of the fine-tuned model, with keywords.
        """
        if self._base_runs:
            return
        self.attention_mask = kwargs.get("attention_mask")
        self.tokens = args[0] if args else kwargs.get("input_ids")
        past = kwargs.get("past_key_values")
        self.n_before = 0 if past is None else past.get_seq_length()
        sites = self._read_of_base
        if not sites:
            return
        if self.given is not None:
            self._activations = {site: self.given[site] for site in sites}
            return
        inputs = {k: kwargs[k] for k in ("attention_mask", "position_ids") if k in kwargs}
        grabs = [(site, partial(self._grab, site=site, n=len(sites))) for site in sites]
        self._activations.clear()
        self._base_runs = True
        try:
            with self.base_model() as base, torch.no_grad(), base.hooks(fwd_hooks=grabs):
                if kwargs.get("use_cache"):
                    if self._cache is None or self.n_before == 0:
                        self._cache = DynamicCache(config=base.original_model.config)  # type: ignore[arg-type]
                    inputs |= {"past_key_values": self._cache, "use_cache": True}
                base(args[0] if args else kwargs["input_ids"], return_type=None, **inputs)
        except _AllGrabbedError:
            pass
        finally:
            self._base_runs = False

    def _grab(self, activation: Tensor, hook: HookPoint, *, site: str, n: int) -> None:  # noqa: ARG002
        """Keep an activation of the base."""
        self._activations[site] = activation
        if len(self._activations) == n:
            raise _AllGrabbedError

    def _splice(self, finetuned: Tensor, hook: HookPoint, *, site: str) -> Tensor | None:  # noqa: ARG002
        """Show the hooked views their value, and take over what they write."""
        if self._base_runs:
            return None
        # Of several heads: side by side, as one vector per position.
        base, current = self._activations.get(site), finetuned.flatten(2)
        base = None if base is None else base.flatten(2)
        changed = False
        for hooked in self.hooked[site]:
            view = hooked.spec
            written = _fire(self.points[hooked.name], view.read(base, current))
            if written is not None:
                current = view.write(written, base).to(finetuned.dtype)
                changed = True
        return current.reshape(finetuned.shape) if changed else None


def _fire(point: HookPoint, value: Tensor) -> Tensor | None:
    """Show `value` to the point's hooks; return what they wrote, or None if they only looked.

    Editing the value in place and returning it is how TransformerLens hooks are usually written,
    so a changed version counts as a write. A backward hook needs the value to be on the path of
    the gradient, so it counts as one too.
    """
    # Inference tensors keep no version, so there the value itself is compared.
    before = value.clone() if value.is_inference() else _hosts.tensor_version(value)
    written = point(value)
    if written.shape != value.shape:
        raise InvalidValueError(
            f"a hook on {point.name} must write a value of shape {tuple(value.shape)}, "
            f"got {tuple(written.shape)}"
        )
    edited = (
        value.ne(before).any()
        if isinstance(before, Tensor)
        else _hosts.tensor_version(value) != before
    )
    return written if written is not value or edited or point.has_hooks("bwd") else None
