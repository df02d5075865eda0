"""The two dictionaries of arXiv 2605.07324 exactly as published, to reproduce its table.

Not for new work. What is wrong with them, and what to use instead:

- Both tie the decoder to the encoder, so a feature reads where it writes, and the crosscoder cannot
  have a feature that reads one model and writes both. The Diff-SAE is held to unit norm *per input
  dimension over the features* (`dim=0` of the encoder's weight), not per feature, so long features can
  escape its penalty on activations.
- The Diff-SAE's penalty is 1e-4 of the *mean* activation over 30,720 features, which is no pressure:
  its codes are dense. Its "ghost gradient" is its own term (not Anthropic's of January 2024) and acts
  only on features silent for 10,000 steps, more than the published training runs.
- The crosscoder's "BatchTopK" is a per-row TopK on unnormalised activations, so the budget goes to
  what the models share.

Use `SparseBatchTopKTrainingSAE` on the difference and `BatchTopKCrosscoderTrainingSAE`, both with
`Normalization()`. Source: github.com/techsachinkr/diff-sae-backdoor-detection, interpretability/.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import StandardSAEConfig, TopKSAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss, normalize, relu
from typing_extensions import override

from diffsae_lens._checks import check_choice, check_count, check_number
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._registration import register


@dataclass
class TiedTrainingSAEConfig(TrainingSAEConfig):
    """Settings that the two published dictionaries share."""

    apply_b_dec_to_input: bool = False
    l1_coefficient: float = 1e-4
    """Weight of the mean activation over rows and features."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_activations != "none" or self.apply_b_dec_to_input:
            raise InvalidValueError(
                "the published dictionaries take raw activations: `normalize_activations` must be "
                f"'none' and `apply_b_dec_to_input` False, got {self.normalize_activations!r} and "
                f"{self.apply_b_dec_to_input}"
            )
        check_number("l1_coefficient", self.l1_coefficient, low=0)


@dataclass
class PaperDiffSAETrainingSAEConfig(TiedTrainingSAEConfig):
    """The published Diff-SAE: tied, ReLU, on `finetuned - base`."""

    ghost_coefficient: float = 0.1
    dead_after_steps: int = 10_000
    """Steps of silence after which the ghost term reaches a feature."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ghost_coefficient", self.ghost_coefficient, low=0)
        check_count("dead_after_steps", self.dead_after_steps)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "paper_diff_sae"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


@dataclass
class PaperCrosscoderTrainingSAEConfig(TiedTrainingSAEConfig):
    """The published crosscoder: tied, ReLU, then the k largest of each row."""

    k: int = 32
    rescale_acts_by_decoder_norm: bool = False
    """Read by SAELens's `topk`, the format it is saved in."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("k", self.k)
        check_choice(
            "rescale_acts_by_decoder_norm", self.rescale_acts_by_decoder_norm, (True, False)
        )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "paper_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TopKSAEConfig


class _TiedTrainingSAE(TrainingSAE):
    b_enc: nn.Parameter

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]
        """The decoder, which is the encoder transposed, `[d_sae, d_in]`."""
        return self.W_enc.T

    @override
    def initialize_weights(self) -> None:
        weight = torch.empty(self.cfg.d_sae, self.cfg.d_in, dtype=self.dtype, device=self.device)
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")
        self.W_enc = nn.Parameter(weight.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros_like(weight[:, 0]))
        self.b_dec = nn.Parameter(torch.zeros_like(weight[0]))

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(pre)), pre

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = step_input.sae_in
        feature_acts, hidden_pre = self.encode_with_hidden_pre(x)
        sae_out = self.decode(feature_acts)
        losses = {
            "mse_loss": mse_loss(sae_out, x),
            "l1_loss": self.cfg.l1_coefficient * feature_acts.abs().mean(),
        }
        aux = self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        losses |= aux if isinstance(aux, dict) else {}
        return TrainStepOutput(
            sae_in=x,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        return {}

    @override
    def fold_activation_whitening(self, *args: Any, **kwargs: Any) -> None:
        raise InvalidValueError(
            "the published dictionaries take raw activations; leave `normalization` out"
        )

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict["W_dec"] = state_dict["W_enc"].T.contiguous()


class PaperDiffSAETrainingSAE(_TiedTrainingSAE):
    """Loss: mean squared error + l1 * mean activation - 0.1 * mean ReLU(W_dead residual)."""

    def __init__(self, cfg: PaperDiffSAETrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("steps_since_fired", torch.zeros_like(self.b_enc.data))

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._normalize()

    def _normalize(self) -> None:
        self.W_enc.data = normalize(self.W_enc.data, dim=1)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self._normalize()  # the published code does this after each step
        return super().training_forward_pass(step_input)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        dead = self.steps_since_fired > self.cfg.dead_after_steps
        with torch.no_grad():
            fired = (feature_acts > 0).any(0)
            self.steps_since_fired = (self.steps_since_fired + 1).masked_fill(fired, 0)
        if not dead.any():
            return {}
        residual = (step_input.sae_in - sae_out).detach()
        ghosts = relu(linear(residual, self.W_dec[dead]))
        return {"ghost_loss": -self.cfg.ghost_coefficient * ghosts.mean()}

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        state_dict["W_enc"] = normalize(state_dict["W_enc"], dim=1)
        state_dict.pop("steps_since_fired")
        super().process_state_dict_for_saving_inference(state_dict)


class PaperCrosscoderTrainingSAE(_TiedTrainingSAE):
    """Loss: mean squared error over both models + l1 * mean activation."""

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        acts, pre = super().encode_with_hidden_pre(x)
        largest = acts.topk(self.cfg.k, dim=-1)
        return torch.zeros_like(acts).scatter(-1, largest.indices, largest.values), pre


register(PaperDiffSAETrainingSAE, PaperDiffSAETrainingSAEConfig)
register(PaperCrosscoderTrainingSAE, PaperCrosscoderTrainingSAEConfig)
