"""The base model's side of a pair's forward pass, and what hooks may ask about the pass under way."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformers import DynamicCache


class AllGrabbedError(Exception):
    """Ends the base's forward pass once the last activation asked for has been read."""


@dataclass
class BaseRun:
    """The base model's side of one forward pass, or of one generation."""

    hook_names: tuple[str, ...]
    activations: dict[str, Tensor] = field(default_factory=dict)
    cache: DynamicCache | None = None
    running: bool = False
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None
    n_before: int = 0
    """Tokens that the fine-tuned model's KV cache holds."""
    prompt_mask: Tensor | None = None
    """Which tokens are of the prompt, `[batch, pos]`, if whoever runs the pair has said so."""

    def grab(self, activation: Tensor, hook: HookPoint, *, hook_name: str) -> None:  # noqa: ARG002
        """Keep an activation of the base; a hook."""
        self.activations[hook_name] = activation
        if len(self.activations) == len(self.hook_names):
            raise AllGrabbedError

    @property
    def columns(self) -> Int[Tensor, "pos"] | None:
        """Where in the (padded) sequence the tokens of this pass stand."""
        if self.tokens is None:
            return None
        return self.n_before + torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def positions(self) -> Int[Tensor, "row pos"] | None:
        """How many tokens of its row stand before each token of this pass; -1 for padding."""
        columns, mask = self.columns, self.attention_mask
        if columns is None:
            return None
        if mask is None or mask.ndim != 2 or mask.shape[1] <= int(columns[-1]):
            return columns[None]
        attended = mask.to(columns.device) != 0
        counted = (attended.long().cumsum(1) - 1).masked_fill(~attended, -1)
        return counted[:, columns]


def fire(point: HookPoint, value: Tensor) -> Tensor | None:
    """Show `value` to the point's hooks; return what they wrote, or None if they only looked.

    Editing the value in place and returning it is how TransformerLens hooks are usually written,
    so a changed version counts as a write. A backward hook needs the value to be on the path of
    the gradient, so it counts as one too.
    """
    # Inference tensors keep no version, so there the value itself is compared.
    before = value.clone() if value.is_inference() else value._version
    written = point(value)
    if written.shape != value.shape:
        raise ValueError(
            f"a hook on {point.name} must write a value of shape {tuple(value.shape)}, "
            f"got {tuple(written.shape)}"
        )
    edited = value.ne(before).any() if isinstance(before, Tensor) else value._version != before
    return written if written is not value or edited or point.has_hooks("bwd") else None
