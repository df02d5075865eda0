"""One vector a prompt: activations and feature activations, pooled over named positions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits
from diffsae_lens.training.harvest import last_position, stop_layer

Pooling = Literal["mean", "max", "last"]

_POOL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda acts, mask: (acts * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "max": lambda acts, mask: acts.masked_fill(~mask[..., None], -torch.inf).amax(1),
}


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Which tokens of a prompt count, and how they become one vector."""

    pooling: Pooling = "last"
    """`last` reads after everything the prompt says; `mean` is the paper's; `max` the strongest."""
    spans: tuple[tuple[int, int], ...] | None = None
    """One `(start, end)` in characters for each prompt; only tokens that touch it count."""
    skip_positions: int = 1
    """Leading tokens left out: the first token's activations are 10 to 1000 times the others'."""

    def __post_init__(self) -> None:
        """Refuse unknown poolings and sizes that cannot be."""
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"`pooling` must be one of {get_args(Pooling)}, got {self.pooling!r}")
        if self.skip_positions < 0:
            raise ValueError(f"`skip_positions` must not be negative, got {self.skip_positions}")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One thing to read off each prompt."""

    hook_name: str
    """A virtual hook point, such as `blocks.18.hook_resid_post.diff`."""
    positions: Positions = Positions()
    """Which tokens count, and how they are pooled."""
    encode: Callable[[Tensor], Tensor] | None = None
    """Applied to the tokens that count, before pooling (a dictionary's `encode`), `[..., d_in]`; None
    reads the activation."""


@torch.no_grad()
def read_prompts(
    pair: HookedModelPair,
    prompts: Sequence[str],
    readers: Mapping[str, Reader],
    *,
    batch_size: int = 32,
) -> dict[str, Float[Tensor, "prompt width"]]:
    """Run the pair once over the prompts and pool whatever the readers read.

    Args:
        pair: the two models.
        prompts: texts; each is run on its own row, nothing is packed.
        readers: what to read, by name.
        batch_size: prompts a forward pass.

    Returns:
        One row a prompt for each reader, on the CPU, float32, prompts in the order given.

    Raises:
        ValueError: no prompts or readers, an unknown hook point, or a prompt with no token left to
            pool.
    """
    if not prompts or not readers:
        raise ValueError(f"nothing to read: {len(prompts)} `prompts` and {len(readers)} `readers`")
    for reader in readers.values():
        pair.check_hook_name(reader.hook_name)
        if reader.positions.spans is not None and len(reader.positions.spans) != len(prompts):
            raise ValueError(
                "`spans` must have one span a prompt, got "
                f"{len(reader.positions.spans)} for {len(prompts)}"
            )
    hook_names = sorted({reader.hook_name for reader in readers.values()})
    out: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(prompts) for name in readers}
    for indices, texts in batches_of(prompts, batch_size, "reading activations"):
        tokens, attended, offsets = tokenise(pair, texts)
        _, cache = pair.run_with_cache(
            tokens.to(pair.device), names_filter=hook_names, stop_at_layer=stop_layer(hook_names)
        )
        for name, reader in readers.items():
            mask = _mask(reader.positions, texts, indices, attended, offsets)
            pooled = _pooled(reader, cache[reader.hook_name], mask.to(pair.device)).float().cpu()
            for i, row in zip(indices, pooled, strict=True):
                out[name][i] = row
    return {name: torch.stack(rows) for name, rows in out.items()}


def feature_activations(
    pair: HookedModelPair,
    dictionary: SAE,
    prompts: Sequence[str],
    *,
    positions: Positions | None = None,
) -> Float[Tensor, "prompt d_sae"]:
    """Return each feature's activation on each prompt: tokens are encoded, then pooled.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points, which its metadata names.
        prompts: texts.
        positions: which tokens count; the last one by default.

    Returns:
        Feature activations on the CPU, prompts in the order given.

    Raises:
        ValueError: no prompts, the dictionary belongs to another hook, or no token left to pool.
    """
    reader = Reader(
        hook_name=check_fits(pair, dictionary),
        positions=positions or Positions(),
        encode=dictionary.encode,
    )
    return read_prompts(pair, prompts, {"features": reader})["features"]


def batches_of(
    prompts: Sequence[str], batch_size: int, desc: str
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield `(indices, prompts)` batches of similar lengths, the longest first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with tqdm(total=len(prompts), desc=desc, unit="prompt", leave=False) as bar:
        for i in range(0, len(order), batch_size):
            indices = order[i : i + batch_size]
            yield indices, [prompts[j] for j in indices]
            bar.update(len(indices))


def tokenise(
    pair: HookedModelPair, texts: list[str]
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Int[Tensor, "batch pos 2"]]:
    """Return right-padded tokens, which are no padding, and the characters each stands for."""
    bos = f"{pair.tokenizer.bos_token}" if pair.prepend_bos else ""
    encoded = pair.tokenizer(
        [bos + text for text in texts], padding=True, padding_side="right", add_special_tokens=False,
        return_tensors="pt", return_offsets_mapping=True,
    )  # fmt: skip
    return (
        encoded["input_ids"],
        encoded["attention_mask"].bool(),
        encoded["offset_mapping"] - len(bos),
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


def _mask(
    positions: Positions,
    texts: list[str],
    indices: list[int],
    attended: Bool[Tensor, "batch pos"],
    offsets: Int[Tensor, "batch pos 2"],
) -> Bool[Tensor, "batch pos"]:
    """The tokens that count."""
    mask = attended.clone()
    mask[:, : positions.skip_positions] = False
    if positions.spans is not None:
        bounds = torch.tensor([positions.spans[i] for i in indices])
        starts, ends = offsets.unbind(-1)
        mask &= (starts < bounds[:, 1:]) & (ends > bounds[:, :1])
    if not mask.any(1).all():
        empty = texts[int((~mask.any(1)).nonzero()[0])]
        raise ValueError(
            f"no token is left to pool of the prompt {empty[:80]!r}: it is shorter than "
            f"`skip_positions` {positions.skip_positions}, or its span holds no token"
        )
    return mask
