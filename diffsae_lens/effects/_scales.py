"""How strongly features fire on given prompts: units for steering, and matches for controls."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_indices
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Natural, typed
from diffsae_lens.dictionaries._decoding import decoder_rows
from diffsae_lens.dictionaries._fits import FeatureIndices, check_fits
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.reading._tokens import token_codes


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationScales:
    """Each feature's activation over the tokens of some prompts, `[d_sae]`, in its own units."""

    dictionary: SAE = field(repr=False)
    """The dictionary with the features."""
    maximum: Float[Tensor, "d_sae"]
    typical: Float[Tensor, "d_sae"]
    """Mean over the tokens on which it fires; 0 if it never does."""
    frequency: Float[Tensor, "d_sae"]
    """Share of the tokens on which it fires."""
    decoder_norm: Float[Tensor, "d_sae"]
    """Norm of what a feature with activation 1 writes in the fine-tuned model (see `decoder_rows`)."""

    @property
    def mass(self) -> Float[Tensor, "d_sae"]:
        """Mean length of what a feature writes, over all tokens."""
        return self.typical * self.frequency * self.decoder_norm

    @property
    def live(self) -> list[int]:
        """Features that fire at all."""
        return self.frequency.nonzero().flatten().tolist()


@torch.no_grad()
@typed
def activation_scales(
    pair: HookedModelPair, dictionary: SAE, prompts: Sequence[Text]
) -> ActivationScales:
    """Measure how strongly and how often every feature fires on the tokens of prompts.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        prompts: texts; padding and the tokens the dictionary was not trained on are left out.

    Returns:
        The scales, on the CPU.

    Raises:
        TypeError: `prompts` is not a list of texts.
        ValueError: no prompts, a prompt beyond the context, no token that counts, or a dictionary of
            another pair.
    """
    view = check_fits(pair, dictionary).spec
    maximum, total, fired = torch.zeros(3, dictionary.cfg.d_sae)
    n_tokens = 0
    for codes in token_codes(pair, dictionary, pair.tokenise(prompts, name="prompts")):
        maximum = torch.maximum(maximum, codes.amax(0))
        total += codes.sum(0)
        fired += (codes > 0).sum(0)
        n_tokens += len(codes)
    if n_tokens == 0:
        raise InvalidValueError(
            "`prompts` must hold tokens that the dictionary was trained on, got leading and special "
            "ones alone; give longer texts"
        )
    return ActivationScales(
        dictionary=dictionary,
        maximum=maximum,
        typical=total / fired.clamp(min=1),
        frequency=fired / n_tokens,
        decoder_norm=view.writes(decoder_rows(dictionary), "finetuned").norm(dim=-1).float().cpu(),
    )


@typed
def matched_features(
    scales: ActivationScales, features: FeatureIndices, *, seed: Natural = 0
) -> list[int]:
    """Draw live features that write about as much as the given ones, as their control.

    Each feature is matched with a random one of the five unused features nearest to it in mass.

    Args:
        scales: scales on the prompts that the features act on.
        features: features to match, each of which fires on the prompts; they are never drawn.
        seed: seed of the draw.

    Returns:
        `len(features)` features, each the control of the one at the same position in `features`.

    Raises:
        TypeError: features or a seed that are not integers.
        ValueError: features that do not exist, are repeated or never fire; or fewer other live features
            than `features`.
    """
    features = check_indices("features", features, len(scales.frequency))
    dead = [feature for feature in features if scales.frequency[feature] == 0]
    if dead:
        raise InvalidValueError(
            f"`features` {dead} never fire on the prompts of `scales`, so nothing is like them; leave "
            "them out, or measure the scales on prompts on which they fire"
        )
    generator = torch.Generator().manual_seed(seed)
    left = sorted(set(scales.live) - set(features))
    if len(left) < len(features):
        raise InvalidValueError(
            f"only {len(left)} other features are live, too few to match {len(features)}; measure "
            "the scales on more prompts, or match fewer"
        )
    drawn = []
    for feature in features:
        distance = (scales.mass[left] - scales.mass[feature]).abs()
        nearest = distance.argsort()[:5]
        pick = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        drawn.append(left.pop(pick))
    return drawn
