"""The strongest features one by one: where they fire, which model they belong to, what each does alone."""

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.dictionaries._decoding import decoder_halves
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._ablation import ablation_effects
from diffsae_lens.effects._attribution import attribute_features
from diffsae_lens.measures._geometry import (
    decoder_cosine,
    relative_decoder_norm,
)
from diffsae_lens.organisms._behaviour import GROUPS, Sample
from diffsae_lens.reading._tokens import TokenActivations, example_at, token_activations
from diffsae_lens.results import FeatureCard
from diffsae_lens.study._causes import chosen_features
from diffsae_lens.study._cells import Job
from diffsae_lens.study._parts import CardsConfig
from diffsae_lens.study._step import Inputs, Step, load_dictionaries, write_rows

N_BINS = 12
N_EXAMPLES = 3
CONTEXT = 30
"""Tokens shown on either side of the token on which a feature fires most."""


def make_cards(step: Step[CardsConfig], inputs: Inputs, job: Job) -> None:
    """Describe the features with the largest effect on the behaviour, a few per dictionary.

    They were chosen on `select` samples, and are read and ablated on `test` samples, together with a random
    feature of the same activation mass as the first.
    """
    pair, config = step.pair(inputs, job), step.config
    dictionaries = load_dictionaries(inputs, pair=pair)
    samples = config.texts.samples(step.behaviour)
    triggers = [s for s in samples if s.group == "trigger"][: config.n_likelihood]
    cards: list[FeatureCard] = []
    for name, chosen in chosen_features(inputs, dictionaries).items():
        dictionary = dictionaries[name]
        features = [*chosen.top[: config.n_features], chosen.matched[0]]
        read = token_activations(pair, dictionary, features, [s.written for s in samples])
        attribution = attribute_features(pair, dictionary, triggers)[features].tolist()
        ablation = ablation_effects(pair, dictionary, features, triggers).tolist()
        skip = DictionaryRecord.of(dictionary).tokens.skip_positions
        cards += [
            FeatureCard(
                dictionary=name,
                layer=step.layer,
                feature=feature,
                control_of=chosen.top[0] if column == len(features) - 1 else None,
                n_prompts=len(triggers),
                d_sae=dictionary.cfg.d_sae,
                **_where(samples, read, column, skip),
                decoder=_geometry(dictionary, feature),
                attribution=attribution[column],
                ablation=ablation[column],
            )
            for column, feature in enumerate(features)
        ]
    write_rows(job, cards=cards)


def _where(
    samples: Sequence[Sample], read: TokenActivations, column: int, skip: int
) -> dict[str, Any]:
    """Return how often and on what a feature fires, without leading tokens."""
    values = [acts[skip:, column] for acts in read.activations]
    together = torch.cat(values)
    maximum = together.max().item()
    histogram = {
        group: _histogram([v for s, v in zip(samples, values, strict=True) if s.group == group], maximum)
        for group in GROUPS
    }  # fmt: skip
    strongest = sorted(range(len(values)), key=lambda i: -values[i].max().item())[:N_EXAMPLES]
    examples = [
        example_at(
            read.tokens[i],
            read.activations[i][:, column],
            skip + int(values[i].argmax()),
            context=CONTEXT,
            group=samples[i].group,
            start=skip,
        )
        for i in strongest
        if values[i].max() > 0
    ]
    return {
        "frequency": (together > 0).float().mean().item(),
        "maximum": maximum,
        "histogram": histogram,
        "examples": [example.as_dict() for example in examples],
    }


def _histogram(values: Sequence[Tensor], maximum: float) -> list[float]:
    """Return the share of tokens in each bin above 0."""
    together = torch.cat(list(values)) if values else torch.zeros(0)
    active = together[together > 0]
    if not len(active):
        return [0.0] * N_BINS
    return (active.histc(N_BINS, 0.0, maximum) / len(together)).tolist()


def _geometry(dictionary: SAE, feature: int) -> dict[str, float]:
    if not DictionaryRecord.of(dictionary).is_crosscoder:
        return {"decoder norm": dictionary.W_dec[feature].norm().item()}
    halves = decoder_halves(dictionary)
    return {
        "relative decoder norm (0 base, 1 fine-tuned)": relative_decoder_norm(*halves)[feature].item(),
        "cosine of its decoder rows": decoder_cosine(*halves)[feature].item(),
    }  # fmt: skip
