"""A base and a fine-tuned model as one hooked model: the only place that runs both together.

A `HookedModelPair` owns, for every hook name it was built for, one *virtual hook point* per view:

| hook point | value, `[batch, pos, d_in]` | a value written there: the fine-tuned model goes on with |
|---|---|---|
| `<hook_name>.diff` | finetuned - base | base + value |
| `<hook_name>.concat` | [base ; finetuned] | the second half of value |
| `<hook_name>.base` | base | value |
| `<hook_name>.finetuned` | finetuned | value |

Because a pair is a TransformerLens hooked model, what works on a hooked model works on it: SAELens
trains a Diff-SAE on a `.diff` hook and a crosscoder on a `.concat` hook with its stock runners.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache, PreTrainedTokenizerBase
from typing_extensions import override

from diffsae_lens.adapters import AdapterSwitch
from diffsae_lens.compatibility import check_hook_names, check_models
from diffsae_lens.notebook import facts_html
from diffsae_lens.views import VIEWS


@dataclass(frozen=True, kw_only=True)
class PairMetadata:
    """Which two models a pair was made of; stored with every dictionary trained on it."""

    base: str
    finetuned: str
    base_revision: str | None = None
    finetuned_revision: str | None = None
    adapter: bool = False
    """Whether the fine-tuned model is the base with a LoRA adapter switched on."""


class _AllGrabbedError(Exception):
    """Ends the base's forward pass once the last activation asked for has been read."""


@dataclass
class _BaseRun:
    """The base model's side of one forward pass, or of one generation."""

    hook_names: tuple[str, ...]
    activations: dict[str, Tensor] = field(default_factory=dict)
    cache: DynamicCache | None = None
    running: bool = False
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None

    def grab(self, activation: Tensor, hook: HookPoint, *, hook_name: str) -> None:  # noqa: ARG002
        self.activations[hook_name] = activation
        if len(self.activations) == len(self.hook_names):
            raise _AllGrabbedError


