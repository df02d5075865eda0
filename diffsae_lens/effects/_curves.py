"""Attack rates as curves: over the number of features ablated, and over the dose of steering."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from sae_lens import SAE

from diffsae_lens._checks import (
    check_choice,
    check_indices,
    check_items,
    check_list,
    check_number,
)
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Natural, Number, typed
from diffsae_lens.dictionaries._decoding import decoder_rows, restores_norms
from diffsae_lens.dictionaries._fits import FeatureIndices, check_features, check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._compare import compare_interventions
from diffsae_lens.effects._scales import ActivationScales
from diffsae_lens.interventions._chosen import feature_indices
from diffsae_lens.interventions._directions import add_direction
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.interventions._features import ablate_features
from diffsae_lens.organisms._behaviour import Behaviour, Sample
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.results import CurveRow, DoseRow, EffectRow, Table

R = TypeVar("R", bound=EffectRow)


@typed
def ablation_curve(
    pair: HookedModelPair,
    dictionary: SAE,
    orders: Mapping[str, FeatureIndices],
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    **generate_kwargs: Any,
) -> Table[CurveRow]:
    """Measure the attack rate against the number of features ablated, for several orders of them.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        orders: orders by name, each of features as they are ablated: by attribution, at random, ...
        samples: samples of one or more groups.
        behaviour: the behaviour whose judge and outcomes are used.
        counts: numbers of features to ablate; 0 is measured too.
        **generate_kwargs: passed to `compare_interventions`.

    Returns:
        One row per order, number and group. `curve_area` summarises it.

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
        raise InvalidValueError(
            f"`counts` must lie between 1 and the {shortest} features of the shortest of `orders`, "
            f"got {counts}"
        )
    view = check_fits(pair, dictionary).spec
    for name, order in listed.items():
        feature_indices(dictionary, order, view=view, name=f"orders[{name!r}]")
    edits = {
        (name, n): ablate_features(pair, dictionary, order[:n])
        for name, order in listed.items()
        for n in counts
    }
    measured = _measured(pair, edits, samples, behaviour=behaviour, **generate_kwargs)
    return Table(
        tuple(
            _extended(CurveRow, row, order=name)
            for name in listed
            for n in (0, *counts)
            for row in measured[(name, n) if n else None]
        )
    )


@typed
def curve_area(curve: Table[CurveRow], *, group: str = "trigger") -> dict[str, float]:
    """Return the mean attack rate under each order's curve, 0 to 1: low if few features suffice.

    The trapezoidal area over the number of features, divided by the largest number.

    Args:
        curve: from `ablation_curve`.
        group: one of the groups in it.

    Raises:
        TypeError: a table of other rows.
        ValueError: a group that does not occur in `curve`.
    """
    check_items("curve", curve, CurveRow)
    check_choice("group", group, dict.fromkeys(row.group for row in curve))
    rows = sorted(curve.where(group=group), key=lambda row: row.n_features)
    areas = {}
    for order in dict.fromkeys(row.order for row in curve.where(group=group)):
        counts, rates = zip(
            *((row.n_features, row.attack_rate) for row in rows if row.order == order), strict=True
        )
        areas[order] = float(np.trapezoid(rates, counts) / max(counts))
    return areas


@typed
def dose_response(
    pair: HookedModelPair,
    features: FeatureIndices,
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    scales: ActivationScales,
    doses: Sequence[int | float] = (0.5, 1, 2, 4),
    **generate_kwargs: Any,
) -> Table[DoseRow]:
    """Steer with features at several strengths, and with a random direction of equal length.

    Args:
        pair: the two models.
        features: features to steer with together.
        samples: prompts to complete, such as benign ones.
        behaviour: the behaviour whose judge and outcomes are used.
        scales: scales of the features' dictionary, on prompts on which they fire; see `activation_scales`.
        doses: strengths, in units of each feature's own maximum.
        **generate_kwargs: passed to `compare_interventions`.

    Returns:
        One row per direction, dose and group; those of dose 0 first.

    Raises:
        TypeError, ValueError: doses that are not finite numbers or are repeated, features that never
            fired in `scales`, or as for `steer` and `compare_interventions`.
    """
    doses = [check_number("doses", dose) for dose in check_list("doses", doses, "numbers")]
    if not doses or len(set(doses)) != len(doses):
        raise InvalidValueError(f"`doses` must be one or more, none of them repeated, got {doses}")
    features = check_features(scales.dictionary, features, allow_empty=False)
    edits = {
        (direction, float(dose)): edit
        for dose in doses
        for direction, edit in steering_pair(pair, features, scales, dose=dose).items()
    }
    measured = _measured(pair, edits, samples, behaviour=behaviour, **generate_kwargs)
    return Table(
        tuple(
            _extended(DoseRow, row, direction=direction, dose=dose)
            for key, rows in measured.items()
            for direction, dose in [key or ("features", 0.0)]
            for row in rows
        )
    )


def _measured(
    pair: HookedModelPair,
    edits: Mapping[tuple[str, Any], Edit],
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    **generate_kwargs: Any,
) -> dict[tuple[str, Any] | None, list[EffectRow]]:
    """The rows of each edit; those of the unmodified model are first, under None."""
    named = {f"{series}, {step}": (series, step) for series, step in edits}
    table = compare_interventions(
        pair,
        {name: edits[key] for name, key in named.items()},
        samples,
        behaviour=behaviour,
        **generate_kwargs,
    )
    return {
        named.get(name): list(table.where(name=name))
        for name in dict.fromkeys(row.name for row in table)
    }


def _extended(kind: type[R], row: EffectRow, **more: Any) -> R:
    """The row as a row type with additional fields."""
    return kind(**{field.name: getattr(row, field.name) for field in fields(row)}, **more)


@typed
def steering_pair(
    pair: HookedModelPair,
    features: FeatureIndices,
    scales: ActivationScales,
    *,
    dose: Number = 1,
    seed: Natural = 0,
) -> dict[str, Edit]:
    """Return edits that steer with features at their maximum, and with one random direction of equal length.

    Args:
        pair: the two models.
        features: features to steer with together.
        scales: scales of the features' dictionary, on prompts on which they fire; see `activation_scales`.
        dose: strength, in units of each feature's own maximum.
        seed: seed of the random direction.

    Returns:
        The edits `features` and `random`.

    Raises:
        TypeError: features or a dose that are not numbers.
        ValueError: features that never fired in `scales`, or a dictionary that restores each token's norm,
            so that no direction has that length everywhere; use `steer` for that.
    """
    dictionary = scales.dictionary
    hook = check_fits(pair, dictionary)
    index = feature_indices(dictionary, features, view=hook.spec)
    if restores_norms(dictionary):
        raise InvalidValueError(
            "`scales` must be of a dictionary that writes as much on every token, got one with "
            f"`normalize_activations={dictionary.cfg.normalize_activations!r}`; use `steer`"
        )
    maximum = scales.maximum[index.cpu()]
    if not len(index) or not maximum.all():
        raise InvalidValueError(
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
    edits = {
        name: add_direction(pair, hook.with_view("finetuned").name, direction, **vars(policy))
        for name, direction in directions.items()
    }
    return {name: replace(edit, n_features=len(index)) for name, edit in edits.items()}
