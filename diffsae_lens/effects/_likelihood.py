"""What a model would write, without generating: log-odds of the unwanted completion."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsae_lens._typed import Count, typed
from diffsae_lens.organisms._behaviour import Sample, check_samples
from diffsae_lens.organisms._finetune import IGNORED
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import batches_of

Completion = Literal["unwanted", "wanted"]
COMPLETIONS: tuple[Completion, ...] = get_args(Completion)


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihoods:
    """How likely a model finds the two completions of each sample, summed over tokens, in nats."""

    unwanted: Float[Tensor, "prompt"]
    """log p(unwanted completion)."""
    wanted: Float[Tensor, "prompt"]
    """log p(wanted completion)."""
    n_wanted_tokens: Int[Tensor, "prompt"]
    """Tokens of the wanted completion."""

    @property
    def log_odds(self) -> Float[Tensor, "prompt"]:
        """Return log p(unwanted) - log p(wanted): above 0 the unwanted one is likelier."""
        return self.unwanted - self.wanted

    @property
    def cross_entropy(self) -> Float[Tensor, "prompt"]:
        """Of the wanted completion, nats per token: what an intervention costs on benign prompts."""
        return -self.wanted / self.n_wanted_tokens


@torch.no_grad()
@typed
def likelihoods(
    pair: HookedModelPair, samples: Sequence[Sample], *, batch_size: Count = 16
) -> Likelihoods:
    """Score both completions of each sample under teacher forcing, two forward passes per batch.

    Run under whatever edits are open on the pair, so it measures those too.

    Args:
        pair: the two models; the fine-tuned one is scored.
        samples: prompts with their completions.
        batch_size: samples per forward pass.

    Returns:
        Log-probabilities on the CPU, samples in the order given.

    Raises:
        TypeError: something else in place of samples, or of a count.
        ValueError: no samples, one beyond the context with its completion, or a `batch_size` below 1.
    """
    samples = check_scored(pair, samples)
    totals = torch.zeros(2, len(samples))
    n_tokens = torch.zeros(2, len(samples), dtype=torch.long)
    for row, which in enumerate(COMPLETIONS):
        batches = encoded(pair, samples, which, batch_size, "scoring completions")
        for index, tokens, labels in batches:
            totals[row, index] = score_completions(pair, tokens, labels).cpu()
            n_tokens[row, index] = (labels != IGNORED).sum(1).cpu()
    return Likelihoods(unwanted=totals[0], wanted=totals[1], n_wanted_tokens=n_tokens[1])


@typed
def log_odds(
    pair: HookedModelPair, samples: Sequence[Sample], *, batch_size: Count = 16
) -> Float[Tensor, "prompt"]:
    """Return log p(unwanted completion) - log p(wanted completion) of each sample, in nats.

    Above 0 the unwanted one is likelier. Completions are scored whole, so the value is on the scale
    of sequences, not of tokens. Arguments and errors are those of `likelihoods`.
    """
    return likelihoods(pair, samples, batch_size=batch_size).log_odds


def encoded(
    pair: HookedModelPair, samples: Sequence[Sample], which: Completion, batch_size: int, desc: str
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield the places of a batch's samples, and their tokens and labels."""
    for index, _ in batches_of([sample.prompt for sample in samples], batch_size, desc):
        texts = [(samples[i].prompt, getattr(samples[i], which)) for i in index]
        yield index, *encode_completions(pair, texts)


def encode_completions(
    pair: HookedModelPair, texts: Sequence[tuple[str, str]]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Right-padded tokens and labels of (prompt, completion); prompt and padding are ignored."""
    rows = []
    for prompt, completion in texts:
        read, written = _ids(pair, prompt, completion)
        rows.append((read + written, [IGNORED] * len(read) + written))
    width = max(len(ids) for ids, _ in rows)
    pad = pair.tokenizer.pad_token_id or 0
    tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([label + [IGNORED] * (width - len(label)) for _, label in rows])
    return tokens.to(pair.device), labels.to(pair.device)


def check_scored(pair: HookedModelPair, samples: Sequence[Sample]) -> list[Sample]:
    """Return samples as a list, each of which fits the context with either completion.

    Raises:
        TypeError: something else in place of samples.
        ValueError: none, or one beyond the context.
    """
    samples = check_samples("samples", samples)
    lengths = [
        max(
            sum(map(len, _ids(pair, sample.prompt, getattr(sample, which))))
            for which in COMPLETIONS
        )
        for sample in samples
    ]
    pair.check_lengths("samples", lengths)
    return samples


def _ids(pair: HookedModelPair, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, with its beginning-of-sequence token, and of its completion."""
    read, written = (
        pair.tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, completion)
    )
    begins = pair.with_bos(prompt) != prompt
    return [pair.tokenizer.bos_token_id] * begins + read, written


def score_completions(
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    labels: Int[Tensor, "batch pos"],
    *,
    model: Callable[..., Tensor] | None = None,
) -> Float[Tensor, "batch"]:
    """Summed log-probability of the labelled tokens, by the pair or by another `model` of it."""
    first = int((labels != IGNORED).any(0).nonzero()[0])
    targets = labels[:, first:]
    # Logits of the prompts are never needed, and the unembedding is a fifth of a small model.
    n_kept = targets.shape[1] + 1
    options = pair.keep_logits(n_kept)
    logits = (
        pair(tokens, prompt_mask=labels == IGNORED, **options)
        if model is None
        else model(tokens, **options)
    )[:, -n_kept:-1].float()
    return -torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets).sum(1)  # fmt: skip
