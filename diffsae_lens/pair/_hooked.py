"""A base and a fine-tuned model as one hooked model: the only module that runs both together.

A `HookedModelPair` owns, for every hook name it was built for, one *virtual hook point* per view:

| hook point | value, `[batch, pos, d_in]` | a value written there: the fine-tuned model continues with |
|---|---|---|
| `<hook_name>.diff` | finetuned - base | base + value |
| `<hook_name>.concat` | [base ; finetuned] | the second half of value |
| `<hook_name>.base` | base | value |
| `<hook_name>.finetuned` | finetuned | value |

Because a pair is a TransformerLens hooked model, whatever works on a hooked model works on it: SAELens
trains a Diff-SAE on a `.diff` hook and a crosscoder on a `.concat` hook with its stock runners.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from diffsae_lens import _hosts
from diffsae_lens._display import facts_html
from diffsae_lens._errors import FailedRunError, InvalidTypeError, InvalidValueError
from diffsae_lens.pair._adapters import AdapterSwitch
from diffsae_lens.pair._chat import Text, is_conversation
from diffsae_lens.pair._compatibility import (
    check_hook_names,
    check_models,
    check_prepend_bos,
    hook_widths,
)
from diffsae_lens.pair._generation import PairedGeneration
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._metadata import PairMetadata, describe_pair
from diffsae_lens.pair._paired_pass import PairedPass
from diffsae_lens.pair._shared import SharedRows, check_repeats
from diffsae_lens.pair._texts import TokenisedTexts
from diffsae_lens.pair._views import VIEWS


class HookedModelPair(PairedGeneration):
    """A base and a fine-tuned `TransformerBridge` behind one set of hook points.

    Without hooks, or with hooks that write nothing, the output is bit-identical to the fine-tuned
    model's. The base runs only if a hooked view needs it, and only as deep as the deepest such view.

    Args:
        base: the base model. For a LoRA pair, the same bridge as `finetuned`.
        finetuned: the fine-tuned model, with the same architecture, tokenizer, dtype and attention
            implementation.
        hook_names: full TransformerLens names, such as `blocks.18.hook_resid_post`.
        adapter: the PEFT model whose adapters turn `base` into `finetuned`, booted with
            `hf_model=adapter.get_base_model()`. Its adapters are switched off for the base's runs.
        base_adapter: the adapter of `adapter` that makes `base`, if the base is a fine-tune too, to
            compare two adapters of one model. The active adapter makes `finetuned`.
        prepend_bos: whether texts get a beginning-of-sequence token. SmolLM2 was trained without one.
        metadata: where the models come from; by default, names from their configs.

    Raises:
        ValueError: `hook_names` is empty or has an unknown name, or one that no forward pass reaches or
            that has no value per position; the two are one object and there is no `adapter`; different
            architecture, d_model, depth or vocabulary; an adapter that the bridge does not run, or that
            changes the base's weights; `prepend_bos` without a beginning-of-sequence token.
        TypeError: a model that is not a `TransformerBridge`.

    Both models are put into evaluation mode and stay in it.
    """

    def __init__(  # noqa: PLR0913
        self,
        base: TransformerBridge,
        finetuned: TransformerBridge,
        hook_names: Sequence[str],
        *,
        adapter: PeftModel | None = None,
        base_adapter: str | None = None,
        prepend_bos: bool = False,
        metadata: PairMetadata | None = None,
    ) -> None:
        super().__init__()
        check_models(base, finetuned, adapter)
        if metadata is not None and not isinstance(metadata, PairMetadata):
            raise InvalidTypeError(
                f"`metadata` must be a PairMetadata, got a {type(metadata).__name__}"
            )
        # A tuple keeps the bridges out of the module tree, where their thousands of hook points
        # would be mistaken for the pair's own.
        self._models = (base, finetuned)
        self._adapters = AdapterSwitch(adapter, base_adapter)
        self.is_mirrored = False
        """Whether the base is the model that runs; see `mirrored`."""
        self.eval()
        self.hook_names = check_hook_names(hook_names, finetuned)
        self.prepend_bos = check_prepend_bos(prepend_bos, finetuned.tokenizer)
        self._run: PairedPass | None = None
        self._given: Mapping[str, Tensor] | None = None
        with self._adapters.switched(on=True):
            self._widths = hook_widths(finetuned, self.hook_names, self._adapters)
        self.metadata = describe_pair(base, finetuned, self._adapters, metadata)
        self._make_hook_points()

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
        """The fine-tuned model (for LoRA, while no `base_model()` context is open); if mirrored, the
        base's bridge, whose adapters only the pair itself switches off.
        """
        return self._models[1]

    @property
    def W_E(self) -> Tensor:
        """The fine-tuned model's embedding, from which SAELens infers the device for tokens."""
        return self.finetuned.W_E

    @contextmanager
    def base_model(self) -> Iterator[TransformerBridge]:
        """Yield the base model; in the context, a LoRA pair's adapters are off (a mirrored pair's on).

        Examples:
            >>> with pair.base_model() as base:          # doctest: +SKIP
            ...     logits = base(tokens)
        """
        with self._adapters.switched(on=self.is_mirrored):
            yield self._models[0]

    def mirrored(self) -> "HookedModelPair":
        """Return the pair with the roles swapped: the base runs, with the fine-tuned model beside it.

        Its `.base` is the fine-tuned model's activation, its `.finetuned` the base's and its `.diff`
        base - finetuned, so hooks write into the base model.
        """
        pair = self._twin()
        pair._models = (self._models[1], self._models[0])
        pair.is_mirrored = not self.is_mirrored
        pair.metadata = self.metadata.mirrored
        return pair

    @override
    def _twin(self) -> "HookedModelPair":
        pair = copy.copy(self)
        pair._run = None
        pair._make_hook_points()
        return pair

    @override
    def forward(
        self,
        input: Text | Sequence[Text] | Tensor,
        *,
        prompt_mask: Tensor | None = None,
        repeats: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the fine-tuned model, and the base as far as the hooked views need it.

        Takes the arguments of `TransformerBridge.forward`, as well as conversations, and returns the
        same. For a prompt and its completion in one pass, `prompt_mask`, `[batch, pos]`, marks the
        prompt's tokens, for edits on `prompt` or `generated` tokens. With `repeats`, each row of tokens is
        read once per entry, as in `generate`.
        """
        prepend_bos = kwargs.pop("prepend_bos", None)
        if isinstance(input, Tensor):
            self.check_context(input.shape[-1])
        else:
            texts = [self.with_bos(text, prepend_bos=prepend_bos) for text in self.rendered(input)]
            self.check_context(self.to_tokens(texts, prepend_bos=False, truncate=False).shape[1])
            input = texts[0] if isinstance(input, str) or is_conversation(input) else texts
        kwargs["prepend_bos"] = False  # already in the text
        shared = None
        if repeats is not None:
            if not isinstance(input, Tensor):
                raise InvalidTypeError(
                    "`input` must be tokens `[batch, pos]` where `repeats` is given"
                )
            repeats = check_repeats(repeats)
            masks = {"prompt_mask": prompt_mask, "attention_mask": kwargs.get("attention_mask")}
            repeated = {
                name: mask.repeat_interleave(len(repeats), dim=0)
                for name, mask in masks.items()
                if mask is not None
            }
            input = input.repeat_interleave(len(repeats), dim=0)
            shared = self._shared(input, repeats)
            prompt_mask = repeated.pop("prompt_mask", None)
            kwargs |= repeated
        with self._running(shared) as run:
            run.prompt_mask = prompt_mask
            return self.finetuned(input, **kwargs)

    @torch.no_grad()
    def activations(
        self,
        input: Text | Sequence[Text] | Tensor | TokenisedTexts,
        hooks: str | VirtualHook | Sequence[str | VirtualHook],
        *,
        base: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Read hook points on texts or tokens, running the models no deeper than necessary.

        Args:
            input: texts or conversations, one per row, or `[batch, pos]` tokens, padded on the right.
            hooks: one or more virtual hook points, such as `blocks.18.hook_resid_post.diff`.
            base: the base's activations on the same tokens by site, `[batch, pos, d]`, from an earlier
                run. The base is then not run.

        Returns:
            Each hook point's value by name, `[batch, pos, d_in]`, without a gradient.

        Raises:
            ValueError: no or unknown hook points, a text that is empty or beyond the context, or `base`
                lacks a required site or has another shape.

        Examples:
            >>> pair.activations("in 2024", "blocks.18.hook_resid_post.diff")    # doctest: +SKIP
        """
        listed = [hooks] if isinstance(hooks, str | VirtualHook) else list(hooks)
        if not listed:
            raise InvalidValueError("`hooks` is empty; name at least one virtual hook point")
        names = [str(hook) for hook in listed]
        for name in names:
            self.check_hook_name(name)
        if isinstance(input, Tensor):
            tokens = input
        elif isinstance(input, TokenisedTexts):
            tokens = input.tokens
        else:
            single = isinstance(input, str) or is_conversation(input)
            tokens = self.tokenise([input] if single else input).tokens  # type: ignore[arg-type]
        read = [VirtualHook.parse(name) for name in (*names, *self.hooks_in_use)]
        self._check_given(base, read, tokens)
        layers = [VirtualHook.parse(name).layer for name in names]
        reached = [layer for layer in layers if layer is not None]
        stop = max(reached) + 1 if len(reached) == len(layers) else None
        self._given = base
        try:
            _, cache = self.run_with_cache(
                tokens.to(self.device), names_filter=names, stop_at_layer=stop
            )
        finally:
            self._given = None
        return {name: cache[name] for name in names}

    def _check_given(
        self, base: Mapping[str, Tensor] | None, hooks: Sequence[VirtualHook], tokens: Tensor
    ) -> None:
        for hook in hooks:
            if base is None or not hook.spec.needs_base:
                continue
            expected = [*tokens.shape, self.width(hook.site)]
            got = list(base[hook.site].shape) if hook.site in base else None
            if got != expected:
                raise InvalidValueError(
                    f"`base` must hold the base's activations at {hook.site}, of shape {expected}, "
                    f"got {got}"
                )

    @torch.no_grad()
    def activations_and_logits(
        self, texts: TokenisedTexts, hooks: Sequence[str]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return `activations(texts, hooks)` and both models' logits, in one pass of each model.

        The logits, base and fine-tuned, are of the last `texts.n_last` positions, or of all where the
        architecture computes no fewer.
        """
        tokens = texts.tokens.to(self.device)
        options: dict[str, Any] = {**self.keep_logits(texts.n_last)}
        parsed = map(VirtualHook.parse, (*hooks, *self.hooks_in_use))
        of_base = {hook.site: f"{hook.site}.finetuned" for hook in parsed if hook.spec.needs_base}
        base_logits, read = self.mirrored().run_with_cache(
            tokens, names_filter=list(of_base.values()), **options
        )
        self._given = {site: read[name] for site, name in of_base.items()}
        try:
            logits, cache = self.run_with_cache(tokens, names_filter=list(hooks), **options)
        finally:
            self._given = None
        return {name: cache[name] for name in hooks}, (base_logits, logits)

    def logits_of_both(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run both models on tokens; return base and fine-tuned logits, `[batch, pos, d_vocab]`."""
        with self.base_model() as base:
            base_logits = base(tokens)
        return base_logits, self(tokens)

    @override
    @contextmanager
    def _running(
        self, shared: SharedRows | None = None, *, attention: str | None = None
    ) -> Iterator[PairedPass]:
        if self._run is not None:
            raise FailedRunError("a pair cannot be run from inside one of its own hooks")
        self.check_unchanged()
        if any(bridge.training or bridge.original_model.training for bridge in self._models):
            raise FailedRunError(
                "a model of the pair was put into training mode after the pair was made, so dropout "
                "would make two readings of one text differ; call `pair.eval()`"
            )
        run = PairedPass(self.hook_dict, self._hooked(), self.base_model, self._given, shared)
        sharing = (
            nullcontext()
            if shared is None
            else shared.on(self.finetuned, is_on=lambda: run.is_sharing)
        )
        with self._adapters.switched(on=not self.is_mirrored):
            follow = self.finetuned.original_model.register_forward_pre_hook(
                run.run_base, with_kwargs=True
            )
            self._run = run
            try:
                # Row sharing is set up before the splices, so that a hook sees the rows it acts on.
                with sharing, _hosts.hooks_on(self.finetuned, run.splices), ExitStack() as stack:
                    for bridge in dict.fromkeys(self._models) if attention else ():
                        stack.enter_context(
                            _hosts.bare_where_unhooked(bridge, run.hooked, attention)  # type: ignore[arg-type]
                        )
                    yield run
            finally:
                follow.remove()
                self._run = None
