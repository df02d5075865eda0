"""Whether two models make a pair: each check names both sides and what to do."""

from collections.abc import Sequence

from peft import PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from diffsae_lens.views import VIEWS


def check_hook_names(hook_names: Sequence[str], model: TransformerBridge) -> tuple[str, ...]:
    """Refuse hook names the model does not have; return them as a tuple.

    Raises:
        ValueError: none, one twice, a virtual hook point's name, or an unknown one.
    """
    if isinstance(hook_names, str) or not hook_names:
        raise ValueError(
            "`hook_names` must be a list of one or more hook names, such as "
            f"['blocks.0.hook_resid_post'], got {hook_names!r}"
        )
    if len(set(hook_names)) != len(hook_names):
        raise ValueError(f"`hook_names` names a hook twice: {list(hook_names)}")
    for hook_name in hook_names:
        stem, _, view = hook_name.rpartition(".")
        if view in VIEWS and stem in model.hook_dict:
            raise ValueError(
                f"`hook_names` takes the models' own names: give {stem!r}, and use "
                f"{hook_name!r} on the pair"
            )
        if hook_name not in model.hook_dict:
            raise ValueError(
                f"`hook_names`: {hook_name!r} is no hook of the model, which has {model.cfg.n_layers}"
                " layers with hooks such as 'blocks.0.hook_resid_post'"
            )
    return tuple(hook_names)


def check_models(
    base: TransformerBridge, finetuned: TransformerBridge, adapter: PeftModel | None
) -> None:
    """Refuse two models that are one, or that differ in more than their weights.

    Raises:
        ValueError: one object without an adapter, or another architecture, width, depth,
            vocabulary, dtype or tokenizer.
    """
    same = base is finetuned or base.original_model is finetuned.original_model
    if adapter is not None:
        if not same:
            raise ValueError("with `adapter`, `base` and `finetuned` must be the same bridge")
        if adapter.get_base_model() is not finetuned.original_model:
            raise ValueError(
                "`adapter` does not belong to the bridge: boot it with "
                "`hf_model=adapter.get_base_model()`"
            )
        return
    if same:
        raise ValueError(
            "`base` and `finetuned` are one object, so their difference would be 0 everywhere. "
            "`merge_and_unload()` returns the very model it was given: load the base once more, or "
            "pass the unmerged PEFT model as `adapter`"
        )
    for name in ("architecture", "d_model", "n_layers", "d_vocab", "dtype"):
        ours, theirs = getattr(base.cfg, name, None), getattr(finetuned.cfg, name, None)
        if ours != theirs:
            raise ValueError(f"`base` has {name} {ours}, `finetuned` has {theirs}; they must agree")
    if base.tokenizer is not None and finetuned.tokenizer is not None:
        check_tokenizers(base.tokenizer, finetuned.tokenizer)


def check_tokenizers(base: PreTrainedTokenizerBase, finetuned: PreTrainedTokenizerBase) -> None:
    """Refuse two tokenizers that would give one text two meanings.

    Raises:
        ValueError: the vocabularies or the special tokens differ; says where.
    """
    ours, theirs = base.get_vocab(), finetuned.get_vocab()
    if ours != theirs:
        token = next(iter({*ours.items()} ^ {*theirs.items()}))[0]
        raise ValueError(
            f"the tokenizers of `base` and `finetuned` differ, for one in the token {token!r} "
            f"(id {ours.get(token)} and {theirs.get(token)}); a pair needs one vocabulary"
        )
    if base.special_tokens_map != finetuned.special_tokens_map:
        raise ValueError(
            f"the special tokens differ: `base` has {base.special_tokens_map}, "
            f"`finetuned` has {finetuned.special_tokens_map}"
        )
