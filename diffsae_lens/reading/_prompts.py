"""One vector per prompt: activations and feature activations, pooled over named positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_choice, check_count, check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, check_fields, typed
from diffsae_lens.dictionaries._fits import check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import TokenisedTexts
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy, last_position

Pooling = Literal["mean", "max", "last"]
OnLogits = Callable[[list[int], TokenisedTexts, tuple[Tensor, Tensor]], None]

_POOL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda acts, mask: (acts * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "max": lambda acts, mask: acts.masked_fill(~mask[..., None], -torch.inf).amax(1),
}


@dataclass(frozen=True, kw_only=True)
class Positions(Checked):
    """Which tokens of a prompt count, and how they are pooled into one vector."""

    pooling: Pooling = "last"
    """`last` reads the last token that counts, which has seen the whole prompt; `mean` is the paper's
    pooling; `max` takes the maximum over tokens."""
    spans: tuple[tuple[int, int], ...] | None = None
    """One `(start, end)` in characters per prompt; only tokens that overlap it count."""
    skip_positions: int = 1
    """Leading tokens left out: the first token's activations are 10 to 1000 times the others'."""
    content_only: bool = False
    """Whether to leave out special tokens and what a chat template writes after the last message: then
    `last` reads the last content token of a conversation, not the beginning of its answer."""

    def __post_init__(self) -> None:
        """Refuse unknown poolings, invalid counts and empty spans."""
        super().__post_init__()
        check_choice("pooling", self.pooling, get_args(Pooling))
        check_count("skip_positions", self.skip_positions, at_least=0)
        for i, (start, end) in enumerate(self.spans or ()):
            check_count(f"spans[{i}]", start, at_least=0)
            check_count(f"spans[{i}]", end, at_least=start + 1)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One quantity to read from each prompt."""

    hook_name: str
    """A virtual hook point, such as `blocks.18.hook_resid_post.diff`."""
    positions: Positions = Positions()
    """Which tokens count, and how they are pooled."""
    encode: Callable[[Tensor], Tensor] | None = None
    """Applied to the tokens that count, `[..., d_in]`, before pooling (a dictionary's `encode`); None
    reads the activation."""
    policy: TokenPolicy = EVERY_TOKEN
    """Further tokens that do not count: those a dictionary was not trained on, by its record."""

    def __post_init__(self) -> None:
        """Refuse fields of the wrong type."""
        check_fields(self)


@torch.no_grad()
@typed
def read_prompts(
    pair: HookedModelPair,
    prompts: Sequence[Text],
    readers: Mapping[str, Reader],
    *,
    batch_size: int = 32,
    on_logits: OnLogits | None = None,
) -> dict[str, Float[Tensor, "prompt width"]]:
    """Run the pair once over the prompts and pool what each reader reads.

    Args:
        pair: the two models.
        prompts: texts or conversations; each gets a row of its own, without packing.
        readers: what to read, by name.
        batch_size: prompts per forward pass.
        on_logits: called for each batch with the indices of its prompts, its texts, and the logits of the
            base and of the fine-tuned model at the last positions (`texts.n_last`). The models then run to
            the end, and otherwise no deeper than the readers need.

    Returns:
        One row per prompt for each reader, float32 on the CPU, prompts in the order given.

    Raises:
        TypeError: `prompts` is not a list of texts.
        ValueError: no prompts or readers, a prompt beyond the context, an unknown hook point, a
            `batch_size` below 1, or a prompt with no token left to pool.
    """
    texts = pair.tokenise(prompts, name="prompts")
    batch_size = check_count("batch_size", batch_size)
    _check_readers(pair, readers, len(texts))
    hook_names = sorted({reader.hook_name for reader in readers.values()})
    out: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(texts) for name in readers}
    for indices, batch in texts.batches(batch_size, "reading activations"):
        if on_logits is None:
            read = pair.activations(batch, hook_names)
        else:
            read, both = pair.activations_and_logits(batch, hook_names)
            on_logits(indices, batch, both)
        for name, reader in readers.items():
            mask = _mask(reader, batch, indices).to(pair.device)
            pooled = _pooled(reader, read[reader.hook_name], mask).float().cpu()
            for i, row in zip(indices, pooled, strict=True):
                out[name][i] = row
    return {name: torch.stack(rows) for name, rows in out.items()}


@typed
def feature_activations(
    pair: HookedModelPair,
    dictionary: SAE,
    prompts: Sequence[Text],
    *,
    positions: Positions | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "prompt d_sae"]:
    """Return each feature's activation on each prompt: tokens are encoded, then pooled.

    Tokens that the dictionary was not trained on (`skip_positions` and `ignored_token_ids` in its
    metadata) do not count, whatever `positions` says: `last` reads the token before them.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points, which its metadata names.
        prompts: texts or conversations.
        positions: which tokens count; the last one by default.
        batch_size: prompts per forward pass.

    Returns:
        Feature activations on the CPU, prompts in the order given.

    Raises:
        TypeError, ValueError: as for `read_prompts`, or a dictionary of another pair or hook point.
    """
    reader = Reader(
        hook_name=check_fits(pair, dictionary).name,
        positions=positions or Positions(),
        encode=dictionary.encode,
        policy=DictionaryRecord.of(dictionary).tokens,
    )
    return read_prompts(pair, prompts, {"features": reader}, batch_size=batch_size)["features"]


def _check_readers(pair: HookedModelPair, readers: Mapping[str, Reader], n_prompts: int) -> None:
    if not readers:
        raise InvalidValueError("`readers` is empty: there is nothing to read; name at least one")
    for reader in check_items("readers", readers.values(), Reader):
        pair.check_hook_name(reader.hook_name)
        spans = reader.positions.spans
        if spans is not None and len(spans) != n_prompts:
            raise InvalidValueError(
                f"`spans` must have one span per prompt, got {len(spans)} for {n_prompts}"
            )


def _pooled(
    reader: Reader, acts: Float[Tensor, "batch pos d_in"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch width"]:
    pooling = reader.positions.pooling
    if pooling == "last":  # the other tokens need not be encoded
        acts = acts[torch.arange(len(acts)), last_position(mask)]
    if reader.encode is not None:
        acts = reader.encode(acts)
    return acts if pooling == "last" else _POOL[pooling](acts, mask)


def _mask(reader: Reader, texts: TokenisedTexts, indices: list[int]) -> Bool[Tensor, "batch pos"]:
    """The tokens that count."""
    positions = reader.positions
    mask = reader.policy.counted(texts.tokens, texts.positions)
    mask[:, : positions.skip_positions] = False
    if positions.content_only:
        mask &= texts.of_content
    if positions.spans is not None:
        bounds = torch.tensor([positions.spans[i] for i in indices])
        starts, ends = texts.offsets.unbind(-1)
        mask &= (starts < bounds[:, 1:]) & (ends > bounds[:, :1])
    if not mask.any(1).all():
        empty = texts.texts[int((~mask.any(1)).nonzero()[0])]
        raise InvalidValueError(
            f"no token is left to pool of the prompt {empty[:80]!r}: it has no more than "
            f"`skip_positions` {max(positions.skip_positions, reader.policy.skip_positions)} tokens, "
            "special ones aside, or its span or its last message holds none; lengthen it or leave it out"
        )
    return mask
