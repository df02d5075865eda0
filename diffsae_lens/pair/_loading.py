"""Load a base and a fine-tuned model as a `HookedModelPair`, verified against the plain models."""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.pair._adapter_sources import Adapter, AdapterInFolder
from diffsae_lens.pair._adapters import AdapterSwitch, attach_adapter, changes_base
from diffsae_lens.pair._compatibility import (
    SilentAdapterError,
    check_configs,
    check_layers,
    check_names,
)
from diffsae_lens.pair._doors import Given, shared_tokenizer, source_under, sources
from diffsae_lens.pair._fingerprint import pair_fingerprints
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._memory import copied
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._model_files import load_tokenizer, load_weights, resolve_model
from diffsae_lens.pair._options import LoadOptions, Placement, is_quantised, load_options
from diffsae_lens.pair._sources import Source
from diffsae_lens.pair._verification import MismatchError, Reference, plain_logits
from diffsae_lens.pair._vocabulary import in_folder, is_on_disk, n_rows, padded

logger = logging.getLogger(__name__)


def load_pair(
    base: Given,
    finetuned: Given,
    *,
    hook_names: Sequence[str],
    options: LoadOptions | None = None,
    **overrides: Any,
) -> HookedModelPair:
    """Load a base and a fine-tuned model as one hooked model.

    Before bridges wrap the models, the plain base and the plain fine-tuned model run on a few fixed
    tokens; the pair must then compute the same logits. An adapter shares the base's weights and is
    switched on and off. Where switching cannot give both models (adapters on fused projections, adapters
    that rewrite base weights or have trained biases), the base is loaded again and the adapter is merged
    into a second copy; a log message says so and why.

    A model in memory is left unchanged: its modules, hooks, mode and gradients. The pair puts its own
    modules, in evaluation mode, around the same weights, which takes no extra memory; for another device
    or precision, it copies the weights. If you train the model further, the pair refuses to run on weights
    that it was not verified with: make a new pair.

    Args:
        base: `smollm2-135m` (the embedded model), a local folder, a hub id such as
            `HuggingFaceTB/SmolLM2-360M`, a transformers model, or a `TransformerBridge`, from which the
            plain model is extracted. For a PEFT model in memory, also its `get_base_model()`. For an
            adapter in a folder, also another adapter in a folder, for the same model.
        finetuned: the same kinds; also a shipped organism (`year-trigger`, `clean-control`), a LoRA
            adapter as a local folder or hub id, or a PEFT model in memory.
        hook_names: the TransformerLens hooks to compare at, such as `blocks.18.hook_resid_post`.
        options: how to load.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        The pair, in evaluation mode, with parameters that require no gradients.

    Raises:
        ValueError: the models do not fit together, a hook does not exist, invalid options, damaged or
            missing files, or a pair that does not compute what the plain models compute.
        TypeError: not a model, or an option that does not exist.
        ModelUnavailableError: a model is neither local nor cached and cannot be fetched.

    Examples:
        >>> pair = load_pair("smollm2-135m", "year-trigger",
        ...                  hook_names=["blocks.18.hook_resid_post"])         # doctest: +SKIP
        >>> pair = load_pair(model, peft_model, hook_names=[site], tokenizer=tokenizer)  # doctest: +SKIP
    """
    options = load_options(options, overrides)
    check_names(hook_names)
    of_base, of_finetuned = sources(base, finetuned, options)
    base_adapter = None
    if isinstance(of_base, AdapterInFolder):
        base_adapter = of_base
        of_base = source_under(base_adapter, of_finetuned, options.adapted_model, options)  # type: ignore[arg-type]
        base_adapter.check(of_base)
    elif options.adapted_model is not None:
        raise InvalidValueError(
            "`adapted_model` is for two adapters, and `base` is not one; leave it out"
        )
    if options.merged and not (base_adapter is None and isinstance(of_finetuned, Adapter)):
        raise InvalidValueError(
            "`merged` is for one LoRA adapter on its base, and these are two models of their own or two "
            "adapters; leave it out"
        )
    check_layers(hook_names, of_base.config)
    if isinstance(of_finetuned, Adapter):
        of_finetuned.check(of_base)
        rows = of_finetuned.n_rows(n_rows(of_base.config))
    else:
        check_configs(of_base.config, of_finetuned.config)
        rows = n_rows(of_finetuned.config)
        _check_packed_alike(of_base, of_finetuned, options)
    loader = _Loader(
        base=of_base,
        base_adapter=base_adapter,
        finetuned=of_finetuned,
        hook_names=tuple(hook_names),
        options=options,
        placement=options.placement([of_base.placement, of_finetuned.placement]),
        rows=(n_rows(of_base.config), rows),
        tokenizer=shared_tokenizer(
            of_base, of_finetuned, options, max(n_rows(of_base.config), rows)
        ),
    )
    if isinstance(of_finetuned, Adapter):
        if base_adapter is None:
            pair = loader.of_adapter(of_finetuned)
        else:
            pair = loader.of_two_adapters(base_adapter, of_finetuned)  # type: ignore[arg-type]
    else:
        pair = loader.of_two_models(of_finetuned)
    pair.watch((*of_base.lent, *of_finetuned.lent))
    return pair


