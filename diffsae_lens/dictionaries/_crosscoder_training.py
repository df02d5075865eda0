"""Crosscoders as the literature trains them: L1, JumpReLU (with shared features), BatchTopK."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.jumprelu_sae import calculate_pre_act_loss
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from torch import Tensor
from typing_extensions import override

from diffsae_lens._checks import check_choice, check_count, check_number
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._crosscoder import (
    CODE_NORMS,
    CrosscoderSAEConfig,
    CrosscoderTraining,
    check_two_models,
    fold_state_dict,
)
from diffsae_lens.dictionaries._registration import register
from diffsae_lens.dictionaries._topk import SparseBatchTopKTrainingSAE


@dataclass
class L1CrosscoderTrainingSAEConfig(StandardTrainingSAEConfig):
    """The first crosscoder (Lindsey et al. 2024, "Sparse Crosscoders")."""

    apply_b_dec_to_input: bool = False

    @override
    @classmethod
    def architecture(cls) -> str:
        return "l1_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return CrosscoderSAEConfig

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_two_models(self.d_in)


class L1CrosscoderTrainingSAE(CrosscoderTraining, StandardTrainingSAE):
    """Loss: mean over rows of sum_m ||e_m||^2 + l1 * sum_i f_i (||d_i^base|| + ||d_i^finetuned||).

    The sum of norms, unlike the norm of both together, prefers features of one model. It also
    shrinks the smaller norm to 0 where the feature matters to both ("complete shrinkage", Minder et
    al. 2504.02922), so a norm of 0 proves nothing: see `latent_scaling`.
    """

    cfg: L1CrosscoderTrainingSAEConfig  # type: ignore[assignment]

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        penalty = (feature_acts * self.decoder_norms().sum(-1)).sum(-1).mean()
        return {"l1_loss": step_input.coefficients["l1"] * penalty}

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict["threshold"] = torch.zeros_like(state_dict["b_enc"])  # ReLU
        if not self._decoder_norm_folded:
            fold_state_dict(state_dict, self.get_W_dec_norm())


@dataclass
class JumpReLUCrosscoderTrainingSAEConfig(JumpReLUTrainingSAEConfig):
    """JumpReLU with the tanh penalty and shared features (Anthropic, February 2025).

    The first `n_shared_features` features write the same for both models and pay
    `shared_sparsity_ratio` of the others' penalty, which leaves the others to what differs. 0 shared
    features give the plain JumpReLU crosscoder.
    """

    apply_b_dec_to_input: bool = False
    jumprelu_sparsity_loss_mode: Literal["step", "tanh", "quadratic"] = "tanh"
    jumprelu_ste_to_input: bool = True
    n_shared_features: int = 0
    shared_sparsity_ratio: float = 0.1

    @override
    @classmethod
    def architecture(cls) -> str:
        return "jumprelu_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return CrosscoderSAEConfig

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_two_models(self.d_in)
        if self.jumprelu_sparsity_loss_mode != "tanh":
            raise InvalidValueError(
                "`jumprelu_sparsity_loss_mode` of a crosscoder must be 'tanh', got "
                f"{self.jumprelu_sparsity_loss_mode!r}"
            )
        check_count("n_shared_features", self.n_shared_features, at_least=0, at_most=self.d_sae)
        check_number("shared_sparsity_ratio", self.shared_sparsity_ratio, low=0)


class JumpReLUCrosscoderTrainingSAE(CrosscoderTraining, JumpReLUTrainingSAE):
    """Loss: sum_m ||e_m||^2 + l0 * sum_i w_i tanh(c f_i ||d_i||) [+ pre-activation loss].

    ||d_i|| is the sum of the two decoder norms; w_i is `shared_sparsity_ratio` for shared features
    and 1 for the others.
    """

    cfg: JumpReLUCrosscoderTrainingSAEConfig  # type: ignore[assignment]

    @override
    def constrain_decoder(self, tensor: Tensor) -> Tensor:
        n_shared = self.cfg.n_shared_features
        if n_shared == 0:
            return tensor
        halves = tensor.unflatten(-1, (2, self.d_model))
        shared = halves[:n_shared].mean(1, keepdim=True).expand(-1, 2, -1)
        return torch.cat([shared, halves[n_shared:]]).flatten(1)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        norms = self.decoder_norms().sum(-1)
        weights = torch.ones_like(norms)
        weights[: self.cfg.n_shared_features] = self.cfg.shared_sparsity_ratio
        sparsity = torch.tanh(self.cfg.jumprelu_tanh_scale * feature_acts * norms) @ weights
        losses = {"l0_loss": step_input.coefficients["l0"] * sparsity.mean()}
        if self.cfg.pre_act_loss_coefficient is not None:
            losses["pre_act_loss"] = calculate_pre_act_loss(
                self.cfg.pre_act_loss_coefficient,
                self.threshold.to(hidden_pre.dtype),
                hidden_pre,
                step_input.dead_neuron_mask,
                norms,
            )
        return losses

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        if not self._decoder_norm_folded:
            fold_state_dict(state_dict, self.get_W_dec_norm())


@dataclass
class BatchTopKCrosscoderTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """BatchTopK with decoder-norm scaling (Minder et al. 2504.02922), optionally partitioned.

    The first `n_base_only` features exist for the base model alone, the next `n_finetuned_only` for
    the fine-tuned model alone ("dedicated feature crosscoder", 2602.11729), the rest for both. These
    features are exclusive by construction: only a control pair tells what they mean.
    """

    k: int | float = 100  # type: ignore[assignment]
    """Mean number of active features per row."""
    apply_b_dec_to_input: bool = False
    aux_loss_coefficient: float = 1 / 32
    code_norm: Literal["sum", "l2"] = "sum"
    """The decoder norm that scales pre-activations before they are compared; see `CODE_NORMS`."""
    frozen_decoder: bool = False
    """Keep the decoder at its initial weights; see `SparseTopKTrainingSAEConfig`."""
    reconstruction: Literal["mse", "l2"] = "mse"
    """mse: squared error summed over both models; l2: error norm, mean over models (Minder et al.)."""
    k_initial: int | float | None = None
    """Initial k when k is annealed to `k`; None for no annealing."""
    k_annealing_steps: int = 0
    """Training steps over which k is annealed linearly from `k_initial` to `k`."""
    n_base_only: int = 0
    n_finetuned_only: int = 0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "batchtopk_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return CrosscoderSAEConfig

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_two_models(self.d_in)
        if self.code_norm not in CODE_NORMS or self.reconstruction not in ("mse", "l2"):
            raise InvalidValueError(
                f"`code_norm` must be one of {list(CODE_NORMS)} and `reconstruction` 'mse' or 'l2', "
                f"got {self.code_norm!r} and {self.reconstruction!r}"
            )
        check_choice("frozen_decoder", self.frozen_decoder, (True, False))
        for name in ("n_base_only", "n_finetuned_only", "k_annealing_steps"):
            check_count(name, getattr(self, name), at_least=0)
        if self.k_initial is not None:
            check_number("k_initial", self.k_initial, low=0, low_open=True)
        exclusive = (self.n_base_only, self.n_finetuned_only)
        if sum(exclusive) > self.d_sae:
            raise InvalidValueError(
                "`n_base_only` and `n_finetuned_only` must be no more than d_sae "
                f"= {self.d_sae} together, got {exclusive}"
            )
        if (self.k_initial is None) != (self.k_annealing_steps == 0):
            raise InvalidValueError(
                "`k_initial` and `k_annealing_steps` go together, got "
                f"{self.k_initial} and {self.k_annealing_steps}"
            )


class BatchTopKCrosscoderTrainingSAE(CrosscoderTraining, SparseBatchTopKTrainingSAE):
    """BatchTopK over u_i (||d_i^base|| + ||d_i^finetuned||), u the ReLU of the pre-activations."""

    cfg: BatchTopKCrosscoderTrainingSAEConfig  # type: ignore[assignment]

    @override
    def constrain_decoder(self, tensor: Tensor) -> Tensor:
        n_base, n_finetuned = self.cfg.n_base_only, self.cfg.n_finetuned_only
        if n_base + n_finetuned == 0:
            return tensor
        tensor = tensor.clone()
        tensor[:n_base, self.d_model :] = 0
        tensor[n_base : n_base + n_finetuned, : self.d_model] = 0
        return tensor

    @override
    def constrain_encoder(self, tensor: Tensor) -> Tensor:
        return self.constrain_decoder(tensor)

    @override
    def k_at(self, n_training_steps: int) -> int | float:
        if self.cfg.k_initial is None or n_training_steps >= self.cfg.k_annealing_steps:
            return self.cfg.k
        left = 1 - n_training_steps / self.cfg.k_annealing_steps
        return self.cfg.k + left * (self.cfg.k_initial - self.cfg.k)

    @override
    def reconstruction_loss(
        self, sae_out: Float[Tensor, "row d_in"], sae_in: Float[Tensor, "row d_in"]
    ) -> Float[Tensor, ""]:
        if self.cfg.reconstruction == "mse":
            return super().reconstruction_loss(sae_out, sae_in)
        return (sae_out - sae_in).unflatten(-1, (2, self.d_model)).norm(dim=-1).mean()

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sae_in = self.process_sae_in(x)
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + self.b_enc)
        scale = self.selection_scale()
        hidden_pre = hidden_pre if scale is None else hidden_pre * scale
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        scale = self.selection_scale()
        unscaled = feature_acts if scale is None else feature_acts / scale
        return self.hook_sae_recons(unscaled @ self.W_dec + self.b_dec)


register(L1CrosscoderTrainingSAE, L1CrosscoderTrainingSAEConfig)
register(JumpReLUCrosscoderTrainingSAE, JumpReLUCrosscoderTrainingSAEConfig)
register(BatchTopKCrosscoderTrainingSAE, BatchTopKCrosscoderTrainingSAEConfig)
