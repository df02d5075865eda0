"""Load a base and a fine-tuned model as a `HookedModelPair`."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from diffsae_lens.adapters import quiet_peft
from diffsae_lens.compatibility import check_tokenizers
from diffsae_lens.embedded import EMBEDDED_MODEL, ModelUnavailableError, embedded_model_path
from diffsae_lens.pair import HookedModelPair, PairMetadata

logger = logging.getLogger(__name__)

SHIPPED_ORGANISMS_DIR = Path(__file__).parent / "organisms" / "adapters"
ATTENTION = "eager"  # what TransformerBridge itself asks for, so that patterns can be hooked


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How models are loaded."""

    device: str = "cpu"
    """A torch device, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
    dtype: torch.dtype = torch.float32
    """Of the weights. Differences are small: think twice before anything but float32."""
    base_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    finetuned_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    prepend_bos: bool = False
    """Whether texts get a beginning-of-sequence token; must be as in the fine-tuning."""

    def __post_init__(self) -> None:
        """Refuse a device that is not there."""
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"`device` {self.device!r} cannot be used here ({error}); try 'cpu'"
            ) from error
        if not self.dtype.is_floating_point:
            raise ValueError(f"`dtype` must be a floating point type, got {self.dtype}")


def shipped_organisms() -> tuple[str, ...]:
    """Return the names of the adapters that come with the package."""
    return tuple(sorted(p.parent.name for p in SHIPPED_ORGANISMS_DIR.glob("*/adapter_config.json")))


def load_pair(
    base: str | Path,
    finetuned: str | Path,
    *,
    hook_names: Sequence[str],
    options: LoadOptions | None = None,
    **overrides: Any,
) -> HookedModelPair:
    """Load a base and a fine-tuned model as one hooked model.

    Args:
        base: `smollm2-135m` (the embedded model), a local folder, or a hub id such as
            `HuggingFaceTB/SmolLM2-360M`.
        finetuned: a shipped organism (`year-trigger`, `clean-control`), a LoRA adapter or a
            full model, as a local folder or hub id. An adapter shares the base's weights and is switched
            on and off; a full model is loaded as a second one.
        hook_names: the TransformerLens hooks to compare at, such as `blocks.18.hook_resid_post`.
        options: how to load.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        The pair, in evaluation mode, its parameters without gradients.

    Raises:
        ValueError: the two do not fit together, a hook does not exist, or bad options.
        ModelUnavailableError: a model is neither local nor cached and cannot be fetched.

    Examples:
        >>> pair = load_pair("smollm2-135m", "year-trigger",
        ...                  hook_names=["blocks.18.hook_resid_post"])         # doctest: +SKIP
    """
    if options is not None and overrides:
        raise ValueError("give either `options` or its fields, not both")
    options = options or LoadOptions(**overrides)
    base_path, finetuned_path = resolve_model(base), resolve_model(finetuned)
    if base_path == finetuned_path and options.base_revision == options.finetuned_revision:
        logger.warning("`base` and `finetuned` are both %s: a null pair", base)
    adapter = _adapter_config(finetuned_path, options.finetuned_revision)
    base_config = _fetch(AutoConfig, base_path, options.base_revision)
    if adapter is None:
        _check_configs(base_config, _fetch(AutoConfig, finetuned_path, options.finetuned_revision))
    else:
        _check_adapter_fits(adapter, base_config, finetuned_path)
    _check_layers(hook_names, base_config)
    metadata = PairMetadata(
        base=str(base),
        finetuned=str(finetuned),
        base_revision=options.base_revision,
        finetuned_revision=options.finetuned_revision,
        adapter=adapter is not None,
    )
    tokenizer = _fetch(AutoTokenizer, base_path, options.base_revision)
    model = _load_weights(base_path, options, options.base_revision)
    if adapter is not None:
        with quiet_peft():
            peft_model = PeftModel.from_pretrained(
                model, finetuned_path, revision=options.finetuned_revision
            )
        bridge = boot_bridge(peft_model.get_base_model(), tokenizer)  # type: ignore[arg-type]
        _freeze(peft_model)
        return HookedModelPair(
            bridge, bridge, hook_names, adapter=peft_model,
            prepend_bos=options.prepend_bos, metadata=metadata,
        )  # fmt: skip
    other_tokenizer = _fetch(AutoTokenizer, finetuned_path, options.finetuned_revision)
    check_tokenizers(tokenizer, other_tokenizer)
    other = _load_weights(finetuned_path, options, options.finetuned_revision)
    return HookedModelPair(
        boot_bridge(model, tokenizer), boot_bridge(other, other_tokenizer), hook_names,
        prepend_bos=options.prepend_bos, metadata=metadata,
    )  # fmt: skip


def load_model(
    model: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load one model and its tokenizer with transformers, the embedded one included.

    Args:
        model: as `base` of `load_pair`.
        device: a torch device.
        dtype: of the weights.

    Raises:
        ModelUnavailableError: neither local nor cached, and cannot be fetched.
    """
    options = LoadOptions(device=device, dtype=dtype)
    path = resolve_model(model)
    return _load_weights(path, options, None), _fetch(AutoTokenizer, path, None)


