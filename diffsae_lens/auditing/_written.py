"""What a plain model writes, how certain it is of each token, and how far another model is from that."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList

from diffsae_lens._errors import InvalidValueError

N_KEPT = 128
"""Number of tokens kept per distribution; the rest of its mass counts as one more."""
_MOST_TOKENS = 8192
_MOST_READ = 32
_MOST_WRITTEN = 128
"""Texts per batch. A generation step is one token per text, so fewer texts leave the machine idle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What was written after one prompt, greedily."""

    prompt: tuple[int, ...]
    """Tokens of the prompt."""
    tokens: tuple[int, ...]
    """Tokens that were written, including an end-of-sequence token."""
    likely: Int[Tensor, "new kept"]
    """The likeliest tokens at the position of each."""
    log_probs: Float[Tensor, "new kept"]
    """Log-probabilities of `likely`, in nats."""


def encode(texts: Sequence[str], tokenizer: Any, *, prepend_bos: bool) -> list[tuple[int, ...]]:
    """Tokenise texts as a pair does: the only special token added is the one at the beginning."""
    bos = f"{tokenizer.bos_token}" if prepend_bos else ""
    begun = [text if text.startswith(bos) else bos + text for text in texts]
    return [tuple(ids) for ids in tokenizer(begun, add_special_tokens=False).input_ids]


def decode(written: Sequence[Written], tokenizer: Any) -> list[str]:
    """Return what was written, as text."""
    return [tokenizer.decode(w.tokens, skip_special_tokens=True) for w in written]


class _Likely:
    """A logits processor that changes nothing and records the likeliest tokens."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        values, indices = scores.float().log_softmax(-1).topk(min(N_KEPT, scores.shape[-1]))
        self.steps.append((values, indices))
        return scores