def _check_packed_alike(base: Source, finetuned: Source, options: LoadOptions) -> None:
    packed = [
        is_quantised(side.config)
        or (side.placement is None and options.quantization_config is not None)
        for side in (base, finetuned)
    ]
    if packed[0] != packed[1]:
        which, other = ("base", "finetuned") if packed[0] else ("finetuned", "base")
        raise InvalidValueError(
            f"`{which}` is quantised and `{other}` is not, so their difference would be the rounding; load "
            "both alike (`quantization_config=` for what is loaded from files)"
        )


@dataclass(frozen=True, kw_only=True)
class _Loader:
    """One call of `load_pair`, with checked arguments."""

    base: Source
    base_adapter: AdapterInFolder | None
    """The adapter that makes the base, if the base is a fine-tune too."""
    finetuned: Source | Adapter
    hook_names: tuple[str, ...]
    options: LoadOptions
    placement: Placement
    rows: tuple[int, int]
    """Numbers of embedding rows of the base and of the fine-tuned model."""
    tokenizer: PreTrainedTokenizerBase

    def weights(self, source: Source, *, share: bool = True) -> PreTrainedModel:
        """Return a side's plain model, with embeddings for all tokens of both."""
        model = source.weights(self.placement, share=share)
        if added := padded(model, max(self.rows)):
            logger.info(
                "%s has no embeddings for %d tokens of the other model: it is given means of its own rows, "
                "so it reads such a token as an average one", source.name, added,
            )  # fmt: skip
        return model

    def logits(self, model: Any) -> torch.Tensor:
        """Return a plain model's logits on the probe."""
        return plain_logits(model, min(self.rows), model.device)

    def reference(self, base: torch.Tensor, finetuned: torch.Tensor, model: Any) -> Reference:
        if torch.equal(base, finetuned):
            logger.warning(
                "%s and %s compute the same: a null pair",
                (self.base_adapter or self.base).name, self.finetuned.name,
            )  # fmt: skip
        return Reference(
            base=base,
            finetuned=finetuned,
            n_known=min(self.rows),
            quantised=is_quantised(model.config),
        )

    def pair(
        self,
        base: TransformerBridge,
        finetuned: TransformerBridge,
        reference: Reference,
        adapter: PeftModel | None = None,
        base_adapter: str | None = None,
    ) -> HookedModelPair:
        of_base, of_finetuned = self.rows
        metadata = PairMetadata(
            base=(self.base_adapter or self.base).name,
            finetuned=self.finetuned.name,
            base_revision=self.base.revision,
            finetuned_revision=self.finetuned.revision,
            adapter=adapter is not None,
            n_added_rows=abs(of_finetuned - of_base),
            added_to=None
            if of_base == of_finetuned
            else ("finetuned", "base")[of_base < of_finetuned],
        )
        pair = HookedModelPair(
            base, finetuned, self.hook_names, adapter=adapter, base_adapter=base_adapter,
            prepend_bos=self.options.prepend_bos, metadata=metadata,
        )  # fmt: skip
        reference.check(pair)
        return pair

    def of_two_models(self, source: Source) -> HookedModelPair:
        """Make a pair from two whole models."""
        base, finetuned = self.weights(self.base), self.weights(source)
        reference = self.reference(self.logits(base), self.logits(finetuned), base)
        bridges = boot_bridge(base, self.tokenizer), boot_bridge(finetuned, self.tokenizer)
        return self.pair(*bridges, reference)

    def of_adapter(self, adapter: Adapter) -> HookedModelPair:
        """Switch an adapter on one base, or merge it into a second copy."""
        model = self.weights(self.base, share=not adapter.writes_to_base)
        base = self.logits(model)
        peft_model = adapter.on(model)
        reference = self.reference(base, self.logits(peft_model), model)
        reason = changes_base(peft_model)
        if reason is None and self.options.merged:
            return self.merged(peft_model, reference)
        if reason is None:
            try:
                bridge = boot_bridge(peft_model.get_base_model(), self.tokenizer)  # type: ignore[arg-type]
                return self.pair(bridge, bridge, reference, peft_model)
            except (SilentAdapterError, MismatchError) as error:
                reason = f"cannot be switched on one bridge ({error})"
        self._say_why_merged(f"the adapter {adapter.name} {reason}", reference)
        del model, peft_model
        merged = adapter.on(self.weights(self.base, share=False), share=False).merge_and_unload()  # type: ignore[operator]
        merged.eval().requires_grad_(False)
        base = self.weights(self.base)
        bridges = boot_bridge(base, self.tokenizer), boot_bridge(merged, self.tokenizer)
        return self.pair(*bridges, reference)

    def merged(self, peft_model: PeftModel, reference: Reference) -> HookedModelPair:
        """Merge an adapter into copies of the weights that it changes; all others are shared."""
        self._say_why_merged("`merged` is True", reference)
        names = AdapterSwitch(peft_model).names
        adapted: Any = copied(peft_model, share=True)
        model = boot_bridge(adapted.get_base_model(), self.tokenizer).original_model
        of_base, of_finetuned = pair_fingerprints(model, model, adapted, names)
        base: Any = copied(peft_model, share=True).unload()  # type: ignore[operator]
        # With `safe_merge`, PEFT writes to a copy of each weight.
        finetuned: Any = peft_model.merge_and_unload(safe_merge=True)  # type: ignore[operator]
        finetuned.eval().requires_grad_(False)
        bridges = boot_bridge(base, self.tokenizer), boot_bridge(finetuned, self.tokenizer)
        pair = self.pair(*bridges, reference)
        pair.metadata = replace(
            pair.metadata, base_fingerprint=of_base, finetuned_fingerprint=of_finetuned
        )
        return pair

    def _say_why_merged(self, reason: str, reference: Reference) -> None:
        if reference.quantised:
            raise InvalidValueError(
                f"{reason}, and merged into quantised weights it would be rounded; load the model without "
                "`quantization_config`"
            )
        logger.info("two models are made of %s, since %s", self.base.name, reason)

    def of_two_adapters(self, one: AdapterInFolder, other: AdapterInFolder) -> HookedModelPair:
        """Switch between two adapters on one model, or merge each into a separate copy."""
        reason = "one of the adapters changes more than its own layers"
        if not (one.writes_to_base or other.writes_to_base):
            model = self.weights(self.base, share=False)
            peft_model = attach_adapter(model, one.folder, name="base")
            base = self.logits(peft_model)
            attach_adapter(peft_model, other.folder, name="finetuned")
            try:
                reference = self.reference(base, self.logits(peft_model), model)
                bridge = boot_bridge(peft_model.get_base_model(), self.tokenizer)  # type: ignore[arg-type]
                return self.pair(bridge, bridge, reference, peft_model, "base")
            except (SilentAdapterError, MismatchError) as error:
                reason = f"the adapters cannot be switched on one bridge ({error})"
            del model, peft_model
        both = [adapter.on(self.weights(self.base, share=False)) for adapter in (one, other)]
        reference = self.reference(*map(self.logits, both), both[0])  # type: ignore[operator]
        self._say_why_merged(reason, reference)
        merged = [peft_model.merge_and_unload() for peft_model in both]  # type: ignore[operator]
        bridges = [
            boot_bridge(model.eval().requires_grad_(False), self.tokenizer) for model in merged
        ]
        return self.pair(*bridges, reference)  # type: ignore[call-arg]


