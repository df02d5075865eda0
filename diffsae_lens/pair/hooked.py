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

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache
from typing_extensions import override

from diffsae_lens.notebook import facts_html
from diffsae_lens.pair.adapters import AdapterSwitch
from diffsae_lens.pair.base_run import AllGrabbedError, BaseRun, fire
from diffsae_lens.pair.cached_steps import Stepping, way_to_step
from diffsae_lens.pair.compatibility import (
    check_hook_names,
    check_models,
    check_prepend_bos,
    hook_widths,
)
from diffsae_lens.pair.fingerprint import pair_fingerprints
from diffsae_lens.pair.texts import PairedText
from diffsae_lens.pair.views import VIEWS

_MAX_NEW_TOKENS = inspect.signature(TransformerBridge.generate).parameters["max_new_tokens"].default


@dataclass(frozen=True, kw_only=True)
class PairMetadata:
    """Which two models a pair was made of; stored with every dictionary trained on it."""

    base: str
    finetuned: str
    base_revision: str | None = None
    finetuned_revision: str | None = None
    adapter: bool = False
    """Whether the fine-tuned model is the base with a LoRA adapter switched on."""
    base_fingerprint: str | None = None
    """Of its weights, see `model_fingerprint`; a pair fills it in."""
    finetuned_fingerprint: str | None = None
    """Likewise; of an adapter's weights together with the base's."""
    dtype: str | None = None
    """Precision of the weights, such as `float32`; a pair fills it in."""


