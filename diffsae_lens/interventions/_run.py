"""Complete prompts, under no edit, one or many: many share batches, each on rows of its own.

A step of generation costs a small model nearly the same for one row as for a hundred, so one batch with
a row for each edit and prompt takes a fraction of the time of one batch per edit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch

from diffsae_lens._checks import check_count, check_keys
from diffsae_lens._typed import typed
from diffsae_lens.interventions._edit import Edit, check_edits, edits_on, running
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import batches_of

MAX_NEW_TOKENS = 48
"""Of a completion, unless told otherwise."""
BATCH_SIZE, N_ROWS = 32, 160
"""Rows of a batch unless told otherwise: of completions under one edit, and under several."""

GENERATION_KEYWORDS = (
    "do_sample", "temperature", "top_k", "top_p", "freq_penalty", "repetition_penalty", "stop_at_eos",
    "eos_token_id", "stop_strings", "stopping_criteria", "forced_bos_token_id", "use_past_kv_cache",
    "verbose",
)  # fmt: skip
"""Keywords of `HookedModelPair.generate` that `complete` passes on."""


@overload
def complete(
    pair: HookedModelPair,
    prompts: Sequence[Text],
    *,
    under: None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int | None = None,
    **generate_kwargs: Any,
) -> list[str]: ...


@overload
def complete(
    pair: HookedModelPair,
    prompts: Sequence[Text],
    *,
    under: Mapping[str, Edit | None],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int | None = None,
    **generate_kwargs: Any,
) -> dict[str, list[str]]: ...


@torch.no_grad()
@typed
def complete(
    pair: HookedModelPair,
    prompts: Sequence[Text],
    *,
    under: Mapping[str, Edit | None] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int | None = None,
    **generate_kwargs: Any,
) -> list[str] | dict[str, list[str]]:
    """Complete prompts with the fine-tuned model, under whatever is open and under each edit.

    Edits of one pair share batches. That equals completing under one after the other, up to the
    rounding of other batch sizes. What draws random numbers (`do_sample=True`, resample ablation) is
    completed under one edit after the other.

    Args:
        pair: the two models.
        prompts: texts or conversations, completed greedily unless `do_sample=True` is passed on; a last
            message of the assistant's is written on.
        under: edits by name, None for the unmodified model. An edit runs the pair it was made on, and
            one of `induce_features` the base.
        max_new_tokens: of each completion, which ends earlier at the end-of-sequence token.
        batch_size: rows of a batch: prompts, or prompts times edits; by default 32, or 160 with `under`.
        **generate_kwargs: passed to `HookedModelPair.generate`; see `GENERATION_KEYWORDS`.

    Returns:
        The completions alone, in the order of the prompts; with `under`, these by the names of the edits.

    Raises:
        TypeError: `prompts` is not a list of texts, `under` does not map names to edits, a keyword that
            is not known, or a count that is not an integer.
        ValueError: no prompts, one that does not fit the context with its completion, an edit of another
            pair, or a count below 1.
        RuntimeError: an edit never acted.

    Examples:
        >>> edits = {"plain": None, "ablated": ablate_features(pair, sae, [17])}   # doctest: +SKIP
        >>> complete(pair, prompts, under=edits)["ablated"]                        # doctest: +SKIP
    """
    if under is not None:
        check_edits("under", under, pair)
    options = {"max_new_tokens": max_new_tokens, **generate_kwargs}
    if batch_size is not None:
        options["batch_size"] = batch_size
    prompts = check_generation(pair, prompts, options)
    generating = {**pair.keep_logits(1), "max_new_tokens": max_new_tokens, **generate_kwargs}
    if under is None:
        return _completed(pair, prompts, batch_size or BATCH_SIZE, generating)
    n_rows = batch_size or N_ROWS
    written: dict[str, list[str]] = {}
    sharing: dict[HookedModelPair, list[str]] = {}
    for name, edit in under.items():
        if generate_kwargs.get("do_sample") or (edit is not None and edit.draws):
            with running(pair, edit) as acting:
                written[name] = _completed(acting, prompts, batch_size or BATCH_SIZE, generating)
        else:
            sharing.setdefault(pair if edit is None else edit.pair, []).append(name)
    for acting, names in sharing.items():
        for start in range(0, len(names), n_rows):
            chunk = {name: under[name] for name in names[start : start + n_rows]}
            written |= _side_by_side(acting, chunk, prompts, n_rows, generating)
    return {name: written[name] for name in under}


def check_generation(
    pair: HookedModelPair, prompts: Sequence[Text], options: Mapping[str, Any]
) -> list[str]:
    """Return prompts as a list, having checked all that `complete` is given, before anything runs.

    Args:
        pair: the two models.
        prompts: texts.
        options: the keywords of `complete`, all but `under`.

    Raises:
        TypeError, ValueError: as for `complete`.
    """
    known = (*GENERATION_KEYWORDS, *pair.keep_logits(1), "max_new_tokens", "batch_size")
    check_keys("complete", options, known)
    check_count("batch_size", options.get("batch_size", 1))
    n_new = check_count("max_new_tokens", options.get("max_new_tokens", MAX_NEW_TOKENS))
    return list(pair.tokenise(prompts, name="prompts", n_new_tokens=n_new).texts)


def _side_by_side(
    pair: HookedModelPair,
    edits: Mapping[str, Edit | None],
    prompts: Sequence[str],
    n_rows: int,
    generating: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Complete under edits of one pair, at most as many as a batch has rows for."""
    n = len(edits)
    # A row for each edit, prompt by prompt: batches are whole multiples of that.
    tiled = [prompt for prompt in prompts for _ in range(n)]
    own_rows = [
        (edit, slice(at, None, n)) for at, edit in enumerate(edits.values()) if edit is not None
    ]
    with edits_on(own_rows):
        rows = _completed(pair, tiled, n * max(1, n_rows // n), generating)
    return {name: rows[at::n] for at, name in enumerate(edits)}


def _completed(
    pair: HookedModelPair, prompts: Sequence[str], batch_size: int, generating: Mapping[str, Any]
) -> list[str]:
    """The completions of prompts that were checked."""
    completions = [""] * len(prompts)
    for indices, texts in batches_of(prompts, batch_size, "generating"):
        tokens = pair.generate(texts, return_type="tokens", **generating)
        # Decoded without the prompt's tokens: all rows are padded to the longest prompt.
        begun = [pair.with_bos(text) for text in texts]
        width = max(len(ids) for ids in pair.tokenizer(begun, add_special_tokens=False).input_ids)
        for i, row in zip(indices, tokens[:, width:], strict=True):
            completions[i] = str(pair.tokenizer.decode(row, skip_special_tokens=True))
    return completions