def load_model(
    model: str | Path, *, device: str = "cpu", dtype: torch.dtype | str = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load one model and its tokenizer with transformers; the embedded model works too.

    Args:
        model: a name, as for `base` of `load_pair`.
        device: a torch device.
        dtype: the dtype of the weights.

    Raises:
        ValueError: the folder does not exist or is damaged.
        ModelUnavailableError: the model is neither local nor cached and cannot be fetched.
    """
    placement = LoadOptions(device=device, dtype=dtype).placement([])
    path = resolve_model(model)
    tokenizer = load_tokenizer(path, None)
    if tokenizer is None:
        raise InvalidValueError(f"{path} holds no tokenizer; save the model's there")
    return load_weights(path, None, placement), tokenizer


@typed
def boot_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """Wrap a transformers model in a TransformerLens bridge (the model is changed in place).

    Raises:
        ValueError: the tokenizer cannot be loaded again, as the bridge does, or TransformerLens does not
            support the model.
    """
    if not is_on_disk(tokenizer):
        tokenizer = in_folder(tokenizer)
    try:
        bridge = TransformerBridge.boot_transformers(
            tokenizer.name_or_path, hf_model=model, tokenizer=tokenizer, dtype=model.dtype,
            trust_remote_code=False,
        )  # fmt: skip
    except (NotImplementedError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidValueError(
            f"TransformerLens cannot wrap a {type(model).__name__}: {error}; its bridge does not support "
            "this architecture or size"
        ) from error
    # A bridge's tokenizer is a separate object, loaded from this one's folder, which may be temporary.
    weakref.finalize(bridge, lambda kept: None, tokenizer)  # noqa: ARG005
    # With `hf_model=`, the bridge takes the machine's default device, not the model's.
    bridge.cfg.device = str(model.device)
    return bridge
