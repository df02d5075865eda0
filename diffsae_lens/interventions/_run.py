"""Complete prompts under no edit, one edit or many; many edits share batches, each on its own rows.

With a small model, a generation step costs nearly the same for one row as for a hundred, so one batch with
a row per edit and prompt takes a fraction of the time of one batch per edit. What its rows have in common,
the prompt below the lowest edited layer, is computed once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from diffsae_lens._checks import check_count, check_keys
from diffsae_lens._typed import typed
from diffsae_lens.interventions._edit import Edit, check_edits, groups_of, side_by_side
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import batches_of

MAX_NEW_TOKENS = 48
"""Default length of a completion."""
BATCH_SIZE, N_ROWS = 32, 160
"""Default rows per batch, for completions under one edit and under several."""

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
    """Complete prompts with the fine-tuned model, under any open edits and each edit of `under`.

    Edits of one pair share batches. The result equals completing under one edit after the other, up to
    the rounding of other batch sizes. Generation with random numbers (`do_sample=True`, resample ablation)
    runs one edit after the other.

    Args:
        pair: the two models.
        prompts: texts or conversations, completed greedily unless `do_sample=True` is passed; if a
            conversation's last message is the assistant's, it is continued.
        under: edits by name, None for the unmodified model. An edit runs the pair that it was made on; an
            edit from `induce_features` runs the base.
        max_new_tokens: maximum length of a completion, which ends earlier at the end-of-sequence token.
        batch_size: rows per batch: prompts, or prompts times edits; by default 32, or 160 with `under`.
        **generate_kwargs: passed to `HookedModelPair.generate`; see `GENERATION_KEYWORDS`.

    Returns:
        The completions without their prompts, in the order of the prompts; with `under`, a mapping from
        edit names to such lists.

    Raises:
        TypeError: `prompts` is not a list of texts, `under` does not map names to edits, an unknown
            keyword, or a count that is not an integer.
        ValueError: no prompts, a prompt that does not fit the context with its completion, an edit of
            another pair, or a count below 1.
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
    written: dict[str, list[str]] = {}
    n_rows, is_sampled = batch_size or N_ROWS, bool(generate_kwargs.get("do_sample"))
    for acting, edits, draws in groups_of(pair, under, n_rows, draws=is_sampled):
        n_texts = batch_size or BATCH_SIZE if draws else max(1, n_rows // len(edits))
        with side_by_side(acting, list(edits.values())) as repeats:
            options = generating if draws else {**generating, "repeats": repeats}
            rows = _completed(acting, prompts, n_texts, options)
        written |= {name: rows[at :: len(edits)] for at, name in enumerate(edits)}
    return {name: written[name] for name in under}


def check_generation(
    pair: HookedModelPair, prompts: Sequence[Text], options: Mapping[str, Any]
) -> list[str]:
    """Check all arguments of `complete` before anything runs, and return the prompts as a list.

    Args:
        pair: the two models.
        prompts: texts or conversations.
        options: the keywords of `complete` other than `under`.

    Raises:
        TypeError, ValueError: as for `complete`.
    """
    known = (*GENERATION_KEYWORDS, *pair.keep_logits(1), "max_new_tokens", "batch_size")
    check_keys("complete", options, known)
    check_count("batch_size", options.get("batch_size", 1))
    n_new = check_count("max_new_tokens", options.get("max_new_tokens", MAX_NEW_TOKENS))
    return list(pair.tokenise(prompts, name="prompts", n_new_tokens=n_new).texts)


def _completed(
    pair: HookedModelPair, prompts: Sequence[str], batch_size: int, generating: Mapping[str, Any]
) -> list[str]:
    """Return the completions of checked prompts, with those of one prompt next to each other."""
    n = len(generating.get("repeats", [()]))
    completions = [""] * (n * len(prompts))
    for indices, texts in batches_of(prompts, batch_size, "generating"):
        tokens = pair.generate(texts, return_type="tokens", **generating)
        # All rows are padded to the longest prompt; cut it off before decoding.
        begun = [pair.with_bos(text) for text in texts]
        width = max(len(ids) for ids in pair.tokenizer(begun, add_special_tokens=False).input_ids)
        rows = [n * i + at for i in indices for at in range(n)]
        for row, ids in zip(rows, _ended(tokens[:, width:], generating), strict=True):
            completions[row] = str(pair.tokenizer.decode(ids, skip_special_tokens=True))
    return completions


def _ended(written: Tensor, generating: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield rows up to the requested end token, since the filler after it may not be a special token."""
    end = generating.get("eos_token_id") if generating.get("stop_at_eos", True) else None
    for ids in written:
        ends = [] if end is None else (ids == end).nonzero()[:, 0].tolist()
        yield ids[: ends[0] + 1] if ends else ids
