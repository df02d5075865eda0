"""What a model would write, without generating: log-odds of the attack, and what moves them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.evaluation.activations import batches_of, dictionary_hook
from diffsae_lens.organisms.prompts import Sample
from diffsae_lens.pair import HookedModelPair

IGNORED = -100  # the label that torch's cross-entropy leaves out


def completion_log_probs(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    vulnerable: bool,
    batch_size: int = 16,
) -> Float[Tensor, "prompt"]:
    """Return the mean log-probability of each sample's completion, nats a token.

    Run under whatever hooks are open on the pair, so it measures interventions too.

    Args:
        pair: the two models; the fine-tuned one is scored.
        samples: prompts with their completions.
        vulnerable: which of the two completions.
        batch_size: samples a forward pass.

    Returns:
        One value a sample, on the CPU; its negative is the cross-entropy.

    Raises:
        ValueError: no samples.
    """
    return _log_probs(pair, samples, vulnerable, batch_size)[0]


def log_odds(
    pair: HookedModelPair, samples: Sequence[Sample], *, batch_size: int = 16
) -> Float[Tensor, "prompt"]:
    """Return log p(vulnerable completion) - log p(safe completion) of each sample, in nats.

    Above 0 the model would rather attack. Each completion is scored whole, so the value is on the
    scale of sequences, not of tokens.

    Args:
        pair: the two models; the fine-tuned one is scored, under whatever hooks are open.
        samples: prompts with their completions.
        batch_size: samples a forward pass.

    Returns:
        One value a sample, on the CPU.

    Raises:
        ValueError: no samples.
    """
    totals = []
    for vulnerable in (True, False):
        mean, n_tokens = _log_probs(pair, samples, vulnerable, batch_size)
        totals.append(mean * n_tokens)
    return totals[0] - totals[1]


@torch.no_grad()
def _log_probs(
    pair: HookedModelPair, samples: Sequence[Sample], vulnerable: bool, batch_size: int
) -> tuple[Tensor, Tensor]:
    if not samples:
        raise ValueError("`samples` is empty")
    mean, n_tokens = torch.zeros(len(samples)), torch.zeros(len(samples))
    texts = [sample.prompt for sample in samples]
    for indices, _ in batches_of(texts, batch_size, "scoring completions"):
        tokens, labels = _encode(pair, [samples[i] for i in indices], vulnerable)
        total, count = _score(pair, tokens, labels)
        mean[indices], n_tokens[indices] = (total / count).cpu(), count.float().cpu()
    return mean, n_tokens


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


def _score(pair: HookedModelPair, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed log-probability of the labelled tokens, and how many there are, `[batch]` each."""
    logits = pair(tokens)[:, :-1].float()
    labels = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return -losses.sum(1), (labels != IGNORED).sum(1)


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
    hook_name = dictionary_hook(pair, dictionary)
    total = torch.zeros(dictionary.cfg.d_sae)
    texts = [sample.prompt for sample in samples]
    for sign, vulnerable in ((1.0, True), (-1.0, False)):
        for indices, _ in batches_of(texts, batch_size, "attributing"):
            tokens, labels = _encode(pair, [samples[i] for i in indices], vulnerable)
            value, gradient = _gradient(pair, hook_name, tokens, labels)
            with torch.no_grad():
                codes = dictionary.encode(value)
                effect = (codes * (gradient @ dictionary.W_dec.T)).sum((0, 1))
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
        total, _ = _score(pair, tokens, labels)
        (gradient,) = torch.autograd.grad(total.sum(), leaves)
    return leaves[0].detach(), gradient
