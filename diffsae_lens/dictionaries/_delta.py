"""Delta-crosscoder for narrow fine-tuning (arXiv 2603.04426). Experimental.

There is no public code. This is our reading of the paper: the dictionary has delta features and
shared features, each with its own BatchTopK budget ("dual k"), and besides the reconstruction of both
models, the delta features alone must reconstruct the difference:

    L = sum_m ||e_m||^2 + c ||(a_f - a_b) - sum_{i in delta} f_i (d_i^f - d_i^b)||^2

The difference has no bias term and must not be distorted, so train on centred activations with one
scale for both models (`Normalization(scale="common")`). For the paper's contrastive, task-agnostic data,
harvest such texts.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from diffsae_lens._checks import check_count, check_number
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._crosscoder_training import (
    BatchTopKCrosscoderTrainingSAE,
    BatchTopKCrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._registration import register
from diffsae_lens.dictionaries._sparse import (
    Codes,
    batch_topk_codes,
    decode_selected,
    encode_selected,
    merge_codes,
)


@dataclass
class DeltaCrosscoderTrainingSAEConfig(BatchTopKCrosscoderTrainingSAEConfig):
    """A BatchTopK crosscoder whose first `n_delta_features` features reconstruct the difference."""

    n_delta_features: int = 0
    k_delta: int | float = 0
    """Mean number of active delta features per row, in addition to the `k` shared ones."""
    delta_coefficient: float = 1.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "delta_crosscoder"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("n_delta_features", self.n_delta_features, at_least=0)
        check_number("k_delta", self.k_delta)
        check_number("delta_coefficient", self.delta_coefficient, low=0)
        if not 0 < self.n_delta_features < self.d_sae or not self.k_delta > 0:
            raise InvalidValueError(
                f"`n_delta_features` must lie in (0, d_sae = {self.d_sae}) and `k_delta` be positive, "
                f"got {self.n_delta_features} and {self.k_delta}"
            )


class DeltaCrosscoderTrainingSAE(BatchTopKCrosscoderTrainingSAE):
    """Two BatchTopK budgets and a loss on the difference that only delta features can lower."""

    cfg: DeltaCrosscoderTrainingSAEConfig  # type: ignore[assignment]
    delta_threshold: Tensor

    def __init__(self, cfg: DeltaCrosscoderTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("delta_threshold", torch.zeros_like(self.topk_threshold))

    @override
    def select(self, sae_in: Tensor, n_training_steps: int) -> Codes:
        n_delta, scale = self.cfg.n_delta_features, self.selection_scale()
        parts, smallest = [], []
        for part, k in (
            (slice(0, n_delta), self.cfg.k_delta),
            (slice(n_delta, None), self.k_at(n_training_steps)),
        ):
            weights = self.W_enc[:, part], self.b_enc[part]
            codes, least = batch_topk_codes(
                sae_in, *weights, k=k, scale=None if scale is None else scale[part]
            )
            parts.append(encode_selected(sae_in, *weights, codes))
            smallest.append(least)
        self._smallest_delta, self._smallest = smallest
        return merge_codes(*parts)

    @override
    def extra_losses(self, codes: Codes, x: Float[Tensor, "row d_in"]) -> dict[str, Tensor]:
        n_delta = self.cfg.n_delta_features
        delta = codes.features < n_delta
        only_delta = replace(codes, values=codes.values * delta)
        base, finetuned = decode_selected(only_delta, self.W_dec).split(self.d_model, dim=-1)
        target = x[:, self.d_model :] - x[:, : self.d_model]
        error = (target - (finetuned - base)).pow(2).sum(-1).mean()
        return {"delta_loss": self.cfg.delta_coefficient * error}

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        super().update_topk_threshold(acts_topk)
        if self._smallest_delta > 0:
            self.delta_threshold.lerp_(self._smallest_delta.double(), self.cfg.topk_threshold_lr)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.rescale_acts_by_decoder_norm:
            self.delta_threshold /= scaling_factor

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        delta_threshold = state_dict.pop("delta_threshold").item()
        state_dict["threshold"][: self.cfg.n_delta_features] = delta_threshold


register(DeltaCrosscoderTrainingSAE, DeltaCrosscoderTrainingSAEConfig)
