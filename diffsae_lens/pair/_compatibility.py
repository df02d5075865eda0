"""Checks that two models make a pair: each error names both sides and what to do."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens.pair._adapters import AdapterSwitch, changes_base
from diffsae_lens.pair._hook import VirtualHook, layer_of
from diffsae_lens.pair._vocabulary import check_tokenizers


class SilentAdapterError(InvalidValueError):
    """An adapter has layers that a bridge never runs."""


def check_names(hook_names: Sequence[str]) -> None:
    """Refuse anything but a list of hook names, before a model is loaded to check them against.

    Raises:
        ValueError: a single name, an empty list, or something other than names.
    """
    listed = isinstance(hook_names, Sequence) and not isinstance(hook_names, str)
    if not listed or not hook_names or not all(isinstance(name, str) for name in hook_names):
        raise InvalidValueError(
            "`hook_names` must be a list of one or more hook names, such as "
            f"['blocks.0.hook_resid_post'], got {hook_names!r}"
        )


def check_hook_names(hook_names: Sequence[str], model: TransformerBridge) -> tuple[str, ...]:
    """Return hook names as a tuple; refuse names that the model does not have.

    Raises:
        ValueError: an empty list, a repeated name, the name of a virtual hook point, or an unknown name.
    """
    check_names(hook_names)
    if len(set(hook_names)) != len(hook_names):
        raise InvalidValueError(f"`hook_names` names a hook twice: {list(hook_names)}")
    for hook_name in hook_names:
        if VirtualHook.is_virtual(hook_name):
            site = VirtualHook.parse(hook_name).site
            raise InvalidValueError(
                f"`hook_names` takes the models' own names: give {site!r}, and use "
                f"{hook_name!r} on the pair"
            )
        if hook_name not in model.hook_dict:
            raise InvalidValueError(
                f"`hook_names`: {hook_name!r} is not a hook of the model, which has {model.cfg.n_layers}"
                " layers with hooks such as 'blocks.0.hook_resid_post'"
            )
    return tuple(hook_names)


def hook_widths(
    model: TransformerBridge, hook_names: Sequence[str], adapters: AdapterSwitch
) -> dict[str, int]:
    """Run a few tokens and return the width of each hook's activation; heads are concatenated.

    Raises:
        ValueError: a hook that no forward pass reaches, or whose value is not one vector per position;
            or adapter layers that the bridge never runs, so that switching them changes nothing.
    """
    batch, n_tokens = 2, 7  # no model has so few heads that these could be mistaken for them
    shapes: dict[str, tuple[int, ...]] = {}

    def look(value: Any, hook: Any, *, name: str) -> None:  # noqa: ARG001
        shapes[name] = tuple(value.shape) if isinstance(value, Tensor) else ()

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, (batch, n_tokens), generator=generator)
    device = next(model.original_model.parameters()).device
    looks = [(name, partial(look, name=name)) for name in hook_names]
    with torch.no_grad(), model.hooks(fwd_hooks=looks), adapters.watched() as silent:
        try:
            model(tokens.to(device), return_type=None)
        except (RuntimeError, IndexError, KeyError, AttributeError) as error:
            raise InvalidValueError(
                f"the bridge of TransformerLens cannot run this model ({error}); use a model of an "
                "architecture that it supports"
            ) from error
    if silent:
        raise SilentAdapterError(
            f"`adapter` has {len(silent)} layers that the bridge never runs, such as {silent[0]!r} (it "
            "splits fused projections and reads the base's weights alone); such an adapter needs two models, "
            "and `load_pair` makes them"
        )
    widths = {}
    for name in hook_names:
        shape = shapes.get(name)
        if shape is None:
            raise InvalidValueError(
                f"`hook_names`: no forward pass reaches {name!r} in this model; choose another hook"
            )
        if len(shape) < 3 or shape[:2] != (batch, n_tokens):
            raise InvalidValueError(
                f"`hook_names`: {name!r} has values of shape {list(shape)} for {batch} sequences of "
                f"{n_tokens} tokens; a pair compares hooks with one vector per position"
            )
        widths[name] = torch.Size(shape[2:]).numel()
    return widths


def check_prepend_bos(prepend_bos: bool, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Return `prepend_bos`; refuse True if the tokenizer has nothing to prepend.

    Raises:
        TypeError: not a bool.
        ValueError: the tokenizer has no beginning-of-sequence token.
    """
    if not isinstance(prepend_bos, bool):
        raise InvalidTypeError(f"`prepend_bos` must be True or False, got {prepend_bos!r}")
    if prepend_bos and (tokenizer is None or tokenizer.bos_token_id is None):
        raise InvalidValueError(
            "`prepend_bos` is True, but the tokenizer has no beginning-of-sequence token; leave "
            "`prepend_bos` out, as the models were trained without one"
        )
    return prepend_bos


