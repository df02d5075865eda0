"""Where the fine-tuned behaviour can be taken out: the base's activation put back, layer by layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from scipy.stats import sem, t

from diffsae_lens._checks import check_texts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.effects._likelihood import check_scored, log_odds
from diffsae_lens.effects._rates import attack_rate
from diffsae_lens.interventions._directions import perturb, swap_to_base
from diffsae_lens.interventions._edit import Edit, running
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

    That takes out the whole difference at the layer: a reference for what feature ablation there can do.
    Beside each layer stand the unmodified model, the base model
    itself, and the same layer with a random change as long as the difference.

    Args:
        pair: the two models.
        samples: of one or more groups.
        sites: hooks that the pair was built for, such as `blocks.18.hook_resid_post`; all by default.
        behaviour: if given, prompts are completed as well, and its judge counts the outcomes.
        batch_size: samples per forward pass, for log-odds.
        **generate_kwargs: passed to `complete`, with `behaviour` alone.

    Returns:
        For each group the rows of the two models as they are (`unmodified`, `base model`), then two per
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
    edits = [(swap_to_base(pair, site), perturb(pair, site)) for site in sites]
    if behaviour is None and generate_kwargs:
        raise InvalidValueError(
            f"{sorted(generate_kwargs)} have no effect without a `behaviour`, which judges completions"
        )
    check_generation(pair, [sample.prompt for sample in samples], generate_kwargs)
    rows = []
    for group in GROUPS:
        members = [sample for sample in samples if sample.group == group]
        if members:
            measure = partial(
                _row,
                members,
                behaviour=behaviour,
                batch_size=batch_size,
                generating=generate_kwargs,
            )
            rows.append(measure(pair, None, kind="unmodified"))
            rows.append(measure(pair.mirrored(), None, kind="base model"))
            for site, (swap, control) in zip(sites, edits, strict=True):
                rows.append(measure(pair, swap, kind="swap to base", site=site))
                rows.append(measure(pair, control, kind="random change", site=site))
    return Table(tuple(rows))


def _row(
    samples: Sequence[Sample],
    pair: HookedModelPair,
    edit: Edit | None,
    *,
    behaviour: Behaviour | None,
    batch_size: int,
    generating: Mapping[str, Any],
    **about: Any,
) -> LayerRow:
    with running(pair, edit):
        odds = log_odds(pair, samples, batch_size=batch_size)
        rate = None
        if behaviour is not None:
            prompts = [sample.prompt for sample in samples]
            written = complete(pair, prompts, **generating)
            rate = attack_rate(prompts, written, behaviour=behaviour)
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
