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
from diffsae_lens.pair._shared import SharedRows

Hook = tuple[str, Callable[..., Tensor | None]]


class _AllGrabbedError(Exception):
    """Ends the base's forward pass once the last activation asked for has been read."""


@dataclass(eq=False, repr=False)  # a hook point asks for the `repr` of what its hooks are bound to
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
    shared: SharedRows | None = None
    """Which rows read one text, if what they have in common is computed once."""
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None
    n_before: int = 0
    """Tokens that the fine-tuned model's KV cache holds."""
    prompt_mask: Tensor | None = None
    """Which tokens are of the prompt, `[batch, pos]`, if whoever runs the pair has said so."""
    written_at: list[Tensor] = field(default_factory=list)
    """Where each hook of the point under way wrote, `[batch, pos]`, of those that said so."""
    _activations: dict[str, Tensor] = field(default_factory=dict)
    _cache: DynamicCache | None = None
    _base_runs: bool = False

    @property
    def is_sharing(self) -> bool:
        """Whether rows that read one text are computed once now, in the fine-tuned model."""
        return self.shared is not None and not self._base_runs

    @property
    def rows(self) -> Int[Tensor, "row"] | None:
        """The numbers of the rows of this pass; None if all of them are there."""
        return None if self.shared is None else self.shared.rows

    def shown(self, value: Tensor | None) -> Tensor | None:
        """Return the rows of a value that this pass computes now, as its hooks are to see it."""
        there = None if self.shared is None else self.shared.there
        if there is None or value is None or len(value) == 1:
            return value
        return value[there.to(value.device)]

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
        if self.shared is not None:
            self.shared.block = -1
        sites = self._read_of_base
        if not sites:
            return
        if self.given is not None:
            self._activations = {site: self.given[site] for site in sites}
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
        self._activations.clear()
        self._base_runs = True
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
            self._base_runs = False

    def new_cache(self, model: TransformerBridge) -> DynamicCache:
        """Return an empty KV cache of a model."""
        return DynamicCache(config=model.original_model.config)  # type: ignore[arg-type]

    def go_on(self, cache: DynamicCache, tokens: Tensor, kept: Tensor | None) -> None:
        """Put rows in their places in the caches before the next tokens are read.

        Args:
            cache: of the fine-tuned model.
            tokens: what is read next, `[row, 1]`.
            kept: the rows that go on; None if all do.
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
                # Elsewhere the stream stays what it is, whatever the view shows there.
                if self._is_partial(point, written, in_place=in_place):
                    acted = torch.stack([*self.written_at, written.ne(value).any(-1)]).any(0)
                    new = new if acted.all() else torch.where(acted[..., None], new, current)
                current, changed = new, True
        return current.reshape(finetuned.shape) if changed else None

    def _is_partial(self, point: HookPoint, written: Tensor, *, in_place: bool) -> bool:
        """Whether hooks said where they write, and what others write shows elsewhere too.

        It does not where they wrote into the value itself, or put equal values on the gradient's path.
        """
        all_said = len(self.written_at) == len(point.fwd_hooks)
        shows = not in_place and not point.has_hooks("bwd")
        return bool(self.written_at) and shows and (all_said or not written.requires_grad)


def _fire(point: HookPoint, value: Tensor) -> tuple[Tensor | None, bool]:
    """Show `value` to the point's hooks; return what they wrote, None if they only looked.

    And whether they wrote into `value` itself.

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
        bool(value.ne(before).any())
        if isinstance(before, Tensor)
        else _hosts.tensor_version(value) != before
    )
    wrote = written is not value or edited or point.has_hooks("bwd")
    return (written if wrote else None), edited
