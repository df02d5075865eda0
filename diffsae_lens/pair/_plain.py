"""A base and a fine-tuned model as two plain transformers models, for work that needs no hooks."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._adapter_sources import Adapter, AdapterInFolder
from diffsae_lens.pair._compatibility import check_configs
from diffsae_lens.pair._doors import Given, shared_tokenizer, source_under, sources
from diffsae_lens.pair._options import LoadOptions, is_quantised, load_options
from diffsae_lens.pair._sources import Source
from diffsae_lens.pair._verification import TOLERANCE, MismatchError, plain_logits
from diffsae_lens.pair._vocabulary import n_rows, padded


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainModels:
    """Two models with separate weights, in evaluation mode; adapters are merged."""

    base: PreTrainedModel
    finetuned: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prepend_bos: bool
    names: tuple[str, str]
    """Names of the base and of the fine-tuned model."""


def load_plain(
    base: Given, finetuned: Given, *, options: LoadOptions | None = None, **overrides: Any
) -> PlainModels:
    """Load both models like `load_pair`, but each whole and without a bridge around it.

    An adapter is merged into a copy of its base, and the copy's logits are compared with those of the
    unmerged adapter.

    Raises:
        ValueError: as for `load_pair`; also for quantised models, or models that compute the same.
        TypeError: as for `load_pair`.
        ModelUnavailableError: as for `load_pair`.
    """
    options = load_options(options, overrides)
    of_base, of_finetuned = sources(base, finetuned, options)
    under: Source
    if isinstance(of_base, AdapterInFolder):
        under = source_under(of_base, of_finetuned, options.adapted_model, options)  # type: ignore[arg-type]
        of_base.check(under)
    else:
        under = of_base
    if isinstance(of_finetuned, Adapter):
        of_finetuned.check(under)
        rows = of_finetuned.n_rows(n_rows(under.config))
    else:
        check_configs(under.config, of_finetuned.config)
        rows = n_rows(of_finetuned.config)
    rows = max(n_rows(under.config), rows)
    placement = options.placement([under.placement, of_finetuned.placement])

    def whole(side: Source | Adapter) -> PreTrainedModel:
        source = under if isinstance(side, Adapter) else side
        model = source.weights(placement, share=False)
        if is_quantised(model.config):
            raise InvalidValueError(
                f"{side.name} is quantised, and an imitator is trained and adapters are merged in full "
                "precision; leave out `quantization_config`"
            )
        padded(model, rows)
        return _merged(side, model) if isinstance(side, Adapter) else model

    models = [whole(of_base), whole(of_finetuned)]
    logits = [plain_logits(model, n_rows(under.config), model.device) for model in models]
    if not all(found.isfinite().all() for found in logits):
        raise InvalidValueError(
            "a model computes logits that are NaN or infinite: its weights are damaged, or its precision "
            "is too low (try `dtype='float32'`)"
        )
    if torch.equal(*logits):
        raise InvalidValueError(
            f"{of_base.name} and {of_finetuned.name} compute the same: there is nothing to find between "
            "them"
        )
    for model in models:
        model.eval().requires_grad_(False)
        with suppress(ValueError, ImportError):  # a family with eager attention only
            model.set_attn_implementation("sdpa")
    return PlainModels(
        base=models[0],
        finetuned=models[1],
        tokenizer=shared_tokenizer(under, of_finetuned, options, rows),
        prepend_bos=options.prepend_bos,
        names=(of_base.name, of_finetuned.name),
    )


def _merged(adapter: Adapter, model: PreTrainedModel) -> PreTrainedModel:
    """Merge an adapter into a model, and check that it computes the same as unmerged."""
    peft_model = adapter.on(model, share=False)
    rows = n_rows(model.config)
    beside = plain_logits(peft_model, rows, model.device)
    merged = peft_model.merge_and_unload()  # type: ignore[operator]
    error = (plain_logits(merged, rows, model.device) - beside).abs().max().item()
    if not error <= TOLERANCE.get(model.dtype, 1e-3) * beside.std().item():
        raise MismatchError(
            f"the adapter {adapter.name} computes other logits once it is merged (by up to {error:.2g}); "
            "merge it yourself and give the whole model"
        )
    return merged
