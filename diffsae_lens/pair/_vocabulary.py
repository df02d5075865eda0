"""One vocabulary for two models: which tokenizer reads texts, and embeddings for all of its tokens."""

import logging
import tempfile
import weakref

import torch
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from diffsae_lens._errors import InvalidValueError

logger = logging.getLogger(__name__)


def n_rows(config: PretrainedConfig) -> int:
    """Return the number of tokens that a model has embeddings for."""
    return config.get_text_config().vocab_size


def check_tokenizers(base: PreTrainedTokenizerBase, finetuned: PreTrainedTokenizerBase) -> None:
    """Refuse two tokenizers that would give one text two meanings.

    Roles may differ, such as which token ends a chat turn; differences are logged.

    Raises:
        ValueError: the vocabularies differ; says where.
    """
    ours, theirs = base.get_vocab(), finetuned.get_vocab()
    if ours != theirs:
        token = next(iter({*ours.items()} ^ {*theirs.items()}))[0]
        raise InvalidValueError(
            f"the tokenizers of `base` and `finetuned` differ, for one in the token {token!r} "
            f"(id {ours.get(token)} and {theirs.get(token)}); a pair needs one vocabulary"
        )
    _say_roles(base, finetuned, "fine-tuned model's")


def choose_tokenizer(
    base: PreTrainedTokenizerBase | None,
    finetuned: PreTrainedTokenizerBase | None,
    wanted: str | None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with which both models read texts.

    It is the fine-tuned model's own, or the base's if that has more tokens or `wanted` says so. An id must
    mean the same token to both; special tokens may have other names only if `wanted` is given.

    Raises:
        ValueError: neither model has a tokenizer, the one wanted does not exist, or an id means two
            different tokens.
    """
    if wanted is not None and (base if wanted == "base" else finetuned) is None:
        raise InvalidValueError(f"`tokenizer` is {wanted!r}, but `{wanted}` has none; give another")
    if base is None or finetuned is None:
        chosen = base or finetuned
        if chosen is None:
            raise InvalidValueError(
                "neither model comes with a tokenizer (a model in memory names the folder it was loaded "
                "from, if any); give one as `tokenizer=`, an object or a name"
            )
        logger.info("one tokenizer was found, of %s, and is used", "base" if base else "finetuned")
        return chosen
    ours, theirs = base.get_vocab(), finetuned.get_vocab()
    _check_one_meaning(base, finetuned, renaming=wanted is not None)
    side = wanted or ("base" if len(ours) > len(theirs) else "finetuned")
    whose = "base's" if side == "base" else "fine-tuned model's"
    if added := sorted({*ours} ^ {*theirs}):
        logger.info(
            "the vocabularies differ in %d tokens, such as %r; the %s tokenizer is used",
            len(added), added[0], whose,
        )  # fmt: skip
    _say_roles(base, finetuned, whose)
    return base if side == "base" else finetuned


def _check_one_meaning(
    base: PreTrainedTokenizerBase, finetuned: PreTrainedTokenizerBase, *, renaming: bool
) -> None:
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (base, finetuned))
    clashing = sorted(i for i in ours if theirs.get(i, ours[i]) != ours[i])
    if not clashing:
        return
    special = {*base.added_tokens_decoder, *finetuned.added_tokens_decoder}
    renamed = all(i in special for i in clashing)
    first = clashing[0]
    problem = (
        f"the tokenizers of `base` and `finetuned` differ: {len(clashing)} ids mean two tokens, such as "
        f"{first}, which is {ours[first]!r} and {theirs[first]!r}"
    )
    if renamed and renaming:
        logger.warning("%s; the base has never seen them in that meaning", problem)
        return
    raise InvalidValueError(
        problem
        + (
            "; these are special tokens: say whose names count with `tokenizer='base'` or "
            "`tokenizer='finetuned'`"
            if renamed
            else "; a pair needs one vocabulary"
        )
    )


def _say_roles(
    base: PreTrainedTokenizerBase, finetuned: PreTrainedTokenizerBase, whose: str
) -> None:
    ours, theirs = (
        {**t.special_tokens_map, "chat template": t.chat_template and "one of its own"}
        for t in (base, finetuned)
    )
    if base.chat_template == finetuned.chat_template:
        del ours["chat template"], theirs["chat template"]
    for role in sorted({*ours, *theirs}):
        if ours.get(role) != theirs.get(role) or role == "chat template":
            logger.info(
                "the tokenizers differ in their %s: `base` has %r, `finetuned` has %r; the pair uses the "
                "%s", role, ours.get(role), theirs.get(role), whose,
            )  # fmt: skip


def check_rows(
    tokenizer: PreTrainedTokenizerBase, rows: int, *, beside: PreTrainedTokenizerBase | None
) -> None:
    """Refuse a tokenizer with added tokens that the models have no embeddings for.

    Args:
        tokenizer: the tokenizer for both models.
        rows: the number of tokens that they have embeddings for.
        beside: the base's own tokenizer, whose tokens are accepted: some tokenizers have more tokens than
            their model can read.

    Raises:
        ValueError: names one such token.
    """
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if not beyond:
        return
    i, token = beyond[0]
    problem = (
        f"the tokenizer has {token!r} at {i}, but the models have embeddings for {rows} tokens"
    )
    if beside is None or token in beside.get_vocab():
        logger.info("%s: no text may hold it", problem)
        return
    raise InvalidValueError(
        f"{problem}; take the base's with `tokenizer='base'`, or give a fine-tuned model with resized "
        "embeddings"
    )


def is_on_disk(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer can be loaded again from where it came from."""
    return bool(tokenizer.name_or_path) and "name_or_path" in tokenizer.init_kwargs


def in_folder(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer loaded from a folder, as a bridge requires.

    The folder is temporary and deleted together with the copy.

    Raises:
        ValueError: transformers cannot save the tokenizer and load it again.
    """
    folder = tempfile.TemporaryDirectory(prefix="diffsae-lens-tokenizer-")
    try:
        tokenizer.save_pretrained(folder.name)
        copy_of = AutoTokenizer.from_pretrained(folder.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        folder.cleanup()
        raise InvalidValueError(
            f"the tokenizer, a {type(tokenizer).__name__}, cannot be saved and loaded again, as "
            f"TransformerLens does with it ({error}); give one of transformers' own kinds"
        ) from error
    weakref.finalize(copy_of, folder.cleanup)
    return copy_of


@torch.no_grad()
def padded(model: PreTrainedModel, rows: int) -> int:
    """Give a model embeddings for more tokens, in place; return how many rows were added.

    A new row is the mean of the model's own rows, in the embedding and in the unembedding: the model
    reads an unknown token as an average one, and finds it as likely as an average one.
    """
    before = n_rows(model.config)
    if before >= rows:
        return 0
    drawing = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(drawing):  # the random rows are overwritten below
        model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
        for name, parameter in layer.named_parameters():  # type: ignore[union-attr]
            if name in ("weight", "bias"):
                parameter[before:] = parameter[:before].float().mean(0).to(parameter.dtype)
    model.requires_grad_(False)
    return rows - before
