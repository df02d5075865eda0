"""Latent scaling: does a model have a feature that its decoder says it lacks? (Minder et al.)"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._decoding import decoder_halves, scales_by_model
from diffsae_lens.measures._validation import activation_batches


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentScaling(Record):
    """How much of each feature each model needs, measured on activations."""

    beta_error: Float[Tensor, "2 d_sae"]
    """Least-squares factor of the feature on each model's error with the feature added back (base,
    finetuned)."""
    beta_reconstruction: Float[Tensor, "2 d_sae"]
    """The same on each model's reconstruction by all features together."""
    decoder_norm: Float[Tensor, "2 d_sae"]
    """Norm of each model's decoder row."""
    of: int
    """The model whose decoder direction was used: 1 for the fine-tuned model, 0 for the base."""
    n_tokens: int
    """Number of tokens measured."""

    def _ratio(self, beta: Tensor) -> Tensor:
        return beta[1 - self.of] / beta[self.of]

    @property
    def nu_error(self) -> Float[Tensor, "d_sae"]:
        """Nu epsilon: near 0 if the other model does not need the feature, near 1 if it needs it as
        much. A high value for a feature called exclusive means "complete shrinkage".
        """
        return self._ratio(self.beta_error)

    @property
    def nu_reconstruction(self) -> Float[Tensor, "d_sae"]:
        """Nu r: a high value for a feature called exclusive means "latent decoupling": other features
        write the other model's use of it.
        """
        return self._ratio(self.beta_reconstruction)

    @property
    def is_specific(self) -> torch.Tensor:
        """Whether each feature is specific to the model `of`: that model has the larger decoder row,
        |nu epsilon| < 0.2 and |nu r| < 0.5 (2504.02922).
        """
        larger = self.decoder_norm[self.of] > self.decoder_norm[1 - self.of]
        return larger & (self.nu_error.abs() < 0.2) & (self.nu_reconstruction.abs() < 0.5)

    @property
    def n_undefined(self) -> int:
        """Number of features that never fired or write nothing, whose values are NaN."""
        return int(self.beta_error[self.of].isnan().sum())


@torch.no_grad()
@typed
def latent_scaling(
    crosscoder: SAE,
    batches: Float[Tensor, "_ d_in"] | Iterable[Float[Tensor, "_ d_in"]],
    *,
    of_finetuned: bool = True,
) -> LatentScaling:
    r"""Measure how much of each feature each model's activations hold.

    For feature j with direction d_j (the fine-tuned model's decoder row) and codes f_j, and a target
    y(x) of either model, beta_j = argmin_beta sum_x ||y(x) - beta f_j(x) d_j||^2. Targets are the
    model's error with the feature's own part added back, and its reconstruction without the bias. nu is
    the ratio of the base's beta to the fine-tuned model's: 0 means that only the fine-tuned model has the
    feature, 1 that both have it, whatever the decoder norms say. (Minder et al. 2504.02922, section 3;
    everything in the space the crosscoder was trained in.)

    Args:
        crosscoder: a dictionary on `[base ; finetuned]`.
        batches: held-out activations `[base ; finetuned]`, one tensor or several; read once, one batch at
            a time.
        of_finetuned: False uses the base model's direction, and nu is then finetuned / base.

    Returns:
        Values per feature, NaN for a feature that never fired or writes nothing.

    Raises:
        TypeError: a batch that is not a tensor.
        ValueError: the dictionary is not a crosscoder or restores each token's norm, there are no tokens,
            or activations have another width or are not finite.
    """
    scales = scales_by_model(crosscoder)
    halves = decoder_halves(crosscoder)
    direction = halves[of_finetuned]
    d_model, d_sae = direction.shape[1], crosscoder.cfg.d_sae
    energy = torch.zeros(d_sae, dtype=torch.double)
    on_error, on_reconstruction = torch.zeros(2, 2, d_sae, dtype=torch.double)
    n_tokens = 0
    for x in activation_batches(batches, crosscoder.cfg.d_in):
        codes = crosscoder.encode(x.to(direction.device))
        n_tokens += len(x)
        energy += codes.square().sum(0).double().cpu()
        for m, (scale, half) in enumerate(zip(scales, halves, strict=True)):
            part = slice(m * d_model, (m + 1) * d_model)
            written = codes @ half
            error = (x.to(direction.device)[:, part] - crosscoder.b_dec[part]) / scale - written
            for total, target in ((on_error, error), (on_reconstruction, written)):
                total[m] += (codes * (target @ direction.T)).sum(0).double().cpu()
    if n_tokens == 0:
        raise InvalidValueError("`batches` holds no tokens to measure on")
    norm = direction.double().square().sum(-1).cpu()
    # The feature's own part, added back: f_j d_j^m projected onto f_j d_j.
    own = torch.stack([(half.double() * direction.double()).sum(-1).cpu() for half in halves])
    unseen = energy == 0
    beta_error = (on_error / energy + own) / norm
    beta_reconstruction = on_reconstruction / (energy * norm)
    return LatentScaling(
        beta_error=beta_error.masked_fill(unseen, torch.nan),
        beta_reconstruction=beta_reconstruction.masked_fill(unseen, torch.nan),
        decoder_norm=torch.stack([half.norm(dim=-1).cpu() for half in halves]),
        of=int(of_finetuned),
        n_tokens=n_tokens,
    )