def resolve_model(model: str | Path) -> str:
    """Turn a name into what transformers loads: a folder for what we ship, else unchanged.

    Raises:
        ValueError: a path that does not exist.
    """
    if str(model) == EMBEDDED_MODEL:
        return str(embedded_model_path())
    if str(model) in shipped_organisms():
        return str(SHIPPED_ORGANISMS_DIR / str(model))
    looks_local = isinstance(model, Path) or str(model).startswith((".", "/", "~"))
    path = Path(model).expanduser()
    if path.exists():
        return str(path)
    if looks_local:
        raise ValueError(f"there is no model folder {model}")
    if "/" not in str(model):
        known = ", ".join([EMBEDDED_MODEL, *shipped_organisms()])
        raise ValueError(
            f"unknown model {str(model)!r}: give one of {known}, a folder, or a hub id 'owner/name'"
        )
    return str(model)


def boot_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """Wrap a transformers model as a TransformerLens bridge (the model is changed in place)."""
    path = tokenizer.name_or_path
    bridge = TransformerBridge.boot_transformers(
        path, hf_model=model, tokenizer=tokenizer, dtype=model.dtype
    )
    # With `hf_model=` the bridge takes the device from what the machine has, not from the model.
    bridge.cfg.device = str(model.device)
    return bridge


def _freeze(model: torch.nn.Module) -> None:
    model.eval()
    model.requires_grad_(False)


def _load_weights(path: str, options: LoadOptions, revision: str | None) -> PreTrainedModel:
    model = _fetch(
        AutoModelForCausalLM, path, revision,
        dtype=options.dtype, attn_implementation=ATTENTION,
    )  # fmt: skip
    _freeze(model)
    return model.to(options.device)


def _fetch(loader: Any, path: str, revision: str | None, **kwargs: Any) -> Any:
    """`from_pretrained`, with an error that says what to do when it cannot be had."""
    try:
        return loader.from_pretrained(path, revision=revision, **kwargs)
    except OSError as error:
        raise ModelUnavailableError(
            f"{path!r} is neither a model folder here nor in the hub's cache, and cannot be fetched. "
            "Check the name and the connection; without a hub use the embedded model "
            f"{EMBEDDED_MODEL!r} or a local folder. The loader said: {error}"
        ) from error


def _adapter_config(path: str, revision: str | None) -> PeftConfig | None:
    try:
        found = find_adapter_config_file(path, revision=revision)
    except OSError:  # no network: then it is no cached adapter either
        found = None
    return None if found is None else PeftConfig.from_pretrained(str(Path(found).parent))


def _check_configs(base: PretrainedConfig, finetuned: PretrainedConfig) -> None:
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(base, name, None), getattr(finetuned, name, None)
        if ours != theirs:
            raise ValueError(
                f"`base` has {name} {ours}, `finetuned` has {theirs}; a pair needs two models of one "
                "architecture and size"
            )


def _check_adapter_fits(adapter: PeftConfig, base: PretrainedConfig, path: str) -> None:
    """Compare the adapter's matrices with the base's width before any weight is loaded."""
    if str(adapter.peft_type) not in ("LORA", "PeftType.LORA"):
        raise ValueError(
            f"`finetuned` {path} is a {adapter.peft_type} adapter; only LORA is supported"
        )
    weights = Path(path) / "adapter_model.safetensors"
    if not weights.exists():  # a hub id: PEFT itself reports a mismatch while loading
        return
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in header if ".layers." in name}
    if layers and max(layers) >= base.num_hidden_layers:
        raise ValueError(
            f"the adapter {path} reaches layer {max(layers)}, but `base` has "
            f"{base.num_hidden_layers} layers: it was made for another model"
        )
    for name, entry in header.items():
        if name.endswith("q_proj.lora_A.weight") and entry["shape"][1] != base.hidden_size:
            raise ValueError(
                f"the adapter {path} is for a model {entry['shape'][1]} wide, but `base` is "
                f"{base.hidden_size} wide"
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
