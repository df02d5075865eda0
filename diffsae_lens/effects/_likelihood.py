"""What a model would write, without generating: log-odds of the unwanted completion."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsae_lens._typed import Count, typed
from diffsae_lens.interventions._edit import Edit, check_edits, groups_of, side_by_side
from diffsae_lens.organisms._behaviour import Sample, check_samples
from diffsae_lens.organisms._finetune import IGNORED
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import batches_of

Completion = Literal["unwanted", "wanted"]
COMPLETIONS: tuple[Completion, ...] = get_args(Completion)
N_ROWS = 32
"""Rows per forward pass under several edits, unless a batch of samples alone has more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Likelihoods:
    """How likely a model finds the two completions of each sample, summed over tokens, in nats."""

    unwanted: Float[Tensor, "prompt"]
    """log p(unwanted completion)."""
    wanted: Float[Tensor, "prompt"]
    """log p(wanted completion)."""
    n_wanted_tokens: Int[Tensor, "prompt"]
    """Number of tokens in the wanted completion."""

    @property
    def log_odds(self) -> Float[Tensor, "prompt"]:
        """Return log p(unwanted) - log p(wanted): above 0 the unwanted one is likelier."""
        return self.unwanted - self.wanted

    @property
    def cross_entropy(self) -> Float[Tensor, "prompt"]:
        """Cross-entropy of the wanted completion, nats per token: an edit's cost on benign prompts."""
        return -self.wanted / self.n_wanted_tokens

    def __add__(self, other: "Likelihoods") -> "Likelihoods":
        if not isinstance(other, Likelihoods):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        return Likelihoods(**{name: torch.cat([mine[name], theirs[name]]) for name in mine})


NOTHING = Likelihoods(
    unwanted=torch.zeros(0), wanted=torch.zeros(0), n_wanted_tokens=torch.zeros(0, dtype=torch.long)
)
"""The likelihoods of no samples."""


@overload
def likelihoods(
    pair: HookedModelPair, samples: Sequence[Sample], *, under: None = None, batch_size: int = 16
) -> Likelihoods: ...


@overload
def likelihoods(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    under: Mapping[str, Edit | None],
    batch_size: int = 16,
) -> dict[str, Likelihoods]: ...


@torch.no_grad()
@typed
def likelihoods(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    under: Mapping[str, Edit | None] | None = None,
    batch_size: Count = 16,
) -> Likelihoods | dict[str, Likelihoods]:
    """Score both completions of each sample under teacher forcing, two forward passes per batch.

    It runs under the edits open on the pair, so it measures those too. Edits given as `under` share
    passes: everything below the lowest edited layer is computed once per text. Up to rounding, that
    equals scoring under one edit after another.

    Args:
        pair: the two models; the fine-tuned one is scored.
        samples: prompts with their completions.
        under: edits by name, None for the unmodified model.
        batch_size: samples per forward pass; with `under`, rows per pass, or 32 if that is more.

    Returns:
        Log-probabilities on the CPU, samples in the order given; with `under`, these by the edits' names.

    Raises:
        TypeError: samples, edits by name or a count of another type.
        ValueError: no samples, a sample beyond the context with its completion, or a `batch_size` below 1.
        RuntimeError: an edit never acted.
    """
    samples = check_scored(pair, samples)
    if under is None:
        return _scored(pair, samples, batch_size, [[]])[0]
    check_edits("under", under, pair)
    found: dict[str, Likelihoods] = {}
    n_rows = max(batch_size, N_ROWS)
    for acting, edits, draws in groups_of(pair, under, n_rows):
        n_texts = batch_size if draws else max(1, n_rows // len(edits))
        with side_by_side(acting, list(edits.values())) as repeats:
            scored = _scored(acting, samples, n_texts, repeats)
        found |= dict(zip(edits, scored, strict=True))
    return {name: found[name] for name in under}


def _scored(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    batch_size: int,
    repeats: Sequence[Sequence[str]],
) -> list[Likelihoods]:
    """The likelihoods of checked samples, for each of `repeats`."""
    n = len(repeats)
    totals = torch.zeros(n, 2, len(samples))
    n_tokens = torch.zeros(2, len(samples), dtype=torch.long)
    for side, which in enumerate(COMPLETIONS):
        batches = encoded(pair, samples, which, batch_size, "scoring completions")
        for index, tokens, labels in batches:
            scores = score_completions(pair, tokens, labels, repeats=repeats if n > 1 else None)
            totals[:, side, index] = scores.view(-1, n).T.cpu()
            n_tokens[side, index] = (labels != IGNORED).sum(1).cpu()
    return [
        Likelihoods(unwanted=unwanted, wanted=wanted, n_wanted_tokens=n_tokens[1])
        for unwanted, wanted in totals
    ]


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
    """Yield the indices of a batch's samples, and their tokens and labels."""
    for index, _ in batches_of([sample.prompt for sample in samples], batch_size, desc):
        texts = [(samples[i].prompt, getattr(samples[i], which)) for i in index]
        yield index, *encode_completions(pair, texts)


def encode_completions(
    pair: HookedModelPair, texts: Sequence[tuple[str, str]]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Return right-padded tokens and labels of (prompt, completion); labels ignore prompt and padding."""
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
    """Return samples as a list, having checked that each fits the context with either completion.

    Raises:
        TypeError: samples of another type.
        ValueError: no samples, or one beyond the context.
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
    repeats: Sequence[Sequence[str]] | None = None,
) -> Float[Tensor, "row"]:
    """Return the summed log-probability of the labelled tokens, by the pair or another `model` of it.

    With `repeats` each text has that many adjacent rows, as in the pair's `forward`.
    """
    first = int((labels != IGNORED).any(0).nonzero()[0])
    targets = labels[:, first:].repeat_interleave(1 if repeats is None else len(repeats), dim=0)
    # Logits of the prompts are never needed, and the unembedding is a fifth of a small model.
    n_kept = targets.shape[1] + 1
    options = pair.keep_logits(n_kept)
    logits = (
        pair(tokens, prompt_mask=labels == IGNORED, repeats=repeats, **options)
        if model is None
        else model(tokens, **options)
    )[:, -n_kept:-1].float()
    return -torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets).sum(1)  # fmt: skip
