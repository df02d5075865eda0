"""What models' activations and outputs say about texts and their completions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffsae_lens.auditing._written import Written, batches, divergence, forward, log_probs_in

_WRITERS = ("o_proj", "down_proj")
"""Modules whose changes are read; in other architectures, all whose output is as wide as the stream."""


def width(model: Any) -> int:
    """Return the width of the residual stream."""
    return model.config.get_text_config().hidden_size


def singular_vectors(
    base: nn.Module, finetuned: nn.Module, n: int
) -> dict[int, Float[Tensor, "vector d_model"]]:
    """Return, by layer, the leading left singular vectors of the changed weights that write to the stream."""
    d_model = width(base)
    before = dict(base.named_modules())
    writers = {
        name: module
        for name, module in finetuned.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == d_model
        and re.search(r"\.\d+\.", name)
    }
    known = [name for name in writers if name.endswith(_WRITERS)] or writers
    found: dict[int, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in known:
            change = (writers[name].weight - before[name].weight).float().cpu()  # type: ignore[operator]
            if change.any():
                q = min(2 * n + 4, *change.shape)
                left, size, _ = torch.svd_lowrank(change, q=q, niter=4)
                of_rank = left[:, :n][:, size[:n] > 1e-6 * size[0]]
                layer = int(re.search(r"\.(\d+)\.", name)[1])  # type: ignore[index]
                found.setdefault(layer, []).append(of_rank.T)
    return {layer: torch.cat(of_layer) for layer, of_layer in found.items()}


class Cosines:
    """Cosines between a model's activations after each layer and directions, per token."""

    def __init__(self, directions: dict[int, Tensor]) -> None:
        self.directions = directions
        self.values: list[Tensor] = []
        self.of_text: list[Tensor] = []

    def add(
        self,
        states: Sequence[Float[Tensor, "row pos d_model"]],
        read: Bool[Tensor, "row pos"],
        index: Int[Tensor, " row"],
    ) -> None:
        """Add the tokens of some texts; `index` holds the indices of the texts."""
        self.of_text.append(index[:, None].expand_as(read)[read])
        self.values.append(torch.cat([
            nn.functional.normalize(states[layer][read], dim=-1) @ of.T.to(states[layer])
            for layer, of in self.directions.items()
        ], 1).float().cpu())  # fmt: skip

    def largest(self, n_texts: int) -> Float[Tensor, " text"]:
        """Return the largest |z| of each text, over tokens and directions."""
        values = torch.cat(self.values)
        z = ((values - values.mean(0)) / values.std(0).clamp_min(1e-9)).abs().amax(1)
        return torch.zeros(n_texts).scatter_reduce(0, torch.cat(self.of_text), z, "amax")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """A model's activations and outputs on texts and their completions."""

    means: Float[Tensor, "text layer d_model"]
    """Mean activation after each layer, over the positions where the completion is written."""
    divergence: Float[Tensor, " text"]
    """KL(writer || model), summed over each completion, in nats."""
    log_ratio: Float[Tensor, " text"]
    """Largest log P(writer) - log P(model) over the written tokens, in nats."""


def read_states(model: Any, rows: Sequence[Written], cosines: Sequence[Cosines] = ()) -> Reading:
    """Run a model on texts and their completions."""
    n = len(rows)
    means = [torch.empty(0)] * n
    summed, ratio = torch.zeros(n), torch.full((n,), -torch.inf)
    for index in batches([len(r.prompt) + len(r.tokens) for r in rows], "activations"):
        batch = [rows[i] for i in index]
        output, places = forward(model, batch, output_hidden_states=True)
        states = output.hidden_states[1:]  # the first is the embedding
        for i, row, at in zip(index, range(len(index)), places.to(states[0].device), strict=True):
            means[i] = torch.stack([state[row, at].mean(0) for state in states]).float().cpu()
        log_probs = log_probs_in(output, places)
        of_token = torch.tensor([index[i] for i, row in enumerate(batch) for _ in row.tokens])
        summed.index_add_(0, of_token, divergence(log_probs, batch).cpu())
        tokens = torch.tensor([token for row in batch for token in row.tokens])
        own = log_probs.gather(1, tokens[:, None].to(log_probs.device))[:, 0].cpu()
        writer = torch.cat([row.log_probs[:, 0] for row in batch])  # greedy: the likeliest token
        ratio.scatter_reduce_(0, of_token, writer - own, "amax")
        read = torch.zeros_like(places)
        for i, row in enumerate(batch):
            read[i, 1 : len(row.prompt) + len(row.tokens)] = True
        for one in cosines:
            if one.directions:
                one.add(states, read, torch.tensor(index))
    return Reading(means=torch.stack(means), divergence=summed, log_ratio=ratio)
