"""Texts on which a feature fires and is silent, token by token: the input for labels and dashboards."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens import SAE

from diffsae_lens._checks import check_count
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._tensor_checks import shown
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import FeatureIndices, check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.reading._tokens import example_at, token_activations
from diffsae_lens.results import FeatureCard, FeatureExample


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """How much evidence to collect per feature."""

    n_fires: int = 10
    """Maximum number of texts it fires on: those on which it fires most."""
    n_silent: int = 10
    """Maximum number of texts it does not fire on, drawn at random."""
    context: int = 15
    """Tokens on either side of the token it fires on most, or of a random one."""
    seed: int = 0
    """Seed of the random draws."""

    def __post_init__(self) -> None:
        """Refuse values that are not counts."""
        check_count("n_fires", self.n_fires)
        for name in ("n_silent", "context", "seed"):
            check_count(name, getattr(self, name), at_least=0)


@dataclass(frozen=True, kw_only=True)
class FeatureEvidence:
    """One feature of a dictionary with texts it fires on and texts it does not."""

    dictionary: str
    feature: int
    layer: int | None = None
    regime: str | None = None
    frequency: float
    """Share of tokens on which it fires."""
    fires: tuple[FeatureExample, ...]
    """Examples of texts it fires on, strongest first, one per text."""
    silent: tuple[FeatureExample, ...] = ()

    @classmethod
    def of_card(cls, card: FeatureCard) -> "FeatureEvidence":
        """Make evidence of a study's card, which has no silent texts."""
        examples = (FeatureExample.from_dict(example) for example in card.examples)
        return cls(
            dictionary=card.dictionary,
            feature=card.feature,
            layer=card.layer,
            regime=card.regime,
            frequency=card.frequency,
            fires=tuple(examples),
        )

    @property
    def id(self) -> str:
        """The feature's name in requests, answers and labels."""
        return feature_id(self)


def feature_id(row: FeatureEvidence | FeatureCard) -> str:
    """Return a feature's name: its dictionary, its layer and regime if set, and its index."""
    layer = None if row.layer is None else f"layer {row.layer}"
    parts = (row.dictionary, layer, row.regime, f"feature {row.feature}")
    return ", ".join(part for part in parts if part)


@typed
def feature_evidence(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    texts: Sequence[Text],
    *,
    name: str = "dictionary",
    config: EvidenceConfig | None = None,
) -> tuple[FeatureEvidence, ...]:
    """Collect texts that features fire on and texts that they do not fire on.

    Special tokens and tokens that the dictionary was not trained on stay in the text with an activation
    of 0. All activations of the features are held in memory: use a few hundred features, not all of them.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: indices of the features.
        texts: texts or conversations that the dictionary was not trained on.
        name: the dictionary's name in labels.
        config: how much evidence to collect.

    Returns:
        Evidence for each feature, in the order given.

    Raises:
        TypeError: features that are not integers, or `texts` that are not a list of texts.
        ValueError: no texts or features, a text that is empty or beyond the context, a feature that does
            not exist, another pair's dictionary, or only special and leading tokens.
    """
    if not isinstance(name, str) or not name:
        raise InvalidTypeError(f"`name` must be what the dictionary is called, got {shown(name)}")
    config = config or EvidenceConfig()
    read = token_activations(pair, dictionary, features, texts)
    tokenised = pair.tokenise(texts)
    policy = DictionaryRecord.of(dictionary).tokens.and_ignoring(pair.tokenizer.all_special_ids)
    counted = policy.counted(tokenised.tokens, tokenised.positions)
    if not counted.any():
        raise InvalidValueError(
            "`texts` holds nothing but special and leading tokens; give longer texts"
        )
    kept = [counted[i, : len(acts)] for i, acts in enumerate(read.activations)]
    values = [acts * k[:, None] for acts, k in zip(read.activations, kept, strict=True)]
    hook = check_fits(pair, dictionary)
    found = []
    for column, feature in enumerate(read.features):
        rng = random.Random(f"{config.seed}, {feature}")
        own = [value[:, column] for value in values]
        peaks = [value.max().item() for value in own]
        firing = sorted((i for i, p in enumerate(peaks) if p > 0), key=lambda i: -peaks[i])
        silent = [i for i, p in enumerate(peaks) if p <= 0 and kept[i].any()]
        drawn = rng.sample(silent, min(config.n_silent, len(silent)))
        places = [(i, int(own[i].argmax())) for i in firing[: config.n_fires]]
        places += [(i, rng.choice(kept[i].nonzero()[:, 0].tolist())) for i in drawn]
        shown_texts = [
            example_at(read.tokens[i], own[i], at, context=config.context) for i, at in places
        ]
        found.append(
            FeatureEvidence(
                dictionary=name,
                feature=feature,
                layer=hook.layer,
                frequency=sum(int((value > 0).sum()) for value in own) / int(counted.sum()),
                fires=tuple(shown_texts[: len(shown_texts) - len(drawn)]),
                silent=tuple(shown_texts[len(shown_texts) - len(drawn) :]),
            )
        )
    return tuple(found)