class HookedModelPair(PairedText):
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
        ValueError: no or unknown `hook_names`, or one that no forward pass reaches or that has no value
            per position; the two are one object and there is no `adapter`; different architecture,
            d_model, depth or vocabulary; an adapter that the bridge does not run, or that changes the
            base's weights; `prepend_bos` without a beginning-of-sequence token.
        TypeError: a model that is not a `TransformerBridge`.

    Both models are put into evaluation mode and stay in it.
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
        if metadata is not None and not isinstance(metadata, PairMetadata):
            raise TypeError(f"`metadata` must be a PairMetadata, got a {type(metadata).__name__}")
        # A tuple keeps the bridges out of the module tree, where their thousands of hook points
        # would be taken for the pair's own.
        self._models = (base, finetuned)
        self._adapters = AdapterSwitch(adapter)
        self.is_mirrored = False
        """Whether the base is the one that runs; see `mirrored`."""
        self.eval()
        self.hook_names = check_hook_names(hook_names, finetuned)
        self.prepend_bos = check_prepend_bos(prepend_bos, finetuned.tokenizer)
        self._run: BaseRun | None = None
        self._n_prompt: int | None = None
        self._stepping: Stepping | None = None
        with self._adapters.switched(on=True):
            self._widths = hook_widths(finetuned, self.hook_names, self._adapters)
        self.metadata = self._described(metadata)
        self._make_hook_points()

    def _described(self, metadata: PairMetadata | None) -> PairMetadata:
        """The metadata, with names from the models' configs and what the weights are."""
        base, finetuned = self._models
        metadata = metadata or PairMetadata(
            base=str(base.cfg.model_name),
            finetuned=str(finetuned.cfg.model_name),
            adapter=self._adapters.model is not None,
        )
        of_base, of_finetuned = pair_fingerprints(
            base.original_model, finetuned.original_model, self._adapters.model
        )
        dtype = str(next(finetuned.original_model.parameters()).dtype).removeprefix("torch.")
        return replace(
            metadata,
            base_fingerprint=of_base,
            finetuned_fingerprint=of_finetuned,
            dtype=dtype,
        )

    def _make_hook_points(self) -> None:
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

    @property
    def columns(self) -> Tensor | None:
        """Where in the (padded) sequence the tokens of the forward pass under way stand, `[pos]`."""
        return None if self._run is None else self._run.columns

    @property
    def positions(self) -> Tensor | None:
        """How many tokens of its row stand before each token of the pass under way, `[batch or 1, pos]`.

        Padding does not count and is -1; tokens that the KV cache holds count.
        """
        return None if self._run is None else self._run.positions

    @property
    def prompt_mask(self) -> Tensor | None:
        """Which tokens of the pass under way are of the prompt, if `forward` was told."""
        return None if self._run is None else self._run.prompt_mask

    @property
    def n_prompt(self) -> int | None:
        """Columns of the (padded) prompt while `generate` runs; None in a plain forward pass."""
        return self._n_prompt

    def width(self, hook_name: str) -> int:
        """Return how wide one model's activation is, at a site or a virtual hook point.

        Activations of several heads (`hook_z`) are read side by side, as one vector per position.

        Raises:
            ValueError: unknown hook name.
        """
        site = hook_name if hook_name in self._widths else hook_name.rpartition(".")[0]
        if site not in self._widths:
            self.check_hook_name(hook_name)
        return self._widths[site]

    def d_in(self, hook_name: str) -> int:
        """Return the width of a virtual hook point.

        Raises:
            ValueError: unknown hook name or view.
        """
        self.check_hook_name(hook_name)
        return self.width(hook_name) * VIEWS[hook_name.rpartition(".")[2]].width

    def check_hook_name(self, hook_name: str) -> None:
        """Refuse a name that is none of the pair's virtual hook points.

        Raises:
            ValueError: says which names there are.
        """
        if hook_name not in self.hook_dict:
            raise ValueError(
                f"`hook_name` {hook_name!r} is not a hook point of this pair, which has "
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
        pair = self._twin()
        pair._models = (self._models[1], self._models[0])
        pair.is_mirrored = not self.is_mirrored
        pair.metadata = replace(
            self.metadata,
            base=self.metadata.finetuned,
            finetuned=self.metadata.base,
            base_revision=self.metadata.finetuned_revision,
            finetuned_revision=self.metadata.base_revision,
            base_fingerprint=self.metadata.finetuned_fingerprint,
            finetuned_fingerprint=self.metadata.base_fingerprint,
        )
        return pair

    def _twin(self) -> "HookedModelPair":
        """The same models behind hook points of their own."""
        pair = copy.copy(self)
        pair._run = None
        pair._make_hook_points()
        return pair

    @override
    def forward(
        self,
        input: str | list[str] | Tensor,
        *,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the fine-tuned model, and the base as far as the hooked views need it.

        Takes what `TransformerBridge.forward` takes and returns what it returns. With a prompt and its
        completion in one pass, `prompt_mask` says which tokens are of the prompt, `[batch, pos]`:
        edits on `prompt` or `generated` tokens act by it.
        """
        prepend_bos = kwargs.pop("prepend_bos", None)
        if isinstance(input, Tensor):
            self.check_context(input.shape[-1])
        else:
            texts = [input] if isinstance(input, str) else list(input)
            texts = [self.with_bos(text, prepend_bos=prepend_bos) for text in texts]
            self.check_context(self.to_tokens(texts, prepend_bos=False, truncate=False).shape[1])
            input = texts[0] if isinstance(input, str) else texts
        kwargs["prepend_bos"] = False  # it stands in the text
        with self._adapters.switched(on=not self.is_mirrored), self._spliced() as run:
            run.prompt_mask = prompt_mask
            return self.finetuned(input, **kwargs)

    def logits_of_both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run both models on tokens; returns base and fine-tuned logits, `[batch, pos, d_vocab]`."""
        with self.base_model() as base:
            base_logits = base(tokens)
        return base_logits, self(tokens)

    def generate(self, input: str | list[str] | Tensor, **kwargs: Any) -> Any:
        """Generate with the fine-tuned model, hooks acting at every step.

        Base and fine-tuned model step together, each with its own KV cache. Takes what
        `TransformerBridge.generate` takes, and is greedy and quiet unless told otherwise
        (`do_sample=True`, `verbose=True`). Lists of prompts are padded on the left and masked.
        """
        kwargs = {"do_sample": False, "verbose": False, **kwargs}
        prepend_bos = kwargs.pop("prepend_bos", None)
        if not isinstance(input, Tensor):
            return self._generate_text(input, prepend_bos, kwargs)
        n_prompt = input.shape[-1]
        self.check_context(n_prompt + kwargs.get("max_new_tokens", _MAX_NEW_TOKENS))
        way = self._way_to_step()
        if way == "not at all" and self._views_in_use(of_base=True):
            raise ValueError(
                "this model cannot generate under hooks that read the base: it keeps a state that the base "
                "cannot be given step by step; hook a plain forward pass instead"
            )
        if way == "whole":
            kwargs["use_past_kv_cache"] = False
        return self._generate_tokens(input, kwargs)

    def _generate_tokens(self, input: Tensor, kwargs: dict[str, Any]) -> Any:
        before, self._n_prompt = self._n_prompt, input.shape[-1]
        try:
            with self._adapters.switched(on=not self.is_mirrored), self._spliced():
                return self.finetuned.generate(input, **kwargs, prepend_bos=False)
        except ImportError as error:
            raise RuntimeError(
                f"TransformerLens cannot generate with this model here: {error}"
            ) from error
        finally:
            self._n_prompt = before

    def _way_to_step(self) -> Stepping:
        """How generation computes what whole passes do; found out at the first generation."""
        if self._stepping is None:
            self._stepping = way_to_step(self._twin(), f"{self.hook_names[-1]}.diff")
        return self._stepping

    def _views_in_use(self, *, of_base: bool = False) -> dict[str, list[str]]:
        """The views somebody hooks, by site; with `of_base` those that need the base to run."""
        hooked = {
            site: [
                view
                for view in VIEWS
                if self.hook_dict[f"{site}.{view}"].has_hooks("both")
                and (VIEWS[view].needs_base or not of_base)
            ]
            for site in self.hook_names
        }
        return {site: views for site, views in hooked.items() if views}

    def _generate_text(
        self, input: str | list[str], prepend_bos: bool | None, kwargs: dict[str, Any]
    ) -> Any:
        texts = [input] if isinstance(input, str) else list(input)
        padded = self.tokenizer(
            [self.with_bos(text, prepend_bos=prepend_bos) for text in texts],
            padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        return_type = kwargs.pop("return_type", "input")
        if not isinstance(input, str):
            kwargs["attention_mask"] = padded["attention_mask"]
        tokens = self.generate(padded["input_ids"], **kwargs)
        if return_type == "tokens":
            return tokens
        written = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return written[0] if isinstance(input, str) else written

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
    def _spliced(self) -> Iterator[BaseRun]:
        """Put the hooked views into the fine-tuned model's forward passes."""
        views = self._views_in_use()
        if self._run is not None:
            raise RuntimeError("a pair cannot be run from inside one of its own hooks")
        if any(bridge.training or bridge.original_model.training for bridge in self._models):
            raise RuntimeError(
                "a model of the pair was put into training mode after the pair was made, so dropout "
                "would make two readings of one text differ; call `pair.eval()`"
            )
        run = BaseRun(tuple(self._views_in_use(of_base=True)))
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
                yield run
        finally:
            follow.remove()
            self._run = None

    def _run_base(self, _: Any, args: tuple, kwargs: Mapping[str, Any], *, run: BaseRun) -> None:
        """Run the base on what the fine-tuned model is about to read, with a KV cache of its own."""
        if run.running:
            return
        run.attention_mask = kwargs.get("attention_mask")
        run.tokens = args[0] if args else kwargs.get("input_ids")
        past = kwargs.get("past_key_values")
        run.n_before = 0 if past is None else past.get_seq_length()
        if not run.hook_names:
            return
        inputs = {k: kwargs[k] for k in ("attention_mask", "position_ids") if k in kwargs}
        if kwargs.get("use_cache"):
            if run.cache is None or run.n_before == 0:
                run.cache = DynamicCache(config=self._models[0].original_model.config)  # type: ignore[arg-type]
            inputs |= {"past_key_values": run.cache, "use_cache": True}
        grabs = [(name, partial(run.grab, hook_name=name)) for name in run.hook_names]
        run.activations.clear()
        run.running = True
        try:
            with self.base_model() as base, torch.no_grad(), base.hooks(fwd_hooks=grabs):
                base(args[0] if args else kwargs["input_ids"], return_type=None, **inputs)
        except AllGrabbedError:
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
        run: BaseRun,
    ) -> Tensor | None:
        """Show the hooked views their value, and take over what they write."""
        if run.running:
            return None
        # Of several heads: side by side, as one vector per position.
        base, current = run.activations.get(hook_name), finetuned.flatten(2)
        base = None if base is None else base.flatten(2)
        changed = False
        for view in views:
            point = self.hook_dict[f"{hook_name}.{view}"]
            written = fire(point, VIEWS[view].read(base, current))  # type: ignore[arg-type]
            if written is not None:
                current = VIEWS[view].write(written, base).to(finetuned.dtype)  # type: ignore[arg-type]
                changed = True
        return current.reshape(finetuned.shape) if changed else None