def check_models(
    base: TransformerBridge, finetuned: TransformerBridge, adapter: PeftModel | None
) -> None:
    """Refuse two models that are the same object, or that differ in more than their weights.

    Raises:
        TypeError: not a bridge, or an adapter that is not a PEFT model.
        ValueError: a single object without an adapter, or models that differ in architecture, width,
            depth, vocabulary, dtype or tokenizer.
    """
    for name, model in (("base", base), ("finetuned", finetuned)):
        if not isinstance(model, TransformerBridge):
            raise InvalidTypeError(
                f"`{name}` must be a TransformerBridge, got a {type(model).__name__}; wrap a "
                "transformers model with `diffsae_lens.pair.boot_bridge(model, tokenizer)`, or give "
                "its folder to `load_pair` (a HookedTransformer has other weights and is not supported)"
            )
    if adapter is not None and not isinstance(adapter, PeftModel):
        raise InvalidTypeError(f"`adapter` must be a PeftModel, got a {type(adapter).__name__}")
    if adapter is not None:
        _check_adapter(base, finetuned, adapter)
        return
    if base is finetuned or base.original_model is finetuned.original_model:
        raise InvalidValueError(
            "`base` and `finetuned` are one object, so their difference would be 0 everywhere. "
            "`merge_and_unload()` returns the very model it was given: load the base once more, or "
            "pass the unmerged PEFT model as `adapter`"
        )
    for name in ("architecture", "d_model", "n_layers", "d_vocab", "dtype"):
        ours, theirs = getattr(base.cfg, name, None), getattr(finetuned.cfg, name, None)
        if ours != theirs:
            raise InvalidValueError(
                f"`base` has {name} {ours}, `finetuned` has {theirs}; they must agree"
            )
    if base.tokenizer is not None and finetuned.tokenizer is not None:
        check_tokenizers(base.tokenizer, finetuned.tokenizer)


def _check_adapter(
    base: TransformerBridge, finetuned: TransformerBridge, adapter: PeftModel
) -> None:
    if base.original_model is not finetuned.original_model:
        raise InvalidValueError("with `adapter`, `base` and `finetuned` must be the same bridge")
    if adapter.get_base_model() is not finetuned.original_model:
        raise InvalidValueError(
            "`adapter` does not belong to the bridge: boot it with "
            "`hf_model=adapter.get_base_model()`"
        )
    if reason := changes_base(adapter):
        raise InvalidValueError(
            f"`adapter` {reason}, so switching it off does not give the base model back: save it and "
            "give its folder to `load_pair`, which loads the base afresh"
        )


def check_configs(base: PretrainedConfig, finetuned: PretrainedConfig) -> None:
    """Refuse two models of different architecture or size before their weights are loaded.

    Raises:
        ValueError: says what differs.
    """
    for name in ("model_type", "hidden_size", "num_hidden_layers"):
        ours, theirs = (
            getattr(config.get_text_config(), name, None) for config in (base, finetuned)
        )
        if ours != theirs:
            raise InvalidValueError(
                f"`base` has {name} {ours}, `finetuned` has {theirs}; a pair needs two models of one "
                "architecture and size"
            )


def check_layers(hook_names: Sequence[str], config: PretrainedConfig) -> None:
    """Refuse a layer that the model does not have before its weights are loaded.

    Raises:
        ValueError: says how many layers there are.
    """
    n_layers = config.get_text_config().num_hidden_layers
    for name in [] if isinstance(hook_names, str) else hook_names:
        layer = layer_of(name) if isinstance(name, str) else None
        if layer is not None and layer >= n_layers:
            raise InvalidValueError(
                f"`hook_names`: {name!r} is beyond the model's {n_layers} layers (0 to {n_layers - 1})"
            )
