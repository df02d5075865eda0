"""Dispatch of the models that `load_pair` takes: each becomes a `Source` or an `Adapter`."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffsae_lens import _hosts
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens.pair._adapter_sources import Adapter, AdapterInFolder, AdapterInMemory
from diffsae_lens.pair._compatibility import check_prepend_bos
from diffsae_lens.pair._memory import unbridged
from diffsae_lens.pair._model_files import find_adapter, load_tokenizer, resolve_model
from diffsae_lens.pair._options import LoadOptions, Placement
from diffsae_lens.pair._sources import InBridge, InFolder, InMemory, Source, UnderAdapter, under
from diffsae_lens.pair._verification import check_same
from diffsae_lens.pair._vocabulary import (
    check_rows,
    choose_tokenizer,
    in_folder,
    is_on_disk,
    n_rows,
)

Given = str | Path | PreTrainedModel | PeftModel | TransformerBridge
"""What `load_pair` takes for either side."""


def sources(
    base: Given, finetuned: Given, options: LoadOptions
) -> tuple[Source | AdapterInFolder, Source | Adapter]:
    """Return the sources of the two sides.

    Raises:
        TypeError: not a name, a model, a PEFT model or a bridge.
        ValueError: an unknown name, one object for both sides, or an adapter as the base of anything but
            another adapter.
    """
    if base is finetuned and not isinstance(base, str | Path):
        raise InvalidValueError(
            "`base` and `finetuned` are one object, so their difference would be 0 everywhere. "
            "`merge_and_unload()` returns the very model it was given: load the base once more, or give "
            "the unmerged PeftModel as `finetuned`"
        )
    of_finetuned = _source("finetuned", finetuned, options.finetuned_revision)
    of_adapter = isinstance(of_finetuned, AdapterInMemory)
    if of_adapter and base is of_finetuned.peft_model.get_base_model():
        return UnderAdapter(name=_name(base), peft_model=of_finetuned.peft_model), of_finetuned
    of_base = _source("base", base, options.base_revision)
    if isinstance(of_base, AdapterInFolder) and isinstance(of_finetuned, AdapterInFolder):
        return of_base, of_finetuned
    if isinstance(of_base, Adapter):
        way_out = (
            "save both adapters and give their folders, or make the pair with "
            "`HookedModelPair(bridge, bridge, adapter=peft_model, base_adapter=name)`"
            if isinstance(of_finetuned, Adapter)
            else "swap `base` and `finetuned`"
        )
        raise InvalidValueError(f"`base` {of_base.name} is an adapter, not a model: {way_out}")
    return of_base, of_finetuned


def source_under(
    base: AdapterInFolder, finetuned: AdapterInFolder, adapted: Given | None, options: LoadOptions
) -> Source:
    """Return the source of the model that two adapters are made for.

    Raises:
        ValueError: the adapters name different models or none, and `adapted` does not say which.
    """
    named = {side.made_for for side in (base, finetuned)}
    if adapted is None and (len(named) > 1 or None in named):
        raise InvalidValueError(
            f"`base` and `finetuned` are adapters made for {' and '.join(sorted(map(str, named)))}; say "
            "with `adapted_model=` which model both sit on; if one was trained on a model with the other "
            "merged in, that model is its `base`"
        )
    given = named.pop() if adapted is None else adapted
    source = _source("adapted_model", given, options.base_revision if adapted is None else None)  # type: ignore[arg-type]
    if isinstance(source, Adapter):
        raise InvalidValueError(f"`adapted_model` {source.name} is an adapter itself, not a model")
    return source


def _source(side: str, given: Given, revision: str | None) -> Source | Adapter:
    if isinstance(given, PeftModel):
        return AdapterInMemory(
            name=f"{type(given).__name__} in memory",
            peft_model=given,
            placement=Placement.of(under(given)),
        )
    if isinstance(given, TransformerBridge):
        plain = unbridged(given)
        check_same(side, given, plain, n_rows(plain.config))
        return InBridge(name=_name(plain), model=plain, side=side, bridge=given)
    if isinstance(given, PreTrainedModel):
        return InMemory(name=_name(given), model=given, side=side)
    if not isinstance(given, str | Path):
        raise InvalidTypeError(f"`{side}` must be {_EXPECTED}, got {_what(given)}")
    path = resolve_model(given)
    folder = find_adapter(path, revision)
    if folder is not None:
        return AdapterInFolder(name=str(given), path=path, folder=folder, revision=revision)
    return InFolder(name=str(given), path=path, revision=revision)


_EXPECTED = (
    "the name of a model (a folder or a hub id), a model of transformers, a PeftModel or a "
    "TransformerBridge"
)


def _what(given: Any) -> str:
    """Describe what was given instead, and what to do about it."""
    name = type(given).__name__
    # By its name, since TransformerLens 4 no longer has the class.
    if any(kind.__name__ == "HookedTransformer" for kind in type(given).__mro__):
        return (
            "a HookedTransformer, whose weights are folded and centred, so that it is not the model "
            "that transformers computes; give the model's name, or boot a bridge with "
            "`TransformerBridge.boot_transformers(name)`"
        )
    if isinstance(given, torch.nn.Module):
        return (
            f"a {name}; take off what a trainer or torch.compile has put around the model (such as "
            "`model.module`), or save it with `save_pretrained` and give the folder"
        )
    return f"a {name}"


def _name(model: Any) -> str:
    return _hosts.loaded_from(model.config) or f"{type(model).__name__} in memory"


def shared_tokenizer(
    base: Source, finetuned: Source | Adapter, options: LoadOptions, rows: int
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with which both models read texts.

    Raises:
        ValueError: neither model has a tokenizer, the two contradict each other, or the tokenizer lacks the
            token for `prepend_bos`.
    """
    wanted, beside = options.tokenizer, None
    if isinstance(wanted, PreTrainedTokenizerBase):
        chosen = wanted
    elif wanted in (None, "base", "finetuned"):
        beside = base.tokenizer()
        chosen = choose_tokenizer(beside, finetuned.tokenizer(), wanted)  # type: ignore[arg-type]
    else:
        chosen = load_tokenizer(resolve_model(wanted, tokenizer=True), None)  # type: ignore[arg-type]
        if chosen is None:
            raise InvalidValueError(f"`tokenizer`: {wanted} holds no tokenizer")
    check_rows(chosen, rows, beside=beside)
    check_prepend_bos(options.prepend_bos, chosen)
    return in_folder(chosen) if chosen is wanted or not is_on_disk(chosen) else chosen
