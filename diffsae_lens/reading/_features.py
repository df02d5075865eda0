"""One row per feature: how often it fires, on what, and which model it belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from diffsae_lens._checks import check_count
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._decoding import decoder_halves, decoder_rows
from diffsae_lens.dictionaries._fits import check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.measures._geometry import (
    call_by_decoder_norm,
    decoder_cosine,
    relative_decoder_norm,
)
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._tokens import positions_of
from diffsae_lens.reading._latent_scaling import latent_scaling
from diffsae_lens.reading._reconstruction import DENSE_ABOVE


@dataclass(frozen=True, kw_only=True)
class Example:
    """A token that a feature fires on, with the text around it."""

    activation: float
    """The feature's activation on the token."""
    before: str
    """Text up to the token."""
    token: str
    """The token it fires on."""
    after: str
    """Text after the token."""

    def __str__(self) -> str:
        return f"{self.activation:.2f} {self.before}[{self.token}]{self.after}"


@torch.no_grad()
@typed
def max_activating_examples(
    pair: HookedModelPair,
    dictionary: SAE,
    tokens: Int[Tensor, "seq pos"],
    *,
    n_examples: int = 5,
    context: int = 10,
    batch_size: int = 8,
) -> list[list[Example]]:
    """Find the sequences on which each feature fires most, with one position in each.

    Memory is bounded by `d_sae * n_examples` and one batch, whatever the number of sequences.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        tokens: right-padded sequences.
        n_examples: maximum number of examples per feature.
        context: tokens shown on either side.
        batch_size: sequences per forward pass.

    Returns:
        Examples of each feature, strongest first; none for a feature that never fired.

    Raises:
        TypeError: tokens or counts that are not integers.
        ValueError: another pair's dictionary, counts below 1, no tokens, or tokens beyond the context or
            padded on the left.
    """
    n_examples = check_count("n_examples", n_examples)
    batch_size = check_count("batch_size", batch_size)
    context = check_count("context", context, at_least=0)
    d_sae = dictionary.cfg.d_sae
    best = torch.zeros(d_sae, 0)
    where = torch.zeros(d_sae, 0, dtype=torch.long)
    for start, value, kept in _activations(pair, dictionary, tokens, batch_size):
        codes = dictionary.encode(value) * kept[..., None]
        strongest, position = codes.max(1)  # [seq, d_sae]
        index = (start + torch.arange(len(codes)))[:, None] * tokens.shape[1] + position.cpu()
        best = torch.cat([best, strongest.T.float().cpu()], -1)
        where = torch.cat([where, index.T], -1)
        best, order = best.topk(min(n_examples, best.shape[1]), dim=-1)
        where = where.gather(-1, order)
    return [
        [
            _example(pair, tokens, int(i), value, context)
            for value, i in zip(values.tolist(), places, strict=True)
            if value > 0
        ]
        for values, places in zip(best, where, strict=True)
    ]


def _example(
    pair: HookedModelPair, tokens: Tensor, index: int, activation: float, context: int
) -> Example:
    row, pos = tokens[index // tokens.shape[1]], index % tokens.shape[1]
    parts = row[max(0, pos - context) : pos], row[pos : pos + 1], row[pos + 1 : pos + 1 + context]
    before, token, after = (str(pair.tokenizer.decode(p, skip_special_tokens=True)) for p in parts)
    return Example(activation=activation, before=before, token=token, after=after)


@torch.no_grad()
@typed
def describe_features(
    pair: HookedModelPair,
    dictionary: SAE,
    tokens: Int[Tensor, "seq pos"],
    *,
    n_examples: int = 3,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Describe every feature of a dictionary on held-out sequences, one row per feature.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        tokens: right-padded sequences that it was not trained on.
        n_examples: strongest examples per feature, as text; 0 for none.
        batch_size: sequences per forward pass.

    Returns:
        Indexed by feature: `frequency` (share of tokens it fires on), `mean_activation` (over those
        tokens), `max_activation`, `is_dead`, `is_dense`, `decoder_norm`, `examples`; for a crosscoder
        also `relative_decoder_norm`, `decoder_cosine`, `called` (by its norm), `nu_error`,
        `nu_reconstruction`, `nu_error_base`, `nu_reconstruction_base` (the last two for the base
        model's direction).

    Raises:
        TypeError: tokens or counts that are not integers.
        ValueError: another pair's dictionary, counts out of range, no tokens, tokens beyond the context or
            padded on the left, or only special and leading tokens.
    """
    n_examples = check_count("n_examples", n_examples, at_least=0)
    batch_size = check_count("batch_size", batch_size)
    d_sae = dictionary.cfg.d_sae
    n_fired, total, strongest = torch.zeros(3, d_sae)
    n_tokens = 0
    for _, value, kept in _activations(pair, dictionary, tokens, batch_size):
        if not kept.any():
            continue
        codes = dictionary.encode(value[kept]).float().cpu()
        n_tokens += len(codes)
        n_fired += (codes > 0).sum(0)
        total += codes.sum(0)
        strongest = torch.maximum(strongest, codes.amax(0))
    if n_tokens == 0:
        raise InvalidValueError(
            "`tokens` holds nothing but special and leading tokens; give sequences of text"
        )
    frequency = n_fired / n_tokens
    columns: dict[str, object] = {
        "frequency": frequency,
        "mean_activation": total / n_fired,
        "max_activation": strongest,
        "is_dead": n_fired == 0,
        "is_dense": frequency > DENSE_ABOVE,
        "decoder_norm": decoder_rows(dictionary).norm(dim=-1).cpu(),
    }
    if DictionaryRecord.of(dictionary).is_crosscoder:
        halves = decoder_halves(dictionary)
        relative = relative_decoder_norm(*halves).cpu()
        columns |= {
            "relative_decoder_norm": relative,
            "decoder_cosine": decoder_cosine(*halves).cpu(),
            "called": call_by_decoder_norm(relative),
        }
        for suffix, of_finetuned in (("", True), ("_base", False)):
            batches = (v[k] for _, v, k in _activations(pair, dictionary, tokens, batch_size))
            scaling = latent_scaling(dictionary, batches, of_finetuned=of_finetuned)
            columns |= {
                f"nu_error{suffix}": scaling.nu_error,
                f"nu_reconstruction{suffix}": scaling.nu_reconstruction,
            }
    if n_examples:
        examples = max_activating_examples(
            pair, dictionary, tokens, n_examples=n_examples, batch_size=batch_size
        )
        columns["examples"] = [[str(example) for example in row] for row in examples]
    plain = {n: c.numpy() if isinstance(c, Tensor) else c for n, c in columns.items()}
    return pd.DataFrame(plain, index=pd.RangeIndex(d_sae, name="feature"))


def _activations(
    pair: HookedModelPair, dictionary: SAE, tokens: Tensor, batch_size: int
) -> Iterator[tuple[int, Float[Tensor, "seq pos d_in"], Bool[Tensor, "seq pos"]]]:
    """Yield `(first sequence, activations, which positions count)`.

    Special tokens, padding included, never count here, whatever the dictionary's record says.
    """
    hook = check_fits(pair, dictionary)
    pair.check_tokens(tokens)
    policy = DictionaryRecord.of(dictionary).tokens.and_ignoring(pair.tokenizer.all_special_ids)
    for start in tqdm(range(0, len(tokens), batch_size), desc="reading features", leave=False):
        chunk = tokens[start : start + batch_size]
        kept = policy.counted(chunk, positions_of(torch.ones_like(chunk, dtype=torch.bool)))
        yield start, pair.activations(chunk, hook)[hook.name], kept.to(pair.device)