class HookedModelPair(HookedRootModule):
    """A base and a fine-tuned `TransformerBridge` behind one set of hook points.

    Without hooks, or with hooks that write nothing, the output is bit-identical to the fine-tuned
    model's. The base runs only where a hooked view needs it, and only as deep as the deepest one.

    Args:
        base: the base model. For a LoRA pair the same bridge as `finetuned`.
        finetuned: the fine-tuned model; the same architecture, tokenizer, dtype and attention
            implementation.
        hook_names: full TransformerLens names, such as `blocks.18.hook_resid_post`.
        adapter: the PEFT model whose adapters make `finetuned` out of `base`, booted with
            `hf_model=adapter.get_base_model()`. Its adapters are switched off for the base's runs.
        prepend_bos: whether texts get a beginning-of-sequence token. SmolLM2 was trained without.
        metadata: where the models come from; names from their configs if left out.

    Raises:
        ValueError: no or unknown `hook_names`; the two are one object and there is no `adapter`;
            different architecture, d_model, depth, vocabulary or special tokens.
    """

    def __init__(
        self,
        base: TransformerBridge,
        finetuned: TransformerBridge,
        hook_names: Sequence[str],
        *,
        adapter: PeftModel | None = None,
        prepend_bos: bool = False,
        metadata: PairMetadata | None = None,
    ) -> None:
        super().__init__()
        check_models(base, finetuned, adapter)
        # A tuple keeps the bridges out of the module tree, where their thousands of hook points
        # would be taken for the pair's own.
        self._models = (base, finetuned)
        self._adapters = AdapterSwitch(adapter)
        self.is_mirrored = False
        """Whether the base is the one that runs; see `mirrored`."""
        self.hook_names = check_hook_names(hook_names, finetuned)
        self.prepend_bos = prepend_bos
        self.metadata = metadata or PairMetadata(
            base=str(base.cfg.model_name),
            finetuned=str(finetuned.cfg.model_name),
            adapter=adapter is not None,
        )
        self._run: _BaseRun | None = None
        self.mod_dict, self.hook_dict = {}, {}
        for hook_name in self.hook_names:
            for view in VIEWS:
                point = HookPoint()
                point.name = f"{hook_name}.{view}"
                self.mod_dict[point.name] = self.hook_dict[point.name] = point

    @override
    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        return facts_html("HookedModelPair", self._facts())

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "base": self.metadata.base,
            "finetuned": self.metadata.finetuned,
            "adapter": self.metadata.adapter,
            "d_model": self.cfg.d_model,
            "hook points": [f"{name}.({'|'.join(VIEWS)})" for name in self.hook_names],
        }
        return facts | {"mirrored": True} if self.is_mirrored else facts

    @property
    def finetuned(self) -> TransformerBridge:
        """The fine-tuned model (LoRA: while no `base_model()` context is open); if mirrored, the base's
        bridge, whose adapters only the pair itself switches off.
        """
        return self._models[1]

    @property
    def cfg(self) -> Any:
        """The fine-tuned model's TransformerLens configuration."""
        return self.finetuned.cfg

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that both models share."""
        return self.finetuned.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.finetuned.original_model.parameters()).device

    @property
    def W_E(self) -> Tensor:
        """The fine-tuned model's embedding, by which SAELens tells where tokens belong."""
        return self.finetuned.W_E

    @property
    def attention_mask(self) -> Tensor | None:
        """That of the forward pass under way, `[batch, pos]`, for hooks to read; None without one."""
        return None if self._run is None else self._run.attention_mask

    @property
    def tokens(self) -> Tensor | None:
        """What the forward pass under way reads, `[batch, pos]`, for hooks; None without one."""
        return None if self._run is None else self._run.tokens

    def d_in(self, hook_name: str) -> int:
        """Return the width of a virtual hook point.

        Raises:
            ValueError: unknown hook name or view.
        """
        self.check_hook_name(hook_name)
        return self.cfg.d_model * VIEWS[hook_name.rpartition(".")[2]].width

    def check_hook_name(self, hook_name: str) -> None:
        """Refuse a name that is none of the pair's virtual hook points.

        Raises:
            ValueError: says which names there are.
        """
        if hook_name not in self.hook_dict:
            raise ValueError(
                f"`hook_name` {hook_name!r} is no hook point of this pair, which has "
                f"{sorted(self.hook_dict)}; build the pair with the hook you need"
            )

    @contextmanager
    def base_model(self) -> Iterator[TransformerBridge]:
        """Yield the base model; a LoRA pair's adapters are off inside (a mirrored pair's are on).

        Examples:
            >>> with pair.base_model() as base:          # doctest: +SKIP
            ...     logits = base(tokens)
        """
        with self._adapters.switched(on=self.is_mirrored):
            yield self._models[0]

    def mirrored(self) -> "HookedModelPair":
        """Return the pair with the roles changed: the base runs, with the fine-tuned model beside it.

        Its `.base` is the fine-tuned model's activation, its `.finetuned` the base's and its `.diff`
        base - finetuned, so what hooks write goes into the base model.
        """
        pair = HookedModelPair(
            self._models[1],
            self._models[0],
            self.hook_names,
            adapter=self._adapters.model,
            prepend_bos=self.prepend_bos,
            metadata=replace(
                self.metadata,
                base=self.metadata.finetuned,
                finetuned=self.metadata.base,
                base_revision=self.metadata.finetuned_revision,
                finetuned_revision=self.metadata.base_revision,
            ),
        )
        pair.is_mirrored = not self.is_mirrored
        return pair

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Tokenise by the pair's own `prepend_bos` policy, `[batch, pos]`; else as TransformerLens."""
        prepend_bos = self.prepend_bos if prepend_bos is None else prepend_bos
        return self.finetuned.to_tokens(input, prepend_bos=prepend_bos, **kwargs)

    @override
    def forward(self, input: str | list[str] | Tensor, **kwargs: Any) -> Any:
        """Run the fine-tuned model, and the base as far as the hooked views need it.

        Takes what `TransformerBridge.forward` takes and returns what it returns.
        """
        kwargs = {"prepend_bos": self.prepend_bos, **kwargs}
        with self._adapters.switched(on=not self.is_mirrored), self._spliced():
            return self.finetuned(input, **kwargs)

    def logits_of_both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run both models on tokens; returns base and fine-tuned logits, `[batch, pos, d_vocab]`."""
        with self.base_model() as base:
            base_logits = base(tokens, prepend_bos=self.prepend_bos)
        return base_logits, self(tokens)

    def generate(self, input: str | list[str] | Tensor, **kwargs: Any) -> Any:
        """Generate with the fine-tuned model, hooks acting at every step.

        Base and fine-tuned model step together, each with its own KV cache. Takes what
        `TransformerBridge.generate` takes, and is greedy and quiet unless told otherwise
        (`do_sample=True`, `verbose=True`). Lists of prompts are padded on the left and masked.
        """
        kwargs = {"do_sample": False, "verbose": False, "prepend_bos": self.prepend_bos, **kwargs}
        if isinstance(input, list):
            padded = self.tokenizer(
                [self._with_bos(text, kwargs["prepend_bos"]) for text in input],
                padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt",
            )  # fmt: skip
            return_type = kwargs.pop("return_type", "input")
            tokens = self.generate(
                padded["input_ids"], attention_mask=padded["attention_mask"], **kwargs
            )
            if return_type == "tokens":
                return tokens
            return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        with self._adapters.switched(on=not self.is_mirrored), self._spliced():
            return self.finetuned.generate(input, **kwargs)

    def keep_logits(self, n: int) -> dict[str, int]:
        """Return the keyword that has a forward pass compute the last `n` positions' logits alone.

        Empty for an architecture that has no such keyword and computes them all.
        """
        known = signature(self.finetuned.original_model.forward).parameters
        return {"logits_to_keep": n} if "logits_to_keep" in known else {}

    def _with_bos(self, text: str, prepend_bos: bool) -> str:
        return f"{self.tokenizer.bos_token}{text}" if prepend_bos else text

    @override
    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Any:
        """Add hooks for the duration of a `with`; as in TransformerLens, but names are checked."""
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self.check_hook_name(name)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs)

    @override
    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Make caching hooks; as in TransformerLens, but names are checked."""
        named = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in named if isinstance(named, list | tuple) else ():
            self.check_hook_name(name)
        return super().get_caching_hooks(names_filter, *args, **kwargs)

    @contextmanager
    def _spliced(self) -> Iterator[None]:
        """Put the hooked views into the fine-tuned model's forward passes."""
        views = {
            hook_name: [v for v in VIEWS if self.hook_dict[f"{hook_name}.{v}"].has_hooks("both")]
            for hook_name in self.hook_names
        }
        views = {hook_name: hooked for hook_name, hooked in views.items() if hooked}
        if self._run is not None:
            raise RuntimeError("a pair cannot be run from inside one of its own hooks")
        run = _BaseRun(
            tuple(n for n, hooked in views.items() if any(VIEWS[v].needs_base for v in hooked))
        )
        splices = [
            (hook_name, partial(self._splice, hook_name=hook_name, views=hooked, run=run))
            for hook_name, hooked in views.items()
        ]
        follow = self.finetuned.original_model.register_forward_pre_hook(
            partial(self._run_base, run=run), with_kwargs=True
        )
        self._run = run
        try:
            with self.finetuned.hooks(fwd_hooks=splices):
                yield
        finally:
            follow.remove()
            self._run = None

    def _run_base(self, _: Any, args: tuple, kwargs: Mapping[str, Any], *, run: _BaseRun) -> None:
        """Run the base on what the fine-tuned model is about to read, with a KV cache of its own."""
        if run.running:
            return
        run.attention_mask = kwargs.get("attention_mask")
        run.tokens = args[0] if args else kwargs.get("input_ids")
        if not run.hook_names:
            return
        inputs = {k: kwargs[k] for k in ("attention_mask", "position_ids") if k in kwargs}
        if kwargs.get("use_cache"):
            past = kwargs.get("past_key_values")
            if run.cache is None or past is None or past.get_seq_length() == 0:
                run.cache = DynamicCache()
            inputs |= {"past_key_values": run.cache, "use_cache": True}
        grabs = [(name, partial(run.grab, hook_name=name)) for name in run.hook_names]
        run.activations.clear()
        run.running = True
        try:
            with self.base_model() as base, torch.no_grad(), base.hooks(fwd_hooks=grabs):
                base(args[0] if args else kwargs["input_ids"], return_type=None, **inputs)
        except _AllGrabbedError:
            pass
        finally:
            run.running = False

    def _splice(
        self,
        finetuned: Tensor,
        hook: HookPoint,  # noqa: ARG002
        *,
        hook_name: str,
        views: list[str],
        run: _BaseRun,
    ) -> Tensor | None:
        """Show the hooked views their value, and take over what they write."""
        if run.running:
            return None
        base, current = run.activations.get(hook_name), finetuned
        for view in views:
            point = self.hook_dict[f"{hook_name}.{view}"]
            written = _fire(point, VIEWS[view].read(base, current))  # type: ignore[arg-type]
            if written is not None:
                current = VIEWS[view].write(written, base).to(finetuned.dtype)  # type: ignore[arg-type]
        return None if current is finetuned else current


def _fire(point: HookPoint, value: Tensor) -> Tensor | None:
    """Show `value` to the point's hooks; return what they wrote, or None if they only looked.

    Editing the value in place and returning it is how TransformerLens hooks are usually written,
    so a changed version counts as a write. A backward hook needs the value to be on the path of
    the gradient, so it counts as one too.
    """
    # Inference tensors keep no version, so there the value itself is compared.
    before = value.clone() if value.is_inference() else value._version
    written = point(value)
    if written.shape != value.shape:
        raise ValueError(
            f"a hook on {point.name} must write a value of shape {tuple(value.shape)}, "
            f"got {tuple(written.shape)}"
        )
    edited = value.ne(before).any() if isinstance(before, Tensor) else value._version != before
    return written if written is not value or edited or point.has_hooks("bwd") else None
