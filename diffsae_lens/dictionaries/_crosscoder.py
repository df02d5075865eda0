"""A crosscoder after training, and what all crosscoders have in common: the views of two models.

A crosscoder is a SAELens dictionary on `[base ; finetuned]`. Its flat weights `W_enc [2 d, d_sae]`
and `W_dec [d_sae, 2 d]` are viewed by model, so everything SAELens does with a dictionary works.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TrainingSAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._hosts import has_gradient_hooks
from diffsae_lens.dictionaries._registration import register

CODE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda norms: norms.sum(-1),
    "l2": lambda norms: norms.square().sum(-1).sqrt(),
}
"""How a feature's two decoder norms, `[d_sae, 2]`, become one number: Lindsey et al. and Minder et al.
(2504.02922) add them; SAELens's `batchtopk` takes the root of the sum of squares."""


class TwoModels(SAE):
    """Per-model views of a dictionary on `[base ; finetuned]`."""

    @property
    def d_model(self) -> int:
        """Width of one model."""
        return self.cfg.d_in // 2

    @property
    def W_enc_base(self) -> Float[Tensor, "d_model d_sae"]:
        """The encoder's weights on the base model's activation."""
        return self.W_enc[: self.d_model]

    @property
    def W_enc_finetuned(self) -> Float[Tensor, "d_model d_sae"]:
        """The encoder's weights on the fine-tuned model's activation."""
        return self.W_enc[self.d_model :]

    @property
    def W_dec_base(self) -> Float[Tensor, "d_sae d_model"]:
        """The decoder's weights for the base model."""
        return self.W_dec[:, : self.d_model]

    @property
    def W_dec_finetuned(self) -> Float[Tensor, "d_sae d_model"]:
        """The decoder's weights for the fine-tuned model."""
        return self.W_dec[:, self.d_model :]

    @property
    def W_dec_diff(self) -> Float[Tensor, "d_sae d_model"]:
        """The decoder's weights for the difference, finetuned - base."""
        return self.W_dec_finetuned - self.W_dec_base

    def decoder_norms(self) -> Float[Tensor, "d_sae 2"]:
        """Norm of each feature's decoder row, base and fine-tuned."""
        return torch.stack([self.W_dec_base.norm(dim=-1), self.W_dec_finetuned.norm(dim=-1)], -1)

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> Float[Tensor, "d_sae"]:
        """Return each feature's decoder norm, combined over models as in training."""
        form = getattr(self.cfg, "code_norm", "sum")
        return CODE_NORMS[form](self.decoder_norms()).clamp(min=1e-8)

    def reconstruct_base(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_model"]:
        """Return the reconstruction of the base model's half."""
        return self(x)[..., : self.d_model]

    def reconstruct_finetuned(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_model"]:
        """Return the reconstruction of the fine-tuned model's half."""
        return self(x)[..., self.d_model :]

    def reconstruct_diff(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_model"]:
        """Return the difference the crosscoder implies, finetuned - base."""
        base, finetuned = self(x).split(self.d_model, dim=-1)
        return finetuned - base


@dataclass
class CrosscoderSAEConfig(JumpReLUSAEConfig):
    """A trained crosscoder; `d_in` is 2 * d_model."""

    apply_b_dec_to_input: bool = False
    # SAELens's `from_dict` passes a dict and converts it afterwards.
    metadata: SAEMetadata | dict[str, Any] = field(default_factory=SAEMetadata)  # type: ignore[assignment]

    @override
    @classmethod
    def architecture(cls) -> str:
        return "crosscoder"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_two_models(self.d_in)


class CrosscoderSAE(TwoModels, JumpReLUSAE):
    """A crosscoder of any kind after training: JumpReLU codes of both models' activations.

    Decoder norms are folded into the encoder: in the space the crosscoder was trained in, each feature's
    two decoder norms sum to 1 (with `code_norm="l2"` their squares do). A crosscoder from `load_foreign`
    keeps the codes, and so the norms, of its own format.
    """


class CrosscoderTraining(TwoModels, TrainingSAE):
    """What the training classes share: constraints on weights, and decoder norms folded on saving."""

    _decoder_norm_folded = False

    def constrain_decoder(self, tensor: Tensor) -> Tensor:
        """Return a tensor of W_dec's shape, `[d_sae, 2 d]`, constrained to the crosscoder's structure.

        Applied to the initial weights and to every gradient, so Adam's moments and the weights keep
        the structure exactly, whatever loss the gradient comes from.
        """
        return tensor

    def constrain_encoder(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the shape of W_enc's transpose, `[d_sae, 2 d]`, constrained the same way."""
        return tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        with torch.no_grad():
            self.W_dec.data = self.constrain_decoder(self.W_dec.data)
            self.W_enc.data = self.constrain_encoder(self.W_enc.data.T).T.contiguous()

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        # Loading replaces the parameters, so check for the hooks at every step.
        if self.W_dec.requires_grad and not has_gradient_hooks(self.W_dec):
            self.W_dec.register_hook(self.constrain_decoder)
        if not has_gradient_hooks(self.W_enc):
            self.W_enc.register_hook(lambda grad: self.constrain_encoder(grad.T).T)
        return super().training_forward_pass(step_input)

    @override
    @torch.no_grad()
    def fold_activation_whitening(self, mean: Tensor, *args: Any, **kwargs: Any) -> None:
        # Fold in the normalised space, where the two models' norms can be compared.
        if getattr(self.cfg, "rescale_acts_by_decoder_norm", True):
            self.fold_W_dec_norm()
            self._decoder_norm_folded = True
        super().fold_activation_whitening(mean, *args, **kwargs)


def check_two_models(d_in: int) -> None:
    """Refuse a width that cannot hold two models of equal width.

    Raises:
        ValueError: `d_in` is odd.
    """
    if d_in % 2:
        raise InvalidValueError(
            f"`d_in` of a crosscoder must be 2 * d_model, got the odd number {d_in}"
        )


def fold_state_dict(state_dict: dict[str, Any], norms: Float[Tensor, "d_sae"]) -> None:
    """Fold decoder norms into the encoder of a JumpReLU state dict, in place."""
    state_dict["W_dec"] = state_dict["W_dec"] / norms[:, None]
    state_dict["W_enc"] = (state_dict["W_enc"] * norms).contiguous()
    state_dict["b_enc"] = state_dict["b_enc"] * norms
    state_dict["threshold"] = state_dict["threshold"] * norms


register(CrosscoderSAE, CrosscoderSAEConfig)
