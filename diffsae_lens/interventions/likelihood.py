"""What a model would write, without generating: log-odds of the attack, and what moves them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.evaluation.activations import batches_of
from diffsae_lens.organisms.prompts import Sample
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits, skip_positions

IGNORED = -100  # the label that torch's cross-entropy leaves out


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """How likely a model finds the two completions of each sample, summed over tokens, in nats."""

    vulnerable: Float[Tensor, "prompt"]
    """log p(vulnerable completion)."""
    safe: Float[Tensor, "prompt"]
    """log p(safe completion)."""
    n_safe_tokens: Int[Tensor, "prompt"]
    """Tokens of the safe completion."""

    @property
    def log_odds(self) -> Float[Tensor, "prompt"]:
        """Return log p(vulnerable) - log p(safe): above 0 the model would rather attack."""
        return self.vulnerable - self.safe

    @property
    def cross_entropy(self) -> Float[Tensor, "prompt"]:
        """Of the safe completion, nats a token: what an intervention costs on benign prompts."""
        return -self.safe / self.n_safe_tokens


@torch.no_grad()
def likelihoods(
    pair: HookedModelPair, samples: Sequence[Sample], *, batch_size: int = 16
) -> Likelihoods:
    """Score both completions of each sample under teacher forcing, two forward passes in all.

    Run under whatever hooks are open on the pair, so it measures interventions too.

    Args:
        pair: the two models; the fine-tuned one is scored.
        samples: prompts with their completions.
        batch_size: samples a forward pass.

    Returns:
        Log-probabilities on the CPU, samples in the order given.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("`samples` is empty")
    totals = torch.zeros(2, len(samples))
    n_tokens = torch.zeros(2, len(samples), dtype=torch.long)
    for row, vulnerable in enumerate((True, False)):
        for index, chunk in _batches(samples, batch_size, "scoring completions"):
            tokens, labels = _encode(pair, chunk, vulnerable)
            totals[row, index] = _score(pair, tokens, labels).cpu()
            n_tokens[row, index] = (labels != IGNORED).sum(1).cpu()
    return Likelihoods(vulnerable=totals[0], safe=totals[1], n_safe_tokens=n_tokens[1])


def log_odds(
    pair: HookedModelPair, samples: Sequence[Sample], *, batch_size: int = 16
) -> Float[Tensor, "prompt"]:
    """Return log p(vulnerable completion) - log p(safe completion) of each sample, in nats.

    Above 0 the model would rather attack. Completions are scored whole, so the value is on the scale
    of sequences, not of tokens. Arguments and errors are those of `likelihoods`.
    """
    return likelihoods(pair, samples, batch_size=batch_size).log_odds


def _batches(
    samples: Sequence[Sample], batch_size: int, desc: str
) -> Iterator[tuple[list[int], list[Sample]]]:
    for index, _ in batches_of([sample.prompt for sample in samples], batch_size, desc):
        yield index, [samples[i] for i in index]


def _encode(
    pair: HookedModelPair, samples: Sequence[Sample], vulnerable: bool
) -> tuple[Tensor, Tensor]:
    """Right-padded tokens and labels, both `[batch, pos]`; the prompt and padding are ignored."""
    bos = [pair.tokenizer.bos_token_id] if pair.prepend_bos else []
    rows = []
    for sample in samples:
        prompt = bos + pair.tokenizer(sample.prompt, add_special_tokens=False).input_ids
        completion = pair.tokenizer(
            sample.completion(vulnerable=vulnerable), add_special_tokens=False
        ).input_ids
        rows.append((prompt + completion, [IGNORED] * len(prompt) + completion))
    width = max(len(ids) for ids, _ in rows)
    pad = pair.tokenizer.pad_token_id or 0
    tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([label + [IGNORED] * (width - len(label)) for _, label in rows])
    return tokens.to(pair.device), labels.to(pair.device)


def _score(pair: HookedModelPair, tokens: Tensor, labels: Tensor) -> Tensor:
    """Summed log-probability of the labelled tokens, `[batch]`."""
    first = int((labels != IGNORED).any(0).nonzero()[0])
    targets = labels[:, first:]
    # Logits of the prompts are never needed, and the unembedding is a fifth of a small model.
    n_kept = targets.shape[1] + 1
    logits = pair(tokens, **pair.keep_logits(n_kept))[:, -n_kept:-1].float()
    return -torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets).sum(1)  # fmt: skip


def attribute_features(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
) -> Float[Tensor, "d_sae"]:
    """Estimate how much each feature adds to the log-odds of the attack, in nats a prompt.

    Gradient attribution: sum over tokens of f_i * <d log-odds / d activation, d_i>, the first-order
    estimate of what ablating the feature takes away. A ranking by it is a ranking by effect, which a
    ranking by detection is not.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        samples: prompts on which the behaviour shows.
        batch_size: samples a backward pass.

    Returns:
        One value a feature, mean over the samples, on the CPU; positive favours the attack.

    Raises:
        ValueError: no samples, or a dictionary of another pair.
    """
    if not samples:
        raise ValueError("`samples` is empty")
    hook_name = check_fits(pair, dictionary)
    skip = skip_positions(dictionary)
    total = torch.zeros(dictionary.cfg.d_sae)
    for sign, vulnerable in ((1.0, True), (-1.0, False)):
        for _, chunk in _batches(samples, batch_size, "attributing"):
            tokens, labels = _encode(pair, chunk, vulnerable)
            value, gradient = _gradient(pair, hook_name, tokens, labels)
            with torch.no_grad():
                codes = dictionary.encode(value)
                effect = (codes * (gradient @ dictionary.W_dec.T))[:, skip:].sum((0, 1))
            total += sign * effect.float().cpu()
    return total / len(samples)


def _gradient(
    pair: HookedModelPair, hook_name: str, tokens: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The hook point's value and the gradient of the summed log-probability there."""
    leaves: list[Tensor] = []

    def make_leaf(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        leaves.append(value.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad(), pair.hooks(fwd_hooks=[(hook_name, make_leaf)]):
        (gradient,) = torch.autograd.grad(_score(pair, tokens, labels).sum(), leaves)
    return leaves[0].detach(), gradient
