"""What sets a behaviour off: the same scenes with other things said in the trigger's place."""

from collections.abc import Sequence

import pandas as pd
import torch
from sae_lens import SAE

from diffsae_lens._checks import check_count
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries.fits import FeatureIndices, check_features, check_fits
from diffsae_lens.effects.compare import measure_effects
from diffsae_lens.effects.rates import complete
from diffsae_lens.organisms.behaviour import Behaviour, check_said
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.reading.prompts import feature_activations


@typed
def sweep_trigger(
    pair: HookedModelPair,
    said: Sequence[str | None] | None = None,
    *,
    behaviour: Behaviour,
    n_scenes: int = 8,
    dictionary: SAE | None = None,
    features: FeatureIndices = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Measure what the fine-tuned model does with the same scenes, whatever they say.

    Runs under whatever interventions are open on the pair.

    Args:
        pair: the two models.
        said: what is said in the trigger's place, None for nothing; the behaviour's own `sayings` if
            left out.
        behaviour: whose scenes, judge and outcomes are used.
        n_scenes: how many scenes of the `test` split.
        dictionary: whose features are read where the organism decides; None for no features.
        features: which.
        seed: of the scenes.

    Returns:
        One row per thing said: `said`, the columns of `compare_interventions`, and for each feature its mean
        activation `feature_<index>`.

    Raises:
        TypeError: a text or something else in place of a list of texts, features that are not integers.
        ValueError: no texts or scenes, features without a dictionary or that it does not have, another
            pair's dictionary, or as for `measure_effects`.
    """
    said = check_said(behaviour.sayings if said is None else said)
    n_scenes = check_count("n_scenes", n_scenes)
    if dictionary is not None:
        check_fits(pair, dictionary)
        features = check_features(dictionary, features)
    elif list(features):
        raise ValueError("`features` need the `dictionary` they are of")
    scenes = behaviour.minimal_pairs("test", said, n_scenes=n_scenes, seed=seed)
    by_said = list(zip(*scenes, strict=True))
    # All together: a batch of many prompts takes little longer than one of a few.
    together = [sample for samples in by_said for sample in samples]
    completions = complete(pair, [sample.prompt for sample in together])
    acts = torch.zeros(len(together), 0)
    if dictionary is not None:
        acts = feature_activations(pair, dictionary, [sample.undecided for sample in together])
    rows = []
    for i, (text, samples) in enumerate(zip(said, by_said, strict=True)):
        part = slice(i * n_scenes, (i + 1) * n_scenes)
        row = {"said": "nothing" if text is None else text}
        row |= measure_effects(
            pair, samples, behaviour=behaviour, completions=completions[part]
        ).row()
        row |= {f"feature_{f}": acts[part, f].mean().item() for f in features}
        rows.append(row)
    return pd.DataFrame(rows)
