"""Attack rates as curves: over the number of features ablated, and over the dose of steering."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from diffsae_lens._checks import check_choice, check_count, check_indices, check_number
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries.decoding import decoder_rows, restores_norms
from diffsae_lens.dictionaries.fits import FeatureIndices, check_features, check_fits
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.effects.compare import compare_interventions
from diffsae_lens.effects.scales import ActivationScales
from diffsae_lens.interventions.chosen import feature_indices
from diffsae_lens.interventions.directions import add_direction
from diffsae_lens.interventions.features import ablate_features
from diffsae_lens.interventions.side_by_side import Intervene
from diffsae_lens.organisms.behaviour import Sample
from diffsae_lens.pair.hooked import HookedModelPair


@typed
def ablation_curve(
    pair: HookedModelPair,
    dictionary: SAE,
    orders: Mapping[str, FeatureIndices],
    samples: Sequence[Sample],
    *,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Measure the attack rate against the number of features ablated, for several orders of them.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        orders: by name, features in the order they are taken: by attribution, at random, ...
        samples: of one or more groups.
        counts: how many are ablated; none is measured too.
        **generate_kwargs: passed to `compare_interventions`.

    Returns:
        A row for each order, number and group, with the columns of `compare_interventions`, `order`
        and `n_features` in place of `name`. `curve_area` sums it up.

    Raises:
        TypeError, ValueError: no orders, features that `ablate_features` refuses, counts below 1,
            repeated or beyond the shortest order, or as for `compare_interventions`.
    """
    listed = {
        name: check_features(dictionary, order, name=f"orders[{name!r}]")
        for name, order in orders.items()
    }
    shortest = min((len(order) for order in listed.values()), default=0)
    counts = check_indices("counts", counts, dictionary.cfg.d_sae + 1)
    if not counts or min(counts) < 1 or max(counts) > shortest:
        raise ValueError(
            f"`counts` must lie between 1 and the {shortest} features of the shortest of `orders`, "
            f"got {counts}"
        )
    view = check_fits(pair, dictionary).spec
    for name, order in listed.items():
        feature_indices(dictionary, order, view=view, name=f"orders[{name!r}]")
    opened = {
        f"{name}, {n}": partial(ablate_features, pair, dictionary, order[:n])
        for name, order in listed.items()
        for n in counts
    }
    frame = compare_interventions(pair, opened, samples, **generate_kwargs)
    parts = [
        frame[frame.name == (f"{name}, {n}" if n else "unmodified")].assign(
            order=name, n_features=n
        )
        for name in listed
        for n in (0, *counts)
    ]
    curve = pd.concat(parts, ignore_index=True)
    return curve.loc[:, ["order", "n_features", *frame.columns.drop("name")]]


@typed
def curve_area(curve: pd.DataFrame, *, group: str = "trigger") -> pd.Series:
    """Return the mean attack rate under each order's curve, 0 to 1: low where few features suffice.

    The area by trapezoids over the number of features, divided by the greatest number.

    Args:
        curve: of `ablation_curve`.
        group: one of the groups in it.

    Raises:
        ValueError: a table of something else, or a group that does not occur.
    """
    missing = {"order", "n_features", "group", "attack_rate"} - set(curve.columns)
    if missing:
        raise ValueError(f"`curve` must be one of `ablation_curve`, got none of {sorted(missing)}")
    check_choice("group", group, curve.group.unique().tolist())
    areas = {}
    for order, rows in curve.loc[curve.group == group].groupby("order", sort=False):
        rows = rows.sort_values(by="n_features")
        areas[order] = np.trapezoid(rows.attack_rate, rows.n_features) / rows.n_features.max()
    return pd.Series(areas, name="area", dtype=float)


@typed
def dose_response(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    samples: Sequence[Sample],
    *,
    scales: ActivationScales,
    doses: Sequence[int | float] = (0.5, 1, 2, 4),
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Steer with features at several strengths, and with a random direction as long.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: steered with together.
        samples: prompts to be completed, such as benign ones.
        scales: of prompts on which the features fire; see `activation_scales`.
        doses: in units of each feature's own maximum.
        **generate_kwargs: passed to `compare_interventions`.

    Returns:
        A row for each dose and group, with the columns of `compare_interventions`, `direction`
        (`features` or `random`) and `dose` in place of `name`.

    Raises:
        TypeError, ValueError: doses that are not finite numbers or are repeated, features that never
            fired in `scales`, or as for `steer` and `compare_interventions`.
    """
    doses = [check_number("doses", dose) for dose in doses]
    if not doses or len(set(doses)) != len(doses):
        raise ValueError(f"`doses` must be one or more, none of them repeated, got {doses}")
    features = check_features(dictionary, features, allow_empty=False)
    tried: dict[str, tuple[str, int | float]] = {"unmodified": ("features", 0)}
    opened = {}
    for dose in doses:
        steering = steering_pair(pair, dictionary, features, scales, dose=dose)
        for direction, intervene in steering.items():
            name = f"{direction} at dose {dose:g}"
            tried[name], opened[name] = (direction, dose), intervene
    frame = compare_interventions(pair, opened, samples, **generate_kwargs)
    frame.insert(0, "direction", [tried[name][0] for name in frame.name])
    frame.insert(1, "dose", [float(tried[name][1]) for name in frame.name])
    return frame.drop(columns="name")


def steering_pair(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    scales: ActivationScales,
    *,
    dose: int | float = 1,
    seed: int = 0,
) -> dict[str, Intervene]:
    """Return how to steer with features at their maximum, and with a random direction as long.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: steered with together.
        scales: of prompts on which the features fire; see `activation_scales`.
        dose: in units of each feature's own maximum.
        seed: of the random direction.

    Returns:
        `features` and `random`: each opens its intervention.

    Raises:
        TypeError: features or a dose that are not numbers.
        ValueError: features that never fired in `scales`, scales of another dictionary, or one that gives
            every token its own norm back, so that no one direction is as long; use `steer` for that.
    """
    dose = check_number("dose", dose)
    seed = check_count("seed", seed, at_least=0)
    hook = check_fits(pair, dictionary)
    index = feature_indices(dictionary, features, view=hook.spec)
    if len(scales.maximum) != dictionary.cfg.d_sae or restores_norms(dictionary):
        raise ValueError(
            f"`scales` must be of the dictionary's {dictionary.cfg.d_sae} features, and it must write as "
            f"much on every token, got {len(scales.maximum)} features and `normalize_activations="
            f"{dictionary.cfg.normalize_activations!r}`"
        )
    maximum = scales.maximum[index.cpu()]
    if not len(index) or not maximum.all():
        raise ValueError(
            "`features` must name some that fire on the prompts of `scales`, or their maximum is not a "
            f"unit, got {index.tolist()}"
        )
    written = dose * maximum.to(dictionary.W_dec) @ decoder_rows(dictionary)[index]
    written = hook.spec.writes(written, "finetuned").detach()
    noise = torch.randn(len(written), generator=torch.Generator().manual_seed(seed)).to(written)
    policy = DictionaryRecord.of(dictionary).tokens
    directions = {
        "features": written,
        "random": noise * written.norm() / noise.norm(),
    }
    return {
        name: partial(
            add_direction, pair, hook.with_view("finetuned").name, direction, **vars(policy)
        )
        for name, direction in directions.items()
    }
