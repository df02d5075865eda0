"""Normalisation of each model's activations before training, folded into the saved weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from sae_lens.training.activation_scaler import ActivationWhitening
from torch import Tensor

from diffsae_lens._checks import check_choice, check_count
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import check_fields

Scale = Literal["by model", "common", "none"]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The transformation of activations (or of the difference) before a dictionary sees them.

    The statistics are estimated on training tokens, kept in the metadata, and folded into the weights
    when training ends, so that the saved dictionary takes raw activations. A crosscoder's two halves
    get a mean and a scale each: otherwise the model with the larger norm dominates the loss and shifts
    decoder-norm ratios. A difference gets one mean and one scale. (Standardising both models before
    subtracting is not offered: it creates differences where there are none.)
    """

    center: bool = True
    """Subtract the mean. For a difference, this removes the offset that narrow fine-tuning leaves
    everywhere (arXiv 2510.13900); the offset is reported as `offset_share` either way."""
    scale: Scale = "by model"
    """Divide so that the mean squared norm becomes d_model: by one number per model, by one number for
    both (`common`, which preserves differences), or not at all."""

    def __post_init__(self) -> None:
        """Refuse values that are not among the choices."""
        check_fields(self)
        check_choice("center", self.center, (True, False))
        check_choice("scale", self.scale, get_args(Scale))


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationStatistics:
    """Moments of a dictionary's input, per model."""

    mean: Float[Tensor, "d_in"]
    """Mean activation."""
    second_moment: tuple[float, ...]
    """Mean squared norm of each model's part."""
    n_tokens: int
    """Number of tokens on which they were estimated."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The mean of each model's part."""
        return self.mean.chunk(len(self.second_moment))

    @property
    def offset_share(self) -> tuple[float, ...]:
        """||mean||^2 / mean ||x||^2 of each part: 0 for no constant offset, 1 for nothing but offset."""
        return tuple(
            (part.square().sum() / moment).item() if moment else 0.0
            for part, moment in zip(self.parts, self.second_moment, strict=True)
        )


def activation_statistics(
    batches: Iterable[Mapping[str, Float[Tensor, "_ _"]]], *, n_parts: Mapping[str, int]
) -> dict[str, ActivationStatistics]:
    """Accumulate the moments of several dictionaries' inputs in one pass, in double precision.

    Args:
        batches: activations by hook point; all batches are read.
        n_parts: number of parts of each hook point, 2 for `[base ; finetuned]`, 1 for a difference.

    Raises:
        TypeError: `n_parts` are not integers.
        ValueError: no tokens, values that are not finite, or batches that are not `[token, d_in]` with
            `d_in` divisible by `n_parts`.
    """
    n_parts = {name: check_count("n_parts", n) for name, n in n_parts.items()}
    total: dict[str, Any] = dict.fromkeys(n_parts, 0)
    squares: dict[str, Any] = dict.fromkeys(n_parts, 0)
    n_tokens = dict.fromkeys(n_parts, 0)
    for batch in batches:
        for name, n in n_parts.items():
            if batch[name].ndim != 2 or batch[name].shape[1] % n:
                raise InvalidValueError(
                    f"`batches` must be of shape [token, d_in], d_in a multiple of {n}, got "
                    f"{list(batch[name].shape)}; flatten sequences and positions"
                )
            x = batch[name].double()
            total[name] = total[name] + x.sum(0)
            squares[name] = squares[name] + x.square().sum(0)
            n_tokens[name] += len(x)
    found = {}
    for name, n in n_parts.items():
        if n_tokens[name] == 0 or not torch.isfinite(squares[name]).all():
            raise InvalidValueError(
                f"`batches` must hold finite activations to normalise by, got {n_tokens[name]} tokens"
            )
        moments = (squares[name] / n_tokens[name]).chunk(n)
        found[name] = ActivationStatistics(
            mean=total[name] / n_tokens[name],
            second_moment=tuple(part.sum().item() for part in moments),
            n_tokens=n_tokens[name],
        )
    return found


def scales(statistics: ActivationStatistics, normalization: Normalization) -> tuple[float, ...]:
    """Return the number by which each part is divided.

    Raises:
        ValueError: a part is constant, so that no scale can normalise it.
    """
    if normalization.scale == "none":
        return tuple(1.0 for _ in statistics.second_moment)
    found = []
    for part, moment in zip(statistics.parts, statistics.second_moment, strict=True):
        spread = moment - normalization.center * part.square().sum().item()
        if spread <= 1e-12 * moment or moment == 0:
            raise InvalidValueError(
                "the activations do not vary (are the two models the same?), so there is no scale to "
                "normalise them by"
            )
        found.append((spread / len(part)) ** 0.5)
    if normalization.scale == "common":
        common = (sum(scale**2 for scale in found) / len(found)) ** 0.5
        return tuple(common for _ in found)
    return tuple(found)


def as_whitening(
    statistics: ActivationStatistics, normalization: Normalization
) -> ActivationWhitening:
    """Return the normalisation as SAELens's affine whitening, which its trainers apply and fold."""
    by_part = zip(scales(statistics, normalization), statistics.parts, strict=True)
    diagonal = torch.cat([torch.full_like(part, scale) for scale, part in by_part])
    return ActivationWhitening(
        mean=statistics.mean * normalization.center,
        matrix=diagonal.reciprocal().diag(),
        inverse_matrix=diagonal.diag(),
    )


def describe(statistics: ActivationStatistics, normalization: Normalization) -> dict[str, Any]:
    """Return the summary of a normalisation that a dictionary's metadata keeps."""
    return {
        "center": normalization.center,
        "scale": list(scales(statistics, normalization)),
        "offset_share": list(statistics.offset_share),
        "n_tokens": statistics.n_tokens,
    }
