"""What a model would write, without generating: log-odds of the unwanted completion, and what moves them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from diffsae_lens._checks import check_count
from diffsae_lens._typed import Count, typed
from diffsae_lens.dictionaries._decoding import pull_back, writer
from diffsae_lens.dictionaries._fits import FeatureIndices, check_features, check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.interventions._chosen import feature_indices
from diffsae_lens.interventions._features import ablate_features
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
        batches = _encoded(pair, samples, which, batch_size, "scoring completions")
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


def _encoded(
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


@typed
def attribute_features(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    n_steps: Count = 1,
    ablated: FeatureIndices = (),
    batch_size: Count = 8,
) -> Float[Tensor, "d_sae"]:
    """Estimate how much each feature adds to the log-odds of the unwanted completion, in nats per prompt.

    Gradient attribution: sum over tokens of f_i * <d log-odds / d activation, d_i>, the first-order
    estimate of what ablating the feature takes away. A ranking by it is a ranking by effect, which a
    ranking by detection is not.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        samples: prompts on which the behaviour shows.
        n_steps: above 1, integrated gradients (Sundararajan et al., arXiv 1703.01365): the gradient
            is averaged over that many points between the activation and the activation with all
            features ablated, which is exact for all features together as the steps get many.
        ablated: features already taken out; the others are then attributed what they add without them.
        batch_size: samples per backward pass.

    Returns:
        One value per feature, mean over the samples, on the CPU; positive favours the unwanted
        completion. 0 for the features already taken out.

    Raises:
        TypeError: something else in place of samples, features or counts.
        ValueError: no samples, one beyond the context, no steps, features that do not exist or are
            repeated, or a dictionary of another pair.
    """
    hook_name = check_fits(pair, dictionary).name
    policy = DictionaryRecord.of(dictionary).tokens
    out = torch.tensor(check_features(dictionary, ablated, name="ablated"), dtype=torch.long)
    samples = check_scored(pair, samples)
    written = writer(dictionary, None)
    total = torch.zeros(dictionary.cfg.d_sae)
    # The fractions of all features that are taken out, at the middle of each step.
    fractions = [0.0] if n_steps == 1 else [(i + 0.5) / n_steps for i in range(n_steps)]

    def codes_of(value: Tensor, tokens: Tensor) -> Tensor:
        codes = dictionary.encode(value.detach())
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return codes.masked_fill(~policy.counted(tokens, positions)[..., None], 0)

    def without(value: Tensor, fraction: float, tokens: Tensor) -> Tensor:
        codes = codes_of(value, tokens)
        taken = fraction * codes
        taken[..., out] = codes[..., out]
        return value + written(value, codes, -taken)

    for sign, which in zip((1.0, -1.0), COMPLETIONS, strict=True):
        for _, tokens, labels in _encoded(pair, samples, which, batch_size, "attributing"):
            for fraction in fractions:
                move = partial(without, fraction=fraction, tokens=tokens)
                value, gradient = _gradient(pair, hook_name, tokens, labels, move)
                with torch.no_grad():
                    codes = codes_of(value, tokens)
                    slope = pull_back(dictionary, value, codes, gradient)
                    effect = (codes * slope).sum((0, 1))
                total += sign * effect.float().cpu() / n_steps
    total[out] = 0
    return total / len(samples)


@typed
def greedy_order(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    n_features: int,
    n_rounds: int = 8,
) -> list[int]:
    """Order features so that each round takes those with the most effect once the others are gone.

    Attribution with all features present misjudges those that stand in for each other. Each round
    attributes the log-odds again with what is taken already ablated, and takes the next
    `n_features / n_rounds`.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        samples: prompts on which the behaviour shows.
        n_features: how many features to order.
        n_rounds: attributions, at most `n_features`.

    Returns:
        The features, the first to be taken first; fewer if no others favour the unwanted completion.

    Raises:
        TypeError, ValueError: as for `attribute_features`, or sizes that cannot be.
    """
    check_fits(pair, dictionary)
    n_features = check_count("n_features", n_features, at_most=dictionary.cfg.d_sae)
    n_rounds = check_count("n_rounds", n_rounds, at_most=n_features)
    order: list[int] = []
    for i in range(n_rounds):
        attribution = attribute_features(pair, dictionary, samples, ablated=order)
        n_taken = n_features * (i + 1) // n_rounds - len(order)
        best = attribution.topk(n_taken)
        order += best.indices[best.values > 0].tolist()
    return order


@typed
def ablation_effects(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    samples: Sequence[Sample],
    *,
    batch_size: Count = 16,
) -> Float[Tensor, "n_features"]:
    """Measure what `attribute_features` estimates: each feature ablated alone, the log-odds it takes.

    Two forward passes of both models per feature and batch, so choose few samples.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: indices of the features.
        samples: prompts on which the behaviour shows.
        batch_size: samples per forward pass.

    Returns:
        One value per feature, mean over the samples, in nats per prompt; positive favours the unwanted
        completion.

    Raises:
        TypeError, ValueError: as for `ablate_features` and `likelihoods`.
    """
    view = check_fits(pair, dictionary).spec
    features = feature_indices(dictionary, features, view=view).tolist()
    before = likelihoods(pair, samples, batch_size=batch_size).log_odds.mean()
    effects = torch.zeros(len(features))
    for i, feature in enumerate(tqdm(features, desc="ablating", unit="feature", leave=False)):
        with ablate_features(pair, dictionary, [feature]):
            effects[i] = before - likelihoods(pair, samples, batch_size=batch_size).log_odds.mean()
    return effects


def _gradient(
    pair: HookedModelPair,
    hook_name: str,
    tokens: Tensor,
    labels: Tensor,
    move: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The hook point's value, and the gradient of the summed log-probability at the moved value."""
    values: list[Tensor] = []

    def make_leaf(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        values.append(value.detach())
        values.append(move(values[0]).detach().requires_grad_())
        return values[1]

    with torch.enable_grad(), pair.hooks(fwd_hooks=[(hook_name, make_leaf)]):
        score = score_completions(pair, tokens, labels).sum()
        (gradient,) = torch.autograd.grad(score, values[1])
    return values[0], gradient
