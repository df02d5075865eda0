"""Load a base and a fine-tuned model as a `HookedModelPair`, compared with the plain models."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.pair._adapters import attach_adapter, changes_base, warn_of_other_base
from diffsae_lens.pair._compatibility import (
    SilentAdapterError,
    check_configs,
    check_layers,
    check_names,
    check_prepend_bos,
    check_tokenizers,
    combine_tokenizers,
)
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._model_files import (
    check_adapter,
    fetch,
    find_adapter,
    load_tokenizer,
    load_weights,
    resolve_model,
)
from diffsae_lens.pair._options import LoadOptions, load_options
from diffsae_lens.pair._verification import MismatchError, Reference, plain_logits

logger = logging.getLogger(__name__)


def load_pair(
    base: str | Path,
    finetuned: str | Path,
    *,
    hook_names: Sequence[str],
    options: LoadOptions | None = None,
    **overrides: Any,
) -> HookedModelPair:
    """Load a base and a fine-tuned model as one hooked model.

    Before the bridges take the models over, a few fixed tokens go through the plain base and the plain
    fine-tuned model; the pair must then compute the same logits. An adapter shares the base's weights and
    is switched on and off. Where that cannot give both models (adapters on fused projections, that rewrite
    base weights, or with trained biases), the base is loaded afresh and the adapter merged into a second
    copy; a log line says so and why.

    Args:
        base: `smollm2-135m` (the embedded model), a local folder, or a hub id such as
            `HuggingFaceTB/SmolLM2-360M`.
        finetuned: a shipped organism (`year-trigger`, `clean-control`), a LoRA adapter or a
            full model, as a local folder or hub id. A full model is loaded as a second one.
        hook_names: the TransformerLens hooks to compare at, such as `blocks.18.hook_resid_post`.
        options: how to load.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        The pair, in evaluation mode, its parameters without gradients.

    Raises:
        ValueError: the two do not fit together, a hook does not exist, bad options, files that are
            damaged or missing, or a pair that does not compute what the plain models compute.
        TypeError: a model in memory, or an option that does not exist.
        ModelUnavailableError: a model is neither local nor cached and cannot be fetched.

    Examples:
        >>> pair = load_pair("smollm2-135m", "year-trigger",
        ...                  hook_names=["blocks.18.hook_resid_post"])         # doctest: +SKIP
    """
    options = load_options(options, overrides)
    check_names(hook_names)
    base_path, finetuned_path = resolve_model(base), resolve_model(finetuned)
    if base_path == finetuned_path and options.base_revision == options.finetuned_revision:
        logger.warning("`base` and `finetuned` are both %s: a null pair", base)
    adapter = find_adapter(finetuned_path, options.finetuned_revision)
    if find_adapter(base_path, options.base_revision) is not None:
        way_out = (
            "merge one of the two into the base and save it"
            if adapter is not None
            else "swap `base` and `finetuned`"
        )
        raise InvalidValueError(f"`base` {base} is an adapter, not a model: {way_out}")
    loader = _Loader(base, finetuned, (base_path, finetuned_path), tuple(hook_names), options)
    check_layers(hook_names, loader.config)
    return loader.of_two_models() if adapter is None else loader.of_adapter(adapter)


@dataclass(frozen=True)
class _Loader:
    """One call of `load_pair`, its names resolved."""

    base: str | Path
    finetuned: str | Path
    paths: tuple[str, str]
    hook_names: tuple[str, ...]
    options: LoadOptions

    @property
    def config(self) -> PretrainedConfig:
        return fetch(AutoConfig, self.paths[0], self.options.base_revision)

    def metadata(self, *, adapter: bool) -> PairMetadata:
        return PairMetadata(
            base=str(self.base),
            finetuned=str(self.finetuned),
            base_revision=self.options.base_revision,
            finetuned_revision=self.options.finetuned_revision,
            adapter=adapter,
        )

    def weights(self, *, of_base: bool) -> PreTrainedModel:
        path = self.paths[0] if of_base else self.paths[1]
        revision = self.options.base_revision if of_base else self.options.finetuned_revision
        return load_weights(
            path, revision, dtype=self.options.torch_dtype, device=self.options.device
        )

    def tokenizers(self) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
        base = load_tokenizer(self.paths[0], self.options.base_revision)
        finetuned = load_tokenizer(self.paths[1], self.options.finetuned_revision, otherwise=base)
        check_prepend_bos(self.options.prepend_bos, finetuned)
        return base, finetuned

    def pair(
        self,
        base: TransformerBridge,
        finetuned: TransformerBridge,
        reference: Reference,
        adapter: PeftModel | None = None,
    ) -> HookedModelPair:
        pair = HookedModelPair(
            base, finetuned, self.hook_names, adapter=adapter,
            prepend_bos=self.options.prepend_bos, metadata=self.metadata(adapter=adapter is not None),
        )  # fmt: skip
        reference.check(pair)
        return pair

    def of_two_models(self) -> HookedModelPair:
        """Load two whole models."""
        check_configs(
            self.config, fetch(AutoConfig, self.paths[1], self.options.finetuned_revision)
        )
        tokenizers = self.tokenizers()
        check_tokenizers(*tokenizers)
        models = self.weights(of_base=True), self.weights(of_base=False)
        return self._of_plain(*models, tokenizers)

    def of_adapter(self, folder: Path) -> HookedModelPair:
        """Load a base and switch an adapter on it, or merge it into a second copy."""
        adapter = PeftConfig.from_pretrained(str(folder))
        check_adapter(folder, adapter, self.config)
        warn_of_other_base(adapter, str(self.base), self.config)
        base_tokenizer, own = self.tokenizers()
        tokenizer = combine_tokenizers(base_tokenizer, own, n_rows=self.config.vocab_size)
        model = self.weights(of_base=True)
        plain = plain_logits(model, self.config.vocab_size, model.device)
        peft_model = attach_adapter(model, folder)
        reference = Reference(
            base=plain,
            finetuned=plain_logits(peft_model, self.config.vocab_size, model.device),
        )
        if torch.equal(reference.base, reference.finetuned):
            logger.warning("the adapter %s changes nothing: a null pair", folder)
        reason = changes_base(peft_model)
        if reason is None:
            try:
                bridge = boot_bridge(peft_model.get_base_model(), tokenizer)  # type: ignore[arg-type]
                return self.pair(bridge, bridge, reference, peft_model)
            except (SilentAdapterError, MismatchError) as error:
                reason = f"cannot be switched on one bridge ({error})"
        logger.info("two models are made of %s, since the adapter %s", self.base, reason)
        del model, peft_model
        merged = attach_adapter(self.weights(of_base=True), folder).merge_and_unload()  # type: ignore[operator]
        merged.eval().requires_grad_(False)
        base = self.weights(of_base=True)
        return self.pair(boot_bridge(base, tokenizer), boot_bridge(merged, tokenizer), reference)

    def _of_plain(
        self,
        base: PreTrainedModel,
        finetuned: PreTrainedModel,
        tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    ) -> HookedModelPair:
        reference = Reference(
            base=plain_logits(base, self.config.vocab_size, base.device),
            finetuned=plain_logits(finetuned, self.config.vocab_size, base.device),
        )
        bridges = (boot_bridge(base, tokenizers[0]), boot_bridge(finetuned, tokenizers[1]))
        return self.pair(*bridges, reference)


def load_model(
    model: str | Path, *, device: str = "cpu", dtype: torch.dtype | str = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load one model and its tokenizer with transformers, the embedded one included.

    Args:
        model: as `base` of `load_pair`.
        device: a torch device.
        dtype: of the weights.

    Raises:
        ValueError: no such folder, or a damaged one.
        ModelUnavailableError: neither local nor cached, and cannot be fetched.
    """
    options = LoadOptions(device=device, dtype=dtype)
    path = resolve_model(model)
    weights = load_weights(path, None, dtype=options.torch_dtype, device=device)
    return weights, load_tokenizer(path, None)


@typed
def boot_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """Wrap a transformers model as a TransformerLens bridge (the model is changed in place).

    Raises:
        ValueError: a tokenizer made in memory, which the bridge cannot load again, or a model that
            TransformerLens does not know.
    """
    path = tokenizer.name_or_path
    if not path or "name_or_path" not in tokenizer.init_kwargs:
        raise InvalidValueError(
            "`tokenizer` was made in memory, and the bridge loads it again by its path: write it with "
            "`tokenizer.save_pretrained(folder)` and give `AutoTokenizer.from_pretrained(folder)`"
        )
    try:
        bridge = TransformerBridge.boot_transformers(
            path, hf_model=model, tokenizer=tokenizer, dtype=model.dtype, trust_remote_code=False
        )
    except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
        raise InvalidValueError(
            f"TransformerLens cannot wrap a {type(model).__name__}: {error}; its bridge does not support "
            "this architecture or size"
        ) from error
    # With `hf_model=` the bridge takes the device from what the machine has, not from the model.
    bridge.cfg.device = str(model.device)
    return bridge
