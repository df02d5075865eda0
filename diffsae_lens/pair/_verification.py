"""Verification of a pair: its logits must match those of plain transformers and PEFT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._hooked import HookedModelPair

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest allowed logit error, in standard deviations of the logits, by precision of the weights. Correct
models have 1e-6 to 1e-4 in float32; faults seen were 0.1 or more."""

QUANTISED = 2e-1
"""Minimum tolerance for quantised weights: 8-bit kernels round activations too, and amplify the last bit."""


class MismatchError(InvalidValueError):
    """A pair does not compute the same as its two models."""


def probe(d_vocab: int) -> Int[Tensor, "2 11"]:
    """Return a few fixed tokens from a vocabulary."""
    return torch.randint(d_vocab, (2, 11), generator=torch.Generator().manual_seed(2024))


@torch.no_grad()
def plain_logits(model: Callable[..., Any], d_vocab: int, device: torch.device) -> Tensor:
    """Return a transformers or PEFT model's logits on the probe, `[2, 11, d_vocab]`, on the CPU."""
    return model(probe(d_vocab).to(device)).logits.float().cpu()


@torch.no_grad()
def check_same(side: str, bridge: TransformerBridge, plain: Any, d_vocab: int) -> None:
    """Refuse a bridge that does not compute the same as the model extracted from it.

    Raises:
        MismatchError: names the side.
    """
    modes = {part: part.training for part in (*bridge.modules(), *bridge.original_model.modules())}
    bridge.train(False)
    try:
        found = bridge(probe(d_vocab).to(plain.device)).float().cpu()
    finally:
        for part, training in modes.items():
            part.training = training
    wanted = plain_logits(plain, d_vocab, plain.device)
    if not (found - wanted).abs().max() <= TOLERANCE.get(plain.dtype, 1e-3) * wanted.std():
        raise MismatchError(
            f"`{side}` is a bridge that computes other logits than the model inside it: there are hooks on "
            "it (`reset_hooks()`), or its weights were changed; boot it anew, or give the model"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The logits of the plain base and the plain fine-tuned model, computed before bridges wrapped them."""

    base: Float[Tensor, "2 11 d_vocab"]
    finetuned: Float[Tensor, "2 11 d_vocab"]
    n_known: int
    """Number of tokens that the probe is drawn from: those that both models came with."""
    quantised: bool = False

    def __post_init__(self) -> None:
        """Refuse models with logits that are not finite."""
        for side in ("base", "finetuned"):
            if not getattr(self, side).isfinite().all():
                raise InvalidValueError(
                    f"`{side}` computes logits that are NaN or infinite: its weights are damaged, or its "
                    "precision is too low (try `dtype='float32'`)"
                )

    @torch.no_grad()
    def check(self, pair: HookedModelPair) -> None:
        """Compare a pair with the plain models.

        Raises:
            MismatchError: names the side and the size of the error.
        """
        tokens = probe(self.n_known).to(pair.device)
        with pair.base_model() as model:
            of_base = model(tokens)
        dtype = next(pair.parameters()).dtype
        tolerance = max(TOLERANCE.get(dtype, 1e-3), QUANTISED * self.quantised)
        for side, found in (("base", of_base), ("finetuned", pair(tokens))):
            wanted = getattr(self, side)
            error = (found.float().cpu() - wanted).abs().max().item()
            spread = wanted.std().item()
            if not error <= tolerance * spread:
                raise MismatchError(
                    f"`{side}` is not computed rightly: logits of the pair and of plain transformers differ "
                    f"by up to {error:.2g}, {error / spread:.1%} of their standard deviation {spread:.2g}; "
                    "the bridge of TransformerLens does not reproduce this model, so nothing read from the "
                    "pair could be trusted"
                )
