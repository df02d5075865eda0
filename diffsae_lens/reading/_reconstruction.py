"""How much of the models a dictionary captures: variance, loss and behaviour recovered."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from diffsae_lens._checks import check_count
from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_fits, check_weights_once
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.measures._validation import activation_batches
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._views import Side

DENSE_ABOVE = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(Record):
    """How much of held-out activations a dictionary explains, and how it uses its features."""

    variance_explained: dict[str, float]
    """1 - ||x - x_hat||^2 / ||x - mean||^2 per part: `diff`, or `base`, `finetuned` and the `diff` that a
    crosscoder implies. At most 1; below 0 it is worse than the mean; NaN if nothing varies."""
    l0: float
    """Mean number of active features per token."""
    frequency: Float[Tensor, "d_sae"]
    """Share of tokens each feature fires on."""
    n_tokens: int
    """Number of tokens measured."""

    @property
    def n_dead(self) -> int:
        """Number of features that never fired."""
        return int((self.frequency == 0).sum())

    @property
    def n_dense(self) -> int:
        """Number of features that fired on more than a tenth of the tokens."""
        return int((self.frequency > DENSE_ABOVE).sum())


@torch.no_grad()
@typed
def reconstruction(
    dictionary: SAE, batches: Float[Tensor, "_ d_in"] | Iterable[Float[Tensor, "_ d_in"]]
) -> Reconstruction:
    """Measure variance explained, L0 and dead features on held-out activations.

    A crosscoder is scored on each model and on the difference it implies: it may explain both models and
    none of the difference, which is only a few percent of them.

    Args:
        dictionary: trained on the hook point of the activations.
        batches: held-out activations, one tensor or several; read once, one batch at a time.

    Raises:
        TypeError: a batch that is not a tensor.
        ValueError: no tokens, or activations that have another width or are not finite.
    """
    check_weights_once(dictionary)
    record = DictionaryRecord.of(dictionary)
    errors: dict[str, _Moments] = {}
    inputs: dict[str, _Moments] = {}
    fired, n_tokens = torch.zeros(dictionary.cfg.d_sae), 0
    for batch in activation_batches(batches, dictionary.cfg.d_in):
        x = batch.to(dictionary.W_dec.device)
        codes = dictionary.encode(x)
        fired += (codes > 0).sum(0).cpu()
        n_tokens += len(x)
        for name, part, error in _parts(x, dictionary.decode(codes), record):
            inputs.setdefault(name, _Moments()).update(part)
            errors.setdefault(name, _Moments()).update(error)
    if n_tokens == 0:
        raise InvalidValueError("`batches` holds no tokens to measure on")
    explained = {n: 1 - _share(errors[n].second, inputs[n].centred) for n in inputs}
    return Reconstruction(
        variance_explained=explained,
        l0=(fired.sum() / n_tokens).item(),
        frequency=fired / n_tokens,
        n_tokens=n_tokens,
    )


def _parts(
    x: Tensor, rebuilt: Tensor, record: DictionaryRecord
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, value and error of each part of an input."""
    view = record.spec
    if view is None or not record.is_crosscoder:
        yield record.view or "input", x, x - rebuilt
        return
    for side in get_args(Side):
        part = view.writes(x, side)
        yield side, part, part - view.writes(rebuilt, side)
    diff = view.difference(x)
    yield "diff", diff, diff - view.difference(rebuilt)


class _Moments:
    """Sum of squares and mean of rows, in double precision."""

    def __init__(self) -> None:
        self.n, self.total, self.squares = 0, torch.zeros(()), 0.0

    def update(self, rows: Tensor) -> None:
        self.n += len(rows)
        self.total = self.total + rows.double().sum(0).cpu()
        self.squares += rows.double().square().sum().item()

    @property
    def second(self) -> float:
        return self.squares / self.n

    @property
    def centred(self) -> float:
        return self.second - (self.total / self.n).square().sum().item()


