"""How strongly features fire on given prompts: units for steering, equals for controls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.evaluation.activations import batches_of, tokenise
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits, skip_positions
from diffsae_lens.training.harvest import stop_layer


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationScales:
    """Each feature's activation over the tokens of some prompts, `[d_sae]`, in its own units."""

    maximum: Float[Tensor, "d_sae"]
    typical: Float[Tensor, "d_sae"]
    """Mean over the tokens on which it fires; 0 where it never does."""
    frequency: Float[Tensor, "d_sae"]
    """Share of the tokens on which it fires."""
    decoder_norm: Float[Tensor, "d_sae"]
    """Of what a feature of activation 1 writes in the fine-tuned model."""

    @property
    def mass(self) -> Float[Tensor, "d_sae"]:
        """Mean length of what a feature writes, over all tokens."""
        return self.typical * self.frequency * self.decoder_norm

    @property
    def live(self) -> list[int]:
        """Features that fire at all."""
        return self.frequency.nonzero().flatten().tolist()


@torch.no_grad()
def activation_scales(
    pair: HookedModelPair, dictionary: SAE, prompts: Sequence[str]
) -> ActivationScales:
    """Measure how strongly and how often every feature fires on the tokens of prompts.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        prompts: texts; padding and the leading tokens the dictionary was not trained on are left out.

    Returns:
        The scales, on the CPU.

    Raises:
        ValueError: no prompts, or a dictionary of another pair.
    """
    d_sae = dictionary.cfg.d_sae
    maximum, total, fired = torch.zeros(3, d_sae)
    n_tokens = 0
    for codes in token_codes(pair, dictionary, prompts):
        maximum = torch.maximum(maximum, codes.amax(0))
        total += codes.sum(0)
        fired += (codes > 0).sum(0)
        n_tokens += len(codes)
    if n_tokens == 0:
        raise ValueError("no token of `prompts` is left after the leading ones that are skipped")
    return ActivationScales(
        maximum=maximum,
        typical=total / fired.clamp(min=1),
        frequency=fired / n_tokens,
        decoder_norm=dictionary.W_dec[:, -pair.cfg.d_model :].norm(dim=-1).float().cpu(),
    )


@torch.no_grad()
def token_codes(
    pair: HookedModelPair, dictionary: SAE, prompts: Sequence[str]
) -> Iterator[Float[Tensor, "token d_sae"]]:
    """Encode every token of the prompts that counts; batches of tokens, on the CPU."""
    hook_name = check_fits(pair, dictionary)
    if not prompts:
        raise ValueError("`prompts` is empty")
    for _, texts in batches_of(prompts, 16, "reading features"):
        tokens, attended, _ = tokenise(pair, texts)
        _, cache = pair.run_with_cache(
            tokens.to(pair.device), names_filter=[hook_name], stop_at_layer=stop_layer([hook_name])
        )
        attended[:, : skip_positions(dictionary)] = False
        yield dictionary.encode(cache[hook_name][attended.to(pair.device)]).float().cpu()


def matched_features(
    scales: ActivationScales, features: Sequence[int], *, n_draws: int = 1, seed: int = 0
) -> list[list[int]]:
    """Draw live features that write about as much as the given ones, as their control.

    Each feature gets a random one of the unused five whose mass is nearest to its own.

    Args:
        scales: of the prompts the features act on.
        features: those to be matched; they are never drawn.
        n_draws: how many control sets.
        seed: of the draws.

    Returns:
        `n_draws` lists of `len(features)` features.

    Raises:
        ValueError: fewer other live features than `features`.
    """
    generator = torch.Generator().manual_seed(seed)
    others = sorted(set(scales.live) - set(features))
    if len(others) < len(features):
        raise ValueError(
            f"only {len(others)} other features are live, too few to match {len(features)}; measure "
            "the scales on more prompts, or match fewer"
        )
    draws = []
    for _ in range(n_draws):
        left = list(others)
        drawn = []
        for feature in features:
            distance = (scales.mass[left] - scales.mass[feature]).abs()
            nearest = distance.argsort()[:5]
            pick = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
            drawn.append(left.pop(pick))
        draws.append(drawn)
    return draws
