"""One forward pass of a pair: the base alongside the fine-tuned model, with hooks on both."""

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
from diffsae_lens.pair._shared import SharedRows

Hook = tuple[str, Callable[..., Tensor | None]]


class _AllGrabbedError(Exception):
    """Ends the base's forward pass once the last requested activation has been read."""


@dataclass(eq=False, repr=False)  # a hook point calls `repr` on what its hooks are bound to
class PairedPass:
    """One forward pass of a pair, or one generation, with what its hooks can query about it."""

    points: Mapping[str, HookPoint]
    """The pair's hook points by name."""
    hooked: Mapping[str, Sequence[VirtualHook]]
    """The virtual hook points that have hooks, by site."""
    base_model: Callable[[], AbstractContextManager[TransformerBridge]]
    """Opens the base model."""
    given: Mapping[str, Tensor] | None = None
    """The base's activations by site, if they are known and the base need not run."""
    shared: SharedRows | None = None
    """Which rows read the same text, if what they share is computed once."""
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None
    n_before: int = 0
    """Number of tokens in the fine-tuned model's KV cache."""
    prompt_mask: Tensor | None = None
    """Which tokens belong to the prompt, `[batch, pos]`, if the caller has said so."""
    written_at: list[Tensor] = field(default_factory=list)
    """Where hooks of the current point wrote, `[batch, pos]`, one entry per hook that said so."""
    base_activations: dict[str, Tensor] = field(default_factory=dict)
    """The base's activations in the current pass, by site."""
    base_runs: bool = False
    """Whether the base is running now; in a pair of one bridge, it runs the same blocks."""
    _cache: DynamicCache | None = None

    @property
    def is_sharing(self) -> bool:
        """Whether rows that read the same text are now computed once, in the fine-tuned model."""
        return self.shared is not None and not self.base_runs

    @property
    def rows(self) -> Int[Tensor, "row"] | None:
        """The indices of the rows of this pass; None if all rows are present."""
        return None if self.shared is None else self.shared.rows

    def shown(self, value: Tensor | None) -> Tensor | None:
        """Return a value as hooks see it: only the rows that this pass computes now."""
        there = None if self.shared is None else self.shared.there
        if there is None or value is None or len(value) == 1:
            return value
        return value[there.to(value.device)]

    @property
    def columns(self) -> Int[Tensor, "pos"] | None:
        """Column indices of this pass's tokens in the (padded) sequence."""
        if self.tokens is None:
            return None
        return self.n_before + torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def positions(self) -> Int[Tensor, "row pos"] | None:
        """Number of tokens that precede each token of this pass in its row; -1 for padding."""
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
        """The hooks on the fine-tuned model that pass values to the hooked views."""
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
        """Run the base on what the fine-tuned model is about to read, with its own KV cache.

        A forward pre-hook of the fine-tuned model, with keywords.
        """
        if self.base_runs:
            return
        self.attention_mask = kwargs.get("attention_mask")
        self.tokens = args[0] if args else kwargs.get("input_ids")
        past = kwargs.get("past_key_values")
        self.n_before = 0 if past is None else past.get_seq_length()
        if self.shared is not None:
            self.shared.block = -1
        sites = self._read_of_base
        if not sites:
            return
        if self.given is not None:
            self.base_activations = {site: self.given[site] for site in sites}
            return
        read = {"tokens": args[0] if args else kwargs["input_ids"]}
        read |= {
            name: kwargs[name] for name in ("attention_mask", "position_ids") if name in kwargs
        }
        if self.shared is not None:
            rows = self.shared.of_base.to(read["tokens"].device)
            read = {name: value if len(value) == 1 else value[rows] for name, value in read.items()}
        tokens, inputs = read.pop("tokens"), dict[str, Any](read)
        grabs = [(site, partial(self._grab, site=site, n=len(sites))) for site in sites]
        self.base_activations.clear()
        self.base_runs = True
        try:
            with self.base_model() as base, torch.no_grad(), _hosts.hooks_on(base, grabs):
                if kwargs.get("use_cache"):
                    if self._cache is None or self.n_before == 0:
                        self._cache = self.new_cache(base)
                    inputs |= {"past_key_values": self._cache, "use_cache": True}
                base(tokens, return_type=None, **inputs)
        except _AllGrabbedError:
            pass
        finally:
            self.base_runs = False

    def new_cache(self, model: TransformerBridge) -> DynamicCache:
        """Return an empty KV cache of a model."""
        return DynamicCache(config=model.original_model.config)  # type: ignore[arg-type]

    def go_on(self, cache: DynamicCache, tokens: Tensor, kept: Tensor | None) -> None:
        """Reorder the rows of the caches before the next tokens are read.

        Args:
            cache: the fine-tuned model's cache.
            tokens: the tokens read next, `[row, 1]`.
            kept: the rows that continue; None if all do.
        """
        if self.shared is None:
            return
        gone_on_from = self.shared.go_on(tokens[:, 0], kept)
        for block in range(len(cache.layers)):
            index = gone_on_from(block)
            if index is not None:
                _hosts.reorder_cache_layer(cache, block, index.to(tokens.device))
        index = gone_on_from(-1)
        if self._cache is not None and index is not None:
            self._cache.reorder_cache(index.to(tokens.device))  # type: ignore[arg-type]

    def _grab(self, activation: Tensor, hook: HookPoint, *, site: str, n: int) -> None:  # noqa: ARG002
        """Store an activation of the base."""
        self.base_activations[site] = activation
        if len(self.base_activations) == n:
            raise _AllGrabbedError

    def _splice(self, finetuned: Tensor, hook: HookPoint, *, site: str) -> Tensor | None:  # noqa: ARG002
        """Pass the hooked views their values, and apply what they write."""
        if self.base_runs:
            return None
        # Several heads are concatenated into one vector per position.
        base, current = self.base_activations.get(site), finetuned.flatten(2)
        base = None if base is None else base.flatten(2)
        if base is not None and self.shared is not None:
            base = self.shared.spread(base)
        changed = False
        for hooked in self.hooked[site]:
            view, point = hooked.spec, self.points[hooked.name]
            self.written_at = []
            value = view.read(base, current)
            written, in_place = _fire(point, value)
            if written is not None:
                new = view.write(written, base).to(finetuned.dtype)
                # Elsewhere the stream is unchanged, whatever the view's value is there.
                if self._is_partial(point, written, in_place=in_place):
                    acted = torch.stack([*self.written_at, written.ne(value).any(-1)]).any(0)
                    new = new if acted.all() else torch.where(acted[..., None], new, current)
                current, changed = new, True
        return current.reshape(finetuned.shape) if changed else None

    def _is_partial(self, point: HookPoint, written: Tensor, *, in_place: bool) -> bool:
        """Whether hooks said where they write, and writes of the other hooks are visible as well.

        They are not visible if made in place, or if equal values were put on the gradient's path.
        """
        all_said = len(self.written_at) == len(point.fwd_hooks)
        shows = not in_place and not point.has_hooks("bwd")
        return bool(self.written_at) and shows and (all_said or not written.requires_grad)


def _fire(point: HookPoint, value: Tensor) -> tuple[Tensor | None, bool]:
    """Pass `value` to the point's hooks; return what they wrote, or None if they only looked.

    Also return whether they wrote into `value` itself.

    TransformerLens hooks usually edit the value in place and return it, so a changed version counts as a
    write. A backward hook needs the value to be on the gradient's path, so it counts as one too.
    """
    # Inference tensors keep no version, so their values are compared.
    before = value.clone() if value.is_inference() else _hosts.tensor_version(value)
    written = point(value)
    if written.shape != value.shape:
        raise InvalidValueError(
            f"a hook on {point.name} must write a value of shape {tuple(value.shape)}, "
            f"got {tuple(written.shape)}"
        )
    edited = (
        bool(value.ne(before).any())
        if isinstance(before, Tensor)
        else _hosts.tensor_version(value) != before
    )
    wrote = written is not value or edited or point.has_hooks("bwd")
    return (written if wrote else None), edited
