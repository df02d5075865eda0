"""Load a base and a fine-tuned model as a `HookedModelPair`, compared with the plain models."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from diffsae_lens import _hosts
from diffsae_lens._typed import check_fields
from diffsae_lens.pair.adapters import changes_base, quiet_peft
from diffsae_lens.pair.compatibility import (
    SilentAdapterError,
    check_names,
    check_prepend_bos,
    check_tokenizers,
    combine_tokenizers,
)
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.metadata import PairMetadata
from diffsae_lens.pair.model_files import (
    SHIPPED_ORGANISMS_DIR as SHIPPED_ORGANISMS_DIR,
)
from diffsae_lens.pair.model_files import (
    adapter_shapes,
    check_adapter,
    fetch,
    find_adapter,
    load_tokenizer,
    load_weights,
    resolve_model,
)
from diffsae_lens.pair.model_files import shipped_organisms as shipped_organisms
from diffsae_lens.pair.verification import MismatchError, Reference, plain_logits

logger = logging.getLogger(__name__)

_ELSEWHERE = {
    "torch_dtype": "use `dtype`",
    "device_map": "a model is loaded on one device; use `device`",
    "revision": "use `base_revision` and `finetuned_revision`",
    "trust_remote_code": "Python that comes with a model is never run",
    "quantization_config": "quantised models are not supported",
    "load_in_8bit": "quantised models are not supported",
    "load_in_4bit": "quantised models are not supported",
}
"""Options of other loaders, and what to do about them here."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How models are loaded."""

    device: str = "cpu"
    """A torch device, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
    dtype: torch.dtype | str = torch.float32
    """Of the weights, such as `torch.bfloat16` or `"bfloat16"`. Differences are small: think twice before
    anything but float32."""
    base_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    finetuned_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    prepend_bos: bool = False
    """Whether texts get a beginning-of-sequence token; must be as in the fine-tuning."""

    def __post_init__(self) -> None:
        """Refuse a device that is not there."""
        check_fields(self)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"`device` {self.device!r} cannot be used here ({error}); try 'cpu'"
            ) from error
        if not self.torch_dtype.is_floating_point:
            raise ValueError(f"`dtype` must be a floating point type, got {self.dtype}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        named = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(named, torch.dtype):
            raise ValueError(
                f"`dtype` must be a torch type or its name, such as 'bfloat16', got {self.dtype!r}"
            )
        return named


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
    options = _options(options, overrides)
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
        raise ValueError(f"`base` {base} is an adapter, not a model: {way_out}")
    loader = _Loader(base, finetuned, (base_path, finetuned_path), tuple(hook_names), options)
    _check_layers(hook_names, loader.config)
    return loader.of_two_models() if adapter is None else loader.of_adapter(adapter)


def _options(options: LoadOptions | None, overrides: dict[str, Any]) -> LoadOptions:
    if options is not None and not isinstance(options, LoadOptions):
        raise TypeError(f"`options` must be LoadOptions, got a {type(options).__name__}")
    if options is not None and overrides:
        raise ValueError("give either `options` or its fields, not both")
    known = [field.name for field in fields(LoadOptions)]
    for name in overrides:
        if name not in known:
            hint = _ELSEWHERE.get(name, f"there are {', '.join(f'`{k}`' for k in known)}")
            raise TypeError(f"`load_pair` has no option `{name}`: {hint}")
    return options or LoadOptions(**overrides)


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
        _check_configs(
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
        _warn_of_other_base(adapter, str(self.base), self.config)
        base_tokenizer, own = self.tokenizers()
        tokenizer = combine_tokenizers(base_tokenizer, own, n_rows=self.config.vocab_size)
        model = self.weights(of_base=True)
        plain = plain_logits(model, self.config.vocab_size, model.device)
        peft_model = _with_adapter(model, folder)
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
        merged = _with_adapter(self.weights(of_base=True), folder).merge_and_unload()  # type: ignore[operator]
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


def boot_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """Wrap a transformers model as a TransformerLens bridge (the model is changed in place).

    Raises:
        ValueError: a tokenizer made in memory, which the bridge cannot load again, or a model that
            TransformerLens does not know.
    """
    path = tokenizer.name_or_path
    if not path or "name_or_path" not in tokenizer.init_kwargs:
        raise ValueError(
            "`tokenizer` was made in memory, and the bridge loads it again by its path: write it with "
            "`tokenizer.save_pretrained(folder)` and give `AutoTokenizer.from_pretrained(folder)`"
        )
    try:
        bridge = TransformerBridge.boot_transformers(
            path, hf_model=model, tokenizer=tokenizer, dtype=model.dtype, trust_remote_code=False
        )
    except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"TransformerLens cannot wrap a {type(model).__name__}: {error}; its bridge does not support "
            "this architecture or size"
        ) from error
    # With `hf_model=` the bridge takes the device from what the machine has, not from the model.
    bridge.cfg.device = str(model.device)
    return bridge


def _with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put an adapter on a model, every tensor of its file in its place.

    Raises:
        ValueError: names or shapes in the file that the adapter does not have, or the reverse.
    """
    own = set(model.state_dict())
    try:
        with quiet_peft(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
            peft_model = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        said = str(error).strip().replace("\n", " ")[:200]
        raise ValueError(f"the adapter {folder} does not fit `base`: {said}") from error
    wanted = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    there = set(adapter_shapes(folder))
    # Embeddings that an adapter sits on are saved whole beside it.
    plain = {n: n.removeprefix("base_model.model.").replace(".base_layer.", ".") for n in there}
    unknown = {name for name in there - wanted if plain[name] not in own}
    for names, what in ((unknown, "has no place for"), (wanted - there, "does not find")):
        if names:
            raise ValueError(
                f"the adapter {folder} does not fit `base`, which {what} {len(names)} of its tensors, "
                f"such as {min(names)!r}; it was made for another model or by another tool"
            )
    peft_model.eval().requires_grad_(False)
    return peft_model


def _warn_of_other_base(adapter: PeftConfig, base: str, config: PretrainedConfig) -> None:
    """Say so where an adapter names another base; folders may have been moved, hence no error."""
    named = adapter.base_model_name_or_path
    known = {Path(name).name.lower() for name in (base, _hosts.loaded_from(config)) if name}
    if named and Path(named).name.lower() not in known:
        logger.warning(
            "the adapter was made for %s, and `base` is %s: are they the same?", named, base
        )


def _check_configs(base: PretrainedConfig, finetuned: PretrainedConfig) -> None:
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(base, name, None), getattr(finetuned, name, None)
        if ours != theirs:
            raise ValueError(
                f"`base` has {name} {ours}, `finetuned` has {theirs}; a pair needs two models of one "
                "architecture and size"
            )


def _check_layers(hook_names: Sequence[str], config: PretrainedConfig) -> None:
    """Refuse a layer the model does not have before its weights are loaded."""
    for name in [] if isinstance(hook_names, str) else hook_names:
        parts = name.split(".")
        known = len(parts) > 1 and parts[0] == "blocks" and parts[1].isdigit()
        if known and int(parts[1]) >= config.num_hidden_layers:
            raise ValueError(
                f"`hook_names`: {name!r} is beyond the model's {config.num_hidden_layers} layers "
                f"(0 to {config.num_hidden_layers - 1})"
            )
