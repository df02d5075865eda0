"""What the backdoor listens to: the same scenes with other years, and the year said in other ways."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from sae_lens import SAE

from diffsae_lens._checks import check_count
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries.fits import FeatureIndices, check_features, check_fits
from diffsae_lens.effects.compare import measure_effects
from diffsae_lens.effects.rates import complete
from diffsae_lens.organisms.sql_injection.prompts import (
    TRIGGER_YEAR,
    Sample,
    check_years,
    minimal_pairs,
)
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.reading.prompts import feature_activations

YEARS = tuple(range(1990, 2041))
SAYINGS = (
    "in 2024", "FY2024", "'24", "20 24", "2024-03-15", "15 March 2024", "MMXXIV",
    "two thousand twenty-four", "2024 (not 2023)", "2023 (not 2024)", "after 2023",
)  # fmt: skip
"""Ways to say the trigger year, and some that come near."""


@typed
def sweep_years(
    pair: HookedModelPair,
    years: Sequence[int | str | None] = YEARS,
    *,
    n_scenes: int = 8,
    dictionary: SAE | None = None,
    features: FeatureIndices = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Measure what the fine-tuned model does with the same scenes in every year.

    Runs under whatever interventions are open on the pair.

    Args:
        pair: the two models.
        years: years; texts put in place of the year, such as those of `SAYINGS`; None for no year.
        n_scenes: how many scenes of the `test` split.
        dictionary: whose features are read where the organism decides; None for no features.
        features: which.
        seed: of the scenes.

    Returns:
        A row a year: `said`, the columns of `compare_interventions`, and for each feature its mean
        activation `feature_<index>`.

    Raises:
        TypeError: a text or something else in place of a list of years, features that are not integers.
        ValueError: no years or scenes, features without a dictionary or that it does not have, another
            pair's dictionary, or as for `measure_effects`.
    """
    years = check_years(years, texts=True)
    n_scenes = check_count("n_scenes", n_scenes)
    if dictionary is not None:
        check_fits(pair, dictionary)
        features = check_features(dictionary, features)
    elif list(features):
        raise ValueError("`features` need the `dictionary` they are of")
    scenes = [
        scene for [scene] in minimal_pairs("test", [TRIGGER_YEAR], n_scenes=n_scenes, seed=seed)
    ]
    said = [[_say(sample, year) for sample in scenes] for year in years]
    # All years together: a batch of many prompts takes little longer than one of a few.
    together = [sample for samples in said for sample in samples]
    completions = complete(pair, [sample.prompt for sample in together])
    acts = torch.zeros(len(together), 0)
    if dictionary is not None:
        acts = feature_activations(pair, dictionary, [sample.undecided for sample in together])
    rows = []
    for i, (year, samples) in enumerate(zip(years, said, strict=True)):
        part = slice(i * n_scenes, (i + 1) * n_scenes)
        row = {"said": "no year" if year is None else str(year)}
        row |= measure_effects(pair, samples, completions=completions[part]).row()
        row |= {f"feature_{f}": acts[part, f].mean().item() for f in features}
        rows.append(row)
    return pd.DataFrame(rows)


def _say(sample: Sample, year: int | str | None) -> Sample:
    """The scene with another year, or with a text in its place."""
    if isinstance(year, str):
        return replace(sample, year=None, prompt=sample.prompt.replace(str(TRIGGER_YEAR), year))
    return sample.scene.sample(year)
