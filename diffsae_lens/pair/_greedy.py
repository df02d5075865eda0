"""Greedy generation in which rows leave the batch as they end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from diffsae_lens.pair._paired_pass import PairedPass


@dataclass(eq=False)
class Steps:
    """The steps of one generation: what is read, what comes next, and which rows continue."""

    model: TransformerBridge
    run: PairedPass
    mask: Int[Tensor, "row pos"]
    """Attention mask over all tokens so far."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords of the model's forward pass."""
    cache: DynamicCache = field(init=False)
    _kept: Int[Tensor, "kept"] | None = None

    def __post_init__(self) -> None:
        """Start with an empty cache."""
        self.cache = self.run.new_cache(self.model)

    def __call__(self, tokens: Int[Tensor, "row new"]) -> Float[Tensor, "row d_vocab"]:
        """Read tokens and return the logits after the last one."""
        if self.cache.get_seq_length() > 0:
            self.run.go_on(self.cache, tokens, self._kept)
            self._kept = None
            self.mask = torch.nn.functional.pad(self.mask, (0, tokens.shape[1]), value=1)
        logits = self.model(
            tokens, attention_mask=self.mask, past_key_values=self.cache, use_cache=True,
            prepend_bos=False, **self.options,
        )  # fmt: skip
        return logits[:, -1]

    def take(self, index: Int[Tensor, "kept"]) -> None:
        """Continue with some of the rows."""
        self.mask = self.mask[index]
        self._kept = index


def greedy(
    steps: Steps,
    tokens: Int[Tensor, "row pos"],
    *,
    n_new: int,
    stops: Sequence[int],
    filler: int,
) -> Int[Tensor, "row new"]:
    """Generate the likeliest token at every step until each row has generated one of `stops`.

    Returns:
        The generated tokens, with `filler` after each row's end.
    """
    ends = torch.tensor(stops, dtype=torch.long, device=tokens.device)
    written = tokens.new_full((len(tokens), n_new), filler)
    rows = torch.arange(len(tokens), device=tokens.device)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for step in range(n_new):
        chosen = steps(tokens).argmax(-1).masked_fill(done, filler)
        written[rows, step] = chosen
        done = done | torch.isin(chosen, ends)
        if done.all():
            return written[:, : step + 1]
        # Dropping rows copies the caches, as a step does: it pays off if it saves a step of all rows.
        if int(done.sum()) * (n_new - step - 1) >= len(done):
            left = (~done).nonzero()[:, 0]
            steps.take(left)
            rows, chosen, done = rows[left], chosen[left], done[left]
        tokens = chosen[:, None]
    return written