@dataclass(frozen=True, kw_only=True)
class Recovered(Record):
    """How much of the effect of fine-tuning remains when a dictionary's reconstruction replaces it."""

    cross_entropy: dict[str, float]
    """Nats per token: of the fine-tuned model (`finetuned`), with the base model's activation put back
    (`base put back`), and with the dictionary's reconstruction in its place (`dictionary`)."""
    kl: dict[str, float]
    """KL(finetuned || patched), nats per token, for the last two."""
    n_tokens: int
    """Number of predicted tokens measured."""

    @property
    def ce_recovered(self) -> float:
        """Share of the cross-entropy gap that the dictionary closes: 1 all, 0 none. It means nothing if
        putting the base's activation back costs next to nothing or helps (NaN at no cost).
        """
        ce = self.cross_entropy
        return _share(ce["base put back"] - ce["dictionary"], ce["base put back"] - ce["finetuned"])

    @property
    def kl_recovered(self) -> float:
        """1 - KL with the dictionary / KL with the base put back: 1 all, 0 none, below 0 worse."""
        gap = self.kl["base put back"]
        return _share(gap - self.kl["dictionary"], gap)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@torch.no_grad()
@typed
def recovered(
    pair: HookedModelPair,
    dictionary: SAE,
    tokens: Int[Tensor, "seq pos"],
    *,
    batch_size: int = 8,
) -> Recovered:
    """Patch a dictionary's reconstruction into the fine-tuned model and measure how much effect remains.

    The reference is the fine-tuned model with the *base model's* activation at the hook point, not zeros,
    since a difference dictionary should capture what fine-tuning added. A Diff-SAE's reconstruction is
    added to the base's activation; so is the difference a crosscoder implies. Tokens the dictionary was
    not trained on (`skip_positions` and `ignored_token_ids` in its metadata) keep the fine-tuned model's
    activation throughout.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE or crosscoder on one of the pair's hook points.
        tokens: right-padded sequences; padding is not predicted.
        batch_size: sequences per forward pass.

    Raises:
        TypeError: tokens or a `batch_size` that are not integers.
        ValueError: another pair's dictionary, tokens beyond the context or padded on the left, or
            nothing to predict.
    """
    batch_size = check_count("batch_size", batch_size)
    hook = check_fits(pair, dictionary)
    view = hook.spec
    if not view.compares:
        raise InvalidValueError(f"`dictionary` must read `.diff` or `.concat`, got {hook.view!r}")
    pair.check_tokens(tokens)
    if tokens.shape[1] < 2:
        raise InvalidValueError(
            f"`tokens` must have two positions or more, got {list(tokens.shape)}"
        )
    # Patch nothing where the dictionary was not trained (the first token's massive activation).
    policy = DictionaryRecord.of(dictionary).tokens

    def where_trained(value: Tensor, new: Tensor) -> Tensor:
        counted = policy.counted(pair.tokens, pair.positions)  # type: ignore[arg-type]
        return torch.where(counted[..., None].to(value.device), new, value)

    def rebuild(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        implied = view.difference(dictionary(value))
        return where_trained(value, view.with_difference(value, implied))

    def put_back(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return where_trained(value, torch.zeros_like(value))

    patches = {
        "base put back": [(hook.with_view("diff").name, put_back)],
        "dictionary": [(hook.name, rebuild)],
    }
    cross_entropy = dict.fromkeys(("finetuned", *patches), 0.0)
    kl = dict.fromkeys(patches, 0.0)
    pad = pair.tokenizer.pad_token_id
    n_tokens, padding = 0, torch.tensor(-1 if pad is None else pad)
    for chunk in tokens.split(batch_size):
        chunk = chunk.to(pair.device)
        kept = chunk[:, 1:].ne(padding.to(chunk))
        n_tokens += int(kept.sum())
        targets = chunk[:, 1:][kept]
        reference = _log_probabilities(pair, chunk, kept, [])
        cross_entropy["finetuned"] += nll_loss(reference, targets, reduction="sum").item()
        for name, fwd_hooks in patches.items():
            patched = _log_probabilities(pair, chunk, kept, fwd_hooks)
            cross_entropy[name] += nll_loss(patched, targets, reduction="sum").item()
            kl[name] += kl_div(patched, reference, reduction="sum", log_target=True).item()
    if n_tokens == 0:
        raise InvalidValueError("`tokens` holds nothing but padding to predict")
    return Recovered(
        cross_entropy={name: total / n_tokens for name, total in cross_entropy.items()},
        kl={name: total / n_tokens for name, total in kl.items()},
        n_tokens=n_tokens,
    )


def _log_probabilities(
    pair: HookedModelPair, tokens: Tensor, kept: Tensor, fwd_hooks: list[Any]
) -> Tensor:
    with pair.hooks(fwd_hooks=fwd_hooks) if fwd_hooks else nullcontext():
        return pair(tokens)[:, :-1][kept].float().log_softmax(-1)
