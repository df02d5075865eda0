"""SAELens's TopK and BatchTopK dictionaries on sparse kernels, for one model's width or two.

The same dictionaries as SAELens's `topk` and `batchtopk`, trained to the same weights several times
faster, and saved in SAELens's own formats `topk` and `jumprelu`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKSAEConfig
from torch import Tensor
from typing_extensions import override

from diffsae_lens._checks import check_choice
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._registration import register
from diffsae_lens.dictionaries._sparse import (
    Codes,
    Workspace,
    batch_topk_codes,
    decode_selected,
    encode_selected,
    feature_major,
    topk_codes,
)


@dataclass
class SparseTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """SAELens's `TopKTrainingSAEConfig`, trained on sparse kernels."""

    frozen_decoder: bool = False
    """Keep the decoder at its initial weights: a control for what the encoder alone can do."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("frozen_decoder", self.frozen_decoder, (True, False))

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_topk"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TopKSAEConfig


@dataclass
class SparseBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """SAELens's `BatchTopKTrainingSAEConfig`, trained on sparse kernels."""

    k: int | float = 100  # type: ignore[assignment]
    """Mean number of active features per row."""
    frozen_decoder: bool = False
    """Keep the decoder at its initial weights; see `SparseTopKTrainingSAEConfig`."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("frozen_decoder", self.frozen_decoder, (True, False))

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_batchtopk"


class SparseStep(TopKTrainingSAE):
    """A training step that never builds a `[batch, d_sae]` gradient.

    `feature_acts` of a step's output is a sparse tensor, and the hook points inside the step
    (`hook_sae_acts_pre`, `hook_sae_acts_post`) do not fire; `encode` and `decode` are dense.
    """

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        if cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            raise InvalidValueError(
                "`normalize_activations` must not depend on the row for sparse training, got "
                f"{cfg.normalize_activations!r}; train SAELens's dense architecture"
            )
        super().__init__(cfg, use_error_term)
        self.W_enc.data = feature_major(self.W_enc.data)
        self.workspace = Workspace()
        self.W_dec.requires_grad_(not cfg.frozen_decoder)

    def select(self, sae_in: Float[Tensor, "row d_in"], n_training_steps: int) -> Codes:
        """Return the active features of a batch, with their gradient."""
        raise NotImplementedError

    def selection_scale(self) -> Float[Tensor, "d_sae"] | None:
        """Return what pre-activations are multiplied by before they are compared; None for 1."""
        return self.get_W_dec_norm() if self.cfg.rescale_acts_by_decoder_norm else None

    def reconstruction_loss(
        self, sae_out: Float[Tensor, "row d_in"], sae_in: Float[Tensor, "row d_in"]
    ) -> Float[Tensor, ""]:
        """Return the squared error, summed over dimensions and averaged over rows."""
        return self.mse_loss_fn(sae_out, sae_in).sum(-1).mean()

    def extra_losses(self, codes: Codes, x: Float[Tensor, "row d_in"]) -> dict[str, Tensor]:  # noqa: ARG002
        """Return additional loss terms by name."""
        return {}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = step_input.sae_in
        sae_in = self.process_sae_in(x)
        codes = self.select(sae_in, step_input.n_training_steps)
        sae_out = decode_selected(codes, self.W_dec, workspace=self.workspace) + self.b_dec
        losses = {
            "mse_loss": self.reconstruction_loss(sae_out, x),
            "auxiliary_reconstruction_loss": self._auxk(step_input, sae_in, x - sae_out.detach()),
            **self.extra_losses(codes, x),
        }
        return TrainStepOutput(
            sae_in=x,
            sae_out=sae_out,
            feature_acts=codes.to_sparse(),
            hidden_pre=sae_out.new_empty(0),
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    def _encode_selected(self, sae_in: Tensor, codes: Codes) -> Codes:
        return encode_selected(sae_in, self.W_enc, self.b_enc, codes, workspace=self.workspace)

    def _auxk(self, step_input: TrainStepInput, sae_in: Tensor, residual: Tensor) -> Tensor:
        """The loss of dead features reconstructing the residual, as in SAELens (Gao et al., A.2)."""
        dead = step_input.dead_neuron_mask
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is None or n_dead == 0:
            return residual.new_zeros(())
        k_aux = self.cfg.d_in // 2
        index = dead.nonzero().squeeze(1)
        W_enc, b_enc, W_dec = self.W_enc[:, index], self.b_enc[index], self.W_dec[index]
        scale = self.selection_scale()
        if n_dead <= 8 * k_aux:
            # With few dead features, of which many fire, a dense block of them is cheaper.
            pre = sae_in @ W_enc + b_enc
            scaled = pre if scale is None else pre * scale[index]
            chosen = scaled.topk(min(k_aux, n_dead), dim=-1, sorted=False).indices
            rebuilt = torch.zeros_like(pre).scatter(-1, chosen, pre.gather(-1, chosen)) @ W_dec
        else:
            codes = topk_codes(
                sae_in, W_enc, b_enc, k=k_aux, scale=None if scale is None else scale[index]
            )
            rebuilt = decode_selected(encode_selected(sae_in, W_enc, b_enc, codes), W_dec)
        loss = (rebuilt - residual).pow(2).sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(n_dead / k_aux, 1.0) * loss

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()


class SparseTopKTrainingSAE(SparseStep):
    """TopK with k features per row (Gao et al. 2406.04093)."""

    @override
    def select(self, sae_in: Tensor, n_training_steps: int) -> Codes:
        codes = topk_codes(
            sae_in,
            self.W_enc,
            self.b_enc,
            k=self.cfg.k,
            scale=self.selection_scale(),
            workspace=self.workspace,
        )
        codes = self._encode_selected(sae_in, codes)
        return replace(codes, values=codes.values.relu())


class SparseBatchTopKTrainingSAE(BatchTopKTrainingSAE, SparseStep):
    """BatchTopK: k features per row on average over the batch (Bussmann et al. 2412.06410)."""

    def k_at(self, n_training_steps: int) -> int | float:  # noqa: ARG002
        """Return the mean number of active features per row at a training step."""
        return self.cfg.k

    @override
    def select(self, sae_in: Tensor, n_training_steps: int) -> Codes:
        codes, smallest = batch_topk_codes(
            sae_in,
            self.W_enc,
            self.b_enc,
            k=self.k_at(n_training_steps),
            scale=self.selection_scale(),
            workspace=self.workspace,
        )
        self._smallest = smallest
        return self._encode_selected(sae_in, codes)

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        # In units of the scaled pre-activations, as the saved JumpReLU compares them.
        if self._smallest > 0:
            self.topk_threshold.lerp_(self._smallest.double(), self.cfg.topk_threshold_lr)


register(SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig)
register(SparseBatchTopKTrainingSAE, SparseBatchTopKTrainingSAEConfig)
