"""How few features carry a behaviour: the shortest prefix of a ranking whose ablation ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from sae_lens import SAE

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, Count, NotNegative, Share, ShareBelow1, typed
from diffsae_lens.dictionaries._fits import FeatureIndices, check_features, check_fits
from diffsae_lens.effects._likelihood import check_scored, likelihoods
from diffsae_lens.effects._rates import attack_rate
from diffsae_lens.interventions._chosen import feature_indices
from diffsae_lens.interventions._features import ablate_features
from diffsae_lens.interventions._run import check_generation, complete
from diffsae_lens.organisms._behaviour import Behaviour, Sample
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.results import Table, TrialRow


@dataclass(frozen=True, kw_only=True)
class Bounds(Checked):
    """What a minimal set must reach, what it may cost, and how large it may be."""

    max_attack_rate: ShareBelow1 = 0.05
    """Attack rate on trigger prompts, with the features ablated."""
    min_defence_rate: Share = 0.9
    """Share of trigger prompts with the wanted outcome; broken output does not count."""
    max_harm: NotNegative = 0.05
    """Relative rise of the cross-entropy of the wanted completion on benign prompts."""
    max_features: Count = 64
    """Length of the longest prefix tried."""


@dataclass(frozen=True, kw_only=True)
class MinimalSet:
    """The fewest leading features whose ablation ends the behaviour, and the trials that found them."""

    features: tuple[int, ...] | None
    """The features; None if no prefix tried meets the bounds."""
    trials: Table[TrialRow]
    """In ascending number of features; the first ablates none."""
    bounds: Bounds

    def to_frame(self) -> pd.DataFrame:
        """Return the trials as a table, one row per trial."""
        return self.trials.to_frame()


@typed
def minimal_feature_set(
    pair: HookedModelPair,
    dictionary: SAE,
    order: FeatureIndices,
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    bounds: Bounds | None = None,
) -> MinimalSet:
    """Find the shortest prefix of `order` whose ablation meets the bounds.

    The prefix is doubled until it meets the bounds, then bisected between the last two. That assumes the
    attack rate falls as features are added, which the trials confirm or refute. Choose on `select`
    samples and report on `test` ones: the set is the best of several tries.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        order: features by decreasing importance, such as by `attribute_features`.
        samples: trigger and benign prompts.
        behaviour: the behaviour whose judge and outcomes are used.
        bounds: bounds to meet; by default an attack rate of at most 5%, the wanted outcome after 90% of
            the trigger prompts, at most 5% more benign cross-entropy, and at most 64 features.

    Returns:
        The set and every trial.

    Raises:
        TypeError: features that are not integers, or samples of another type.
        ValueError: no trigger or no benign samples, some beyond the context, an empty `order` or one that
            `ablate_features` refuses, or a dictionary of another pair.
    """
    view = check_fits(pair, dictionary).spec
    order = check_features(dictionary, order, name="order", allow_empty=False)
    feature_indices(dictionary, order, view=view, name="order")
    samples = check_scored(pair, samples)
    bounds = bounds or Bounds()
    trigger = [sample for sample in samples if sample.group == "trigger"]
    benign = [sample for sample in samples if sample.group == "benign"]
    if not trigger or not benign:
        raise InvalidValueError(
            f"`samples` must hold trigger and benign ones, got {len(trigger)} and {len(benign)}; add "
            "what is missing"
        )
    prompts = check_generation(pair, [sample.prompt for sample in trigger], {})
    before = likelihoods(pair, benign).cross_entropy.mean().item()
    trials: dict[int, TrialRow] = {}

    def meets(n_features: int) -> bool:
        with ablate_features(pair, dictionary, order[:n_features]):
            rate = attack_rate(prompts, complete(pair, prompts), behaviour=behaviour)
            harm = likelihoods(pair, benign).cross_entropy.mean().item() / before - 1
        trials[n_features] = TrialRow(
            n_features=n_features,
            **rate.columns(),
            defence_rate=rate.defence_rate,
            harm=harm,
            meets=rate.rate <= bounds.max_attack_rate
            and rate.defence_rate >= bounds.min_defence_rate
            and harm <= bounds.max_harm,
        )
        return trials[n_features].meets

    best = 0 if meets(0) else _shortest(meets, min(bounds.max_features, len(order)))
    return MinimalSet(
        features=None if best is None else tuple(order[:best]),
        trials=Table(tuple(trials[n] for n in sorted(trials))),
        bounds=bounds,
    )


def _shortest(meets: Callable[[int], bool], limit: int) -> int | None:
    """Double the number of features, then bisect."""
    too_few, enough = 0, 1
    while not meets(enough):
        if enough == limit:
            return None
        too_few, enough = enough, min(2 * enough, limit)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if meets(middle) else (middle, enough)
    return enough