@torch.no_grad()
def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    n_new_tokens: int,
    *,
    desc: str = "writing",
) -> list[Written]:
    """Continue prompts with a model, greedily.

    Raises:
        ValueError: a prompt does not fit the model's context, or is empty.
    """
    check_fits(model, prompts, n_new_tokens)
    known: Any = model.generation_config.eos_token_id
    ends = {
        e
        for e in (*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id)
        if e is not None
    }
    pad: Any = min(ends, default=0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    found: dict[int, Written] = {}
    lengths = [len(prompt) + n_new_tokens for prompt in prompts]
    for batch in batches(lengths, desc, at_most=_MOST_WRITTEN):
        rows = [prompts[i] for i in batch]
        width = max(map(len, rows))
        tokens = torch.tensor([[pad] * (width - len(row)) + [*row] for row in rows])
        attended = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        likely = _Likely()
        out = model.generate(
            input_ids=tokens.to(model.device), attention_mask=attended.to(model.device),
            max_new_tokens=n_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0,
            temperature=None, top_p=None, top_k=None, pad_token_id=pad, eos_token_id=[*ends] or None,
            logits_processor=LogitsProcessorList([likely]),
        )[:, width:].tolist()  # fmt: skip
        log_probs = torch.stack([step[0] for step in likely.steps], 1).cpu()
        indices = torch.stack([step[1] for step in likely.steps], 1).cpu()
        for row, (i, new) in enumerate(zip(batch, out, strict=True)):
            n = next((j + 1 for j, token in enumerate(new) if token in ends), len(new))
            found[i] = Written(
                prompt=tuple(prompts[i]),
                tokens=tuple(new[:n]),
                likely=indices[row, :n].clone(),
                log_probs=log_probs[row, :n].clone(),
            )
    return [found[i] for i in range(len(prompts))]


def check_fits(model: Any, prompts: Sequence[tuple[int, ...]], n_new_tokens: int) -> None:
    """Refuse prompts that are empty, or too long for the new tokens."""
    n_ctx = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if n_ctx is not None and longest + n_new_tokens > n_ctx:
        raise InvalidValueError(
            f"a text of {longest} tokens and {n_new_tokens} new ones do not fit the model's context of "
            f"{n_ctx}; lower `n_prompt_tokens`"
        )
    if min(map(len, prompts)) == 0:
        raise InvalidValueError("`texts` has one of no tokens; leave it out")


def batches(lengths: Sequence[int], desc: str, *, at_most: int = _MOST_READ) -> Iterator[list[int]]:
    """Yield batches of texts of similar length, the longest first, as large as memory has room for."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    with tqdm(total=len(order), desc=desc, unit="text", leave=False) as bar:
        while order:
            n = max(1, min(at_most, _MOST_TOKENS // lengths[order[0]]))
            batch, order = order[:n], order[n:]
            yield batch
            bar.update(len(batch))


def log_probs_of(model: Any, rows: Sequence[Written]) -> tuple[Tensor, list[int]]:
    """Return a model's log-probabilities `[token, d_vocab]` at the written positions, and their rows.

    Gradients are kept where they are enabled.
    """
    output, places = forward(model, rows)
    return log_probs_in(output, places), [i for i, row in enumerate(rows) for _ in row.tokens]


def forward(
    model: Any, rows: Sequence[Written], **wanted: Any
) -> tuple[Any, Bool[Tensor, "row pos"]]:
    """Run a model on prompts and their completions, with logits from the first written position on.

    Args:
        model: a transformers or PEFT model.
        rows: prompts with their completions; at least one.
        **wanted: further outputs, such as `output_hidden_states=True`.

    Returns:
        The model's output, and the positions from which each written token is predicted.
    """
    read = [(*row.prompt, *row.tokens) for row in rows]
    width = max(map(len, read))
    tokens = torch.zeros(len(read), width, dtype=torch.long)
    attended = torch.zeros(len(read), width, dtype=torch.long)
    places = torch.zeros(len(read), width, dtype=torch.bool)
    for i, (row, ids) in enumerate(zip(rows, read, strict=True)):
        tokens[i, : len(ids)] = torch.tensor(ids)
        attended[i, : len(ids)] = 1
        places[i, len(row.prompt) - 1 : len(ids) - 1] = True
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        wanted["logits_to_keep"] = width - min(len(row.prompt) for row in rows) + 1
    output = model(
        input_ids=tokens.to(inner.device), attention_mask=attended.to(inner.device), **wanted
    )
    return output, places


def log_probs_in(output: Any, places: Bool[Tensor, "row pos"]) -> Float[Tensor, "token d_vocab"]:
    """Return the log-probabilities of a model's output at some positions."""
    logits = output.logits
    return logits[places[:, -logits.shape[1] :].to(logits.device)].float().log_softmax(-1)


def divergence(
    log_probs: Float[Tensor, "token d_vocab"], rows: Sequence[Written]
) -> Float[Tensor, " token"]:
    """Return KL(writer || model) per token, in nats; the writer's tokens that were not kept count as one.

    Merging tokens can only lower a divergence (the log-sum inequality), so this is a lower bound.
    """
    ours = torch.cat([row.log_probs for row in rows]).to(log_probs.device)
    theirs = log_probs.gather(1, torch.cat([row.likely for row in rows]).to(log_probs.device))
    of_kept = (ours.exp() * (ours - theirs)).sum(1)
    rest, other = ((1 - kept.exp().sum(1)).clamp_min(1e-7) for kept in (ours, theirs))
    return of_kept + rest * (rest.log() - other.log())


@torch.no_grad()
def residuals(
    model: Any, written: Sequence[Written], *, desc: str = "residuals"
) -> Float[Tensor, " text"]:
    """Return how far a model is from what was written: KL summed over each completion, in nats."""
    found = torch.zeros(len(written))
    for batch in batches([len(w.prompt) + len(w.tokens) for w in written], desc):
        rows = [written[i] for i in batch]
        log_probs, of_row = log_probs_of(model, rows)
        sums = torch.zeros(len(rows)).index_add(
            0, torch.tensor(of_row), divergence(log_probs, rows).cpu()
        )
        found[batch] = sums
    return found
