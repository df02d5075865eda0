"""The demo's strongest features one by one: where they fire, whose they are, what each alone does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.effects.likelihood import ablation_effects, attribute_features
from diffsae_lens.measures.geometry import (
    decoder_cosine,
    decoder_halves,
    relative_decoder_norm,
)
from diffsae_lens.organisms.behaviour import GROUPS, Sample
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.reading.tokens import TokenActivations, token_activations
from diffsae_lens.study.causes import chosen_features, of_last_layer
from diffsae_lens.study.parts import Parts

if TYPE_CHECKING:
    from diffsae_lens.study.demo import DemoConfig

N_CARDS = 3
"""Features of each dictionary."""
N_TEXTS = 12
"""Texts of the `test` split they are read on: as many of each group."""
N_BINS = 12
N_EXAMPLES = 3
CONTEXT = 30
"""Tokens shown on either side of where a feature fires most."""


def feature_cards(
    pair: HookedModelPair, dictionaries: Mapping[str, SAE], config: "DemoConfig", cells: Parts
) -> list[dict[str, Any]]:
    """Describe the features with the most effect on the attack, three of each dictionary.

    They were chosen on `select` samples and are read and ablated on `test` ones; a random feature of the
    same activation mass stands beside them.

    Returns:
        One row per feature: `dictionary`, `feature`, `is_control`, `n_prompts` (for its effect),
        `d_sae`, `frequency` (share of tokens it fires on), `maximum`, `histogram` (by group of
        prompts, the share of tokens in each of so many equal bins above 0), `examples` (each with its
        `group`, the number `start` of its first token, `tokens` and their `activations`), `decoder`
        (geometry, by name), `attribution` and `ablation`: what the feature adds to the log-odds of
        the attack, estimated, and measured with it alone ablated (nats a prompt).
    """
    samples = config.samples("test", N_TEXTS, by=(1, 1, 1))
    triggers = [s for s in samples if s.group == "trigger"][: config.n_likelihood_prompts]
    cards = []
    for name, dictionary in of_last_layer(dictionaries, config).items():
        chosen = chosen_features(pair, name, dictionary, config, cells)
        most = str(chosen["counts"][-1])
        features = chosen["top"][most][:N_CARDS] + chosen["random"][most][:1]
        read = token_activations(pair, dictionary, features, [s.written for s in samples])
        attribution = attribute_features(pair, dictionary, triggers)[features].tolist()
        ablation = ablation_effects(pair, dictionary, features, triggers).tolist()
        skip = DictionaryRecord.of(dictionary).tokens.skip_positions
        cards += [
            {
                "dictionary": name,
                "feature": feature,
                "is_control": column == len(features) - 1,
                "n_prompts": len(triggers),
                "d_sae": dictionary.cfg.d_sae,
                **_where(samples, read, column, skip),
                "decoder": _geometry(dictionary, feature),
                "attribution": attribution[column],
                "ablation": ablation[column],
            }
            for column, feature in enumerate(features)
        ]
    return cards


def _where(
    samples: Sequence[Sample], read: TokenActivations, column: int, skip: int
) -> dict[str, Any]:
    """How often and on what a feature fires, leading tokens left out."""
    values = [acts[skip:, column] for acts in read.activations]
    together = torch.cat(values)
    maximum = together.max().item()
    histogram = {
        group: _histogram([v for s, v in zip(samples, values, strict=True) if s.group == group], maximum)
        for group in GROUPS
    }  # fmt: skip
    strongest = sorted(range(len(values)), key=lambda i: -values[i].max().item())[:N_EXAMPLES]
    return {
        "frequency": (together > 0).float().mean().item(),
        "maximum": maximum,
        "histogram": histogram,
        "examples": [
            _example(samples[i], read.tokens[i][skip:], values[i], skip)
            for i in strongest
            if values[i].max() > 0
        ],
    }


def _histogram(values: Sequence[Tensor], maximum: float) -> list[float]:
    """The share of tokens in each bin above 0."""
    together = torch.cat(list(values)) if values else torch.zeros(0)
    active = together[together > 0]
    if not len(active):
        return [0.0] * N_BINS
    return (active.histc(N_BINS, 0.0, maximum) / len(together)).tolist()


def _example(sample: Sample, tokens: Sequence[str], values: Tensor, skip: int) -> dict[str, Any]:
    at = int(values.argmax())
    window = slice(max(0, at - CONTEXT), at + CONTEXT + 1)
    return {
        "group": sample.group,
        "start": skip + window.start,
        "tokens": list(tokens[window]),
        "activations": values[window].tolist(),
    }


def _geometry(dictionary: SAE, feature: int) -> dict[str, float]:
    if not DictionaryRecord.of(dictionary).is_crosscoder:
        return {"decoder norm": dictionary.W_dec[feature].norm().item()}
    halves = decoder_halves(dictionary)
    return {
        "relative decoder norm (0 base, 1 fine-tuned)": relative_decoder_norm(*halves)[feature].item(),
        "cosine of its decoder rows": decoder_cosine(*halves)[feature].item(),
    }  # fmt: skip
