"""What a dictionary of another format computes, and how it folds into a SAELens dictionary."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._crosscoder import CrosscoderSAE, CrosscoderSAEConfig
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy


class Stated:
    """What the caller states about a file because the file does not say."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._used: set[str] = set()

    def take(self, name: str) -> Any:
        """Return the value given for a name, None if there is none."""
        self._used.add(name)
        return self._given[name]

    def order(self) -> str:
        """Return a sentence on which model comes first, for a format that holds two."""
        first = self.take("first") or "base"
        said = "as stated" if self.take("first") else "as is usual; the file does not say"
        return f"index 0 is the {first} model, {said}"

    def batch_threshold(self, where: str, k: int | None) -> float:
        """Return the threshold on the codes, for a file whose codes depend on the batch.

        Raises:
            ValueError: no threshold was given.
        """
        given = self.take("threshold")
        if given is None:
            raise InvalidValueError(
                f"{where}: the k largest codes of a whole batch are kept, so a token's codes depend on its "
                "neighbours and the file has no threshold; give `threshold`, or `threshold=0` and then "
                f"set it on texts of your own with `training.calibrate_threshold(..., k={k})`"
            )
        return float(given)

    def check_all_used(self, of: str) -> None:
        """Refuse a given value that no reader asked for.

        Raises:
            ValueError: there is one; names it.
        """
        for name, value in self._given.items():
            if value is not None and name not in self._used:
                raise InvalidValueError(
                    f"`{name}` must be left out for {of}, got {value!r}: nothing there depends on it"
                )


@dataclass(frozen=True, kw_only=True)
class Affine:
    """`(x - shift) * scale`, per model."""

    shift: Float[Tensor, "model d"]
    scale: Float[Tensor, "model d"]


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A dictionary on the activations of two models, or on one activation or difference.

    codes = a(u) where u_i > threshold_i, else 0, with u = sum_m into(x)_m W_enc_m + b_enc and a the ReLU
    (or the ReLU of the k largest); reconstruction_m = codes W_dec_m + b_dec_m, mapped back to raw
    activations by inverting `out`.
    """

    W_enc: Float[Tensor, "model d feature"]
    b_enc: Float[Tensor, "feature"]
    W_dec: Float[Tensor, "feature model d"]
    b_dec: Float[Tensor, "model d"]
    threshold: Float[Tensor, "feature"] | float = 0.0
    k: int | None = None
    """k of a TopK, which has no thresholds; else None."""
    into: Affine | None = None
    """Map applied to activations before the encoder; None for none."""
    out: Affine | None = None
    """Map that was applied to the activations that the decoder reconstructs; None for none."""
    scale: tuple[float, ...] | None = None
    """What each model's activations were divided by, if that is one number per model."""
    needs_input_scales: bool = False
    """Whether activations must be multiplied by factors that the file does not hold."""
    hook: VirtualHook | None = None
    """The hook point that the file names, if any."""
    tokens: TokenPolicy = EVERY_TOKEN
    prepend_bos: bool | None = None
    mean_k: int | None = None
    """Target number of active features per token."""
    assumptions: tuple[str, ...] = field(default=())

    @property
    def n_models(self) -> int:
        """Number of models it reads side by side: 2 for a crosscoder, else 1."""
        return len(self.W_enc)

    def assuming(self, *sentences: str) -> "Foreign":
        """Return the dictionary with additional assumptions."""
        return replace(self, assumptions=(*self.assumptions, *sentences))

    def with_codes_times(self, factors: Float[Tensor, "feature"]) -> "Foreign":
        """Return the dictionary with codes and thresholds multiplied by factors; 0 silences a feature."""
        inverse = torch.where(factors > 0, factors.reciprocal(), 0)
        return replace(
            self,
            W_enc=self.W_enc * factors,
            b_enc=self.b_enc * factors,
            W_dec=self.W_dec * inverse[:, None, None],
            threshold=self.threshold * factors,
        )

    def split(self, thresholds: Float[Tensor, "2 feature"] | float) -> "Foreign":
        """Return the dictionary with a separate code per model, gated by its own threshold.

        One code per feature cannot express that a feature fires for one model and not for the other, so
        each feature becomes two, equal except for the threshold, that write for one model each: first all
        of the base's, then all of the fine-tuned model's.
        """
        W_dec = torch.zeros(2, *self.W_dec.shape)
        W_dec[0, :, 0], W_dec[1, :, 1] = self.W_dec[:, 0], self.W_dec[:, 1]
        n = len(self.b_enc)
        return replace(
            self,
            W_enc=self.W_enc.repeat(1, 1, 2),
            b_enc=self.b_enc.repeat(2),
            W_dec=W_dec.flatten(0, 1),
            threshold=thresholds.flatten() if isinstance(thresholds, Tensor) else thresholds,
        ).assuming(
            "every feature is two here, since the format gates it for each model by itself: feature i "
            f"writes for the base model alone, feature {n} + i for the fine-tuned model alone; that "
            "either belongs to one model is true by construction"
        )

    def negated(self) -> "Foreign":
        """Return the dictionary for activations of the opposite sign."""
        return replace(
            self,
            W_enc=-self.W_enc,
            W_dec=-self.W_dec,
            b_dec=-self.b_dec,
            into=self.into and Affine(shift=-self.into.shift, scale=self.into.scale),
            out=self.out and Affine(shift=-self.out.shift, scale=self.out.scale),
        )

    def with_input_scales(self, factors: tuple[float, ...]) -> "Foreign":
        """Return the dictionary for activations that were multiplied by one factor per model."""
        scale = torch.tensor(factors, dtype=torch.float64)[:, None].expand_as(self.b_dec)
        affine = Affine(shift=torch.zeros_like(scale), scale=scale)
        return replace(self, into=affine, out=affine, scale=tuple(1 / f for f in factors))


def build(foreign: Foreign, device: str) -> SAE:
    """Return the SAELens dictionary that computes the same on raw activations."""
    W_enc, b_enc, W_dec, b_dec = foreign.W_enc, foreign.b_enc.double(), foreign.W_dec, foreign.b_dec
    if foreign.into is not None:
        scaled = W_enc.double() * foreign.into.scale[:, :, None]
        b_enc = b_enc - torch.einsum("md,mdf->f", foreign.into.shift.double(), scaled)
        W_enc = scaled
    if foreign.out is not None:
        W_dec = W_dec.double() / foreign.out.scale
        b_dec = b_dec.double() / foreign.out.scale + foreign.out.shift
    weights = {
        "W_enc": W_enc.flatten(0, 1), "b_enc": b_enc, "W_dec": W_dec.flatten(1), "b_dec": b_dec.flatten(),
    }  # fmt: skip
    d_in, d_sae = weights["W_enc"].shape
    common: dict[str, Any] = {
        "d_in": d_in, "d_sae": d_sae, "apply_b_dec_to_input": False, "device": device,
    }  # fmt: skip
    sae: SAE
    if foreign.k is not None:
        sae = TopKSAE(TopKSAEConfig(k=foreign.k, rescale_acts_by_decoder_norm=False, **common))
    else:
        weights["threshold"] = torch.as_tensor(foreign.threshold).expand(d_sae)
        if foreign.n_models == 2:
            sae = CrosscoderSAE(CrosscoderSAEConfig(**common))
        else:
            sae = JumpReLUSAE(JumpReLUSAEConfig(**common))
    sae.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return sae
