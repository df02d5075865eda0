"""Where the fine-tuned behaviour can be removed, by putting the base's activation back layer by layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from scipy.stats import sem, t
from torch import Tensor

from diffsae_lens._checks import check_texts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.effects._likelihood import check_scored, likelihoods
from diffsae_lens.effects._rates import AttackRate, attack_rate
from diffsae_lens.interventions._directions import perturb, swap_to_base
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.interventions._run import check_generation, complete
from diffsae_lens.organisms._behaviour import GROUPS, Behaviour, Sample
from diffsae_lens.pair._hook import layer_of
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.results import LayerRow, Table


@typed
def layer_sweep(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    sites: Sequence[str] | None = None,
    behaviour: Behaviour | None = None,
    batch_size: Count = 16,
    **generate_kwargs: Any,
) -> Table[LayerRow]:
    """Put the base model's activation back at one layer after another, before training anything.

    This removes the whole difference at the layer: a reference for what feature ablation there can do. For
    comparison, the table has the unmodified model, the base model itself, and each layer with a random
    change of the difference's length.

    Args:
        pair: the two models.
        samples: samples of one or more groups.
        sites: hook points that the pair was built for, such as `blocks.18.hook_resid_post`; all by default.
        behaviour: if given, prompts are also completed, and its judge counts the outcomes.
        batch_size: samples per forward pass, for log-odds.
        **generate_kwargs: passed to `complete`; only with `behaviour`.

    Returns:
        For each group, the rows of the two models as they are (`unmodified`, `base model`), then two per
        site, in the order of `sites` (`swap to base`, `random change`).

    Raises:
        TypeError, ValueError: no samples or sites, a site that the pair was not built for, arguments for
            completions without a `behaviour`, or as for `complete`.

    Examples:
        >>> sites = [f"blocks.{layer}.hook_resid_post" for layer in range(0, 30, 4)]  # doctest: +SKIP
        >>> pair = load_pair("smollm2-135m", "year-trigger", hook_names=sites)        # doctest: +SKIP
        >>> layer_sweep(pair, samples).to_frame()                                     # doctest: +SKIP
    """
    samples = check_scored(pair, samples)
    sites = check_texts("sites", pair.hook_names if sites is None else sites)
    if len(set(sites)) != len(sites):
        raise InvalidValueError(f"`sites` must name each hook once, got {sites}")
    under: dict[str, Edit | None] = {"unmodified": None}
    for site in sites:
        under[f"swap to base at {site}"] = swap_to_base(pair, site)
        under[f"random change at {site}"] = perturb(pair, site)
    if behaviour is None and generate_kwargs:
        raise InvalidValueError(
            f"{sorted(generate_kwargs)} have no effect without a `behaviour`, which judges completions"
        )
    check_generation(pair, [sample.prompt for sample in samples], generate_kwargs)
    rows = []
    for group in GROUPS:
        members = [sample for sample in samples if sample.group == group]
        if not members:
            continue
        measure = partial(_measure, members, behaviour, batch_size, generate_kwargs)
        found = measure(pair, under)
        base = measure(pair.mirrored(), {"base model": None})
        rows.append(_row(members, *found.pop("unmodified"), kind="unmodified"))
        rows.append(_row(members, *base["base model"], kind="base model"))
        for name, measured in found.items():
            kind, _, site = name.partition(" at ")
            rows.append(_row(members, *measured, kind=kind, site=site))
    return Table(tuple(rows))


def _measure(
    samples: Sequence[Sample],
    behaviour: Behaviour | None,
    batch_size: int,
    generating: Mapping[str, Any],
    pair: HookedModelPair,
    under: Mapping[str, Edit | None],
) -> dict[str, tuple[Tensor, AttackRate | None]]:
    """The log-odds under each edit and, given a behaviour, the rate of what the model writes."""
    scored = likelihoods(pair, samples, under=under, batch_size=batch_size)
    rates: dict[str, AttackRate] = {}
    if behaviour is not None:
        prompts = [sample.prompt for sample in samples]
        for name, written in complete(pair, prompts, under=under, **generating).items():
            rates[name] = attack_rate(prompts, written, behaviour=behaviour)
    return {name: (scored[name].log_odds, rates.get(name)) for name in under}


def _row(
    samples: Sequence[Sample], odds: Tensor, rate: AttackRate | None, **about: Any
) -> LayerRow:
    counted: dict[str, Any] = {"n_prompts": len(samples)} if rate is None else rate.columns()
    low, high = (
        t.interval(0.95, len(odds) - 1, odds.mean(), sem(odds)) if len(odds) > 1 else (None,) * 2
    )
    site = about.get("site")
    return LayerRow(
        **{"site": None, **about},
        layer=None if site is None else layer_of(site),
        group=samples[0].group,
        log_odds=odds.mean().item(),
        log_odds_low=low,
        log_odds_high=high,
        **counted,
    )
