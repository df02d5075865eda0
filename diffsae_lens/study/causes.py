"""What features cause: the demo's interventions on the organism, beside their controls."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sae_lens import SAE

from diffsae_lens.dictionaries.tokens import shared_policy
from diffsae_lens.effects.compare import measure_effects, side_effects
from diffsae_lens.effects.curves import steering_pair
from diffsae_lens.effects.likelihood import greedy_order
from diffsae_lens.effects.scales import (
    ActivationScales,
    activation_scales,
    matched_features,
)
from diffsae_lens.effects.sweep import sweep_trigger
from diffsae_lens.interventions.directions import control_directions, project_out, swap_to_base
from diffsae_lens.interventions.features import ablate_features, induce_features
from diffsae_lens.interventions.side_by_side import Intervene, complete_under
from diffsae_lens.organisms.behaviour import Behaviour, Group, Sample, get_behaviour
from diffsae_lens.organisms.ordinary import ordinary_texts
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.study.parts import Parts

if TYPE_CHECKING:
    from diffsae_lens.study.demo import DemoConfig

N_SELECT = 8
"""Trigger prompts on which features are chosen."""

N_DIRECTIONS = 16
"""Random directions and principal components that are projected out of the difference."""

DOSE = 0.5
"""Of steering, in units of each feature's maximum: at 1 the crosscoder's features break the output."""
STEERED_WITH = {"features": "top features", "random": "a random direction"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One intervention and the prompts it is measured on."""

    name: str
    """What the row is called."""
    intervene: Intervene
    dictionary: str | None = None
    """Whose features; None for interventions without a dictionary."""
    n_features: int = 0
    """Features ablated, added or steered with; directions projected out."""
    group: Group = "trigger"
    """The prompts that are completed."""

    @property
    def key(self) -> str:
        """The name under which the condition's result is kept."""
        parts = (self.name, self.dictionary, self.n_features, self.group)
        return "_".join(str(part).replace(" ", "-") for part in parts if part is not None)


def causal_table(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    config: "DemoConfig",
    cells: Parts,
) -> list[dict[str, Any]]:
    """Complete held-out prompts under every intervention and its control, and judge them.

    Features are taken in `greedy_order` on the `select` split and acted on in the `test` split.
    Controls are as many features of equal activation mass, a random direction as long as what is
    steered with, and directions that need no dictionary.

    Args:
        pair: the two models.
        dictionaries: by name.
        config: how many prompts and features.
        cells: where each intervention's row is kept, so that an interrupted table goes on.

    Returns:
        One row an intervention: `name`, `dictionary`, `n_features`, `group`, the columns of
        `Effects.row` and `example`, a prompt with what was written after it.
    """
    n = config.n_generation_prompts
    test = config.samples("test", 2 * n, by=(1, 1, 0))
    by_group = {g: [s for s in test if s.group == g] for g in ("trigger", "benign")}
    conditions = [
        *_without_dictionary(pair, dictionaries, config),
        *(
            condition
            for name, dictionary in of_last_layer(dictionaries, config).items()
            for condition in _of_dictionary(
                pair,
                name,
                dictionary,
                config,
                chosen_features(pair, name, dictionary, config, cells),
            )
        ),
    ]
    written = {
        group: cells.get(
            f"completions_{group}",
            partial(
                complete_under,
                pair,
                {c.key: c.intervene for c in conditions if c.group == group},
                [sample.prompt for sample in samples],
            ),
        )
        for group, samples in by_group.items()
    }
    return [
        cells.get(
            condition.key,
            partial(
                _measure,
                pair,
                condition,
                get_behaviour(config.behaviour),
                by_group[condition.group],
                config.n_likelihood_prompts,
                written[condition.group][condition.key],
            ),
        )
        for condition in conditions
    ]


def harm_table(
    pair: HookedModelPair, dictionaries: Mapping[str, SAE], config: "DemoConfig", cells: Parts
) -> list[dict[str, Any]]:
    """Measure what ablating the most features does to texts that have nothing to do with the attack.

    Returns:
        The rows of `side_effects`: benign and other prompts with their safe completions, ordinary
        code and prose.
    """
    policy = vars(shared_policy(of_last_layer(dictionaries, config).values()))
    opened: dict[str, Intervene] = {
        "base activation put back": partial(swap_to_base, pair, config.hook_names[-1], **policy)
    }
    for name, dictionary in of_last_layer(dictionaries, config).items():
        chosen = chosen_features(pair, name, dictionary, config, cells)
        most = chosen["counts"][-1]
        for which in ("top", "random"):
            features = chosen[which][str(most)]
            opened[f"{which} {most} features of {name} ablated"] = partial(
                ablate_features, pair, dictionary, features
            )
    members = config.samples("test", 2 * config.n_likelihood_prompts, by=(0, 1, 1))
    texts = {
        group: [s.prompt + s.wanted for s in members if s.group == group]
        for group in ("benign", "other")
    }
    texts |= {
        kind: found[: config.n_likelihood_prompts] for kind, found in ordinary_texts().items()
    }
    return side_effects(pair, opened, texts).to_dict("records")


def sayings_table(pair: HookedModelPair, config: "DemoConfig") -> list[dict[str, Any]]:
    """Measure what the fine-tuned model does where the year is said in other ways, or is near."""
    frame = sweep_trigger(
        pair,
        behaviour=get_behaviour(config.behaviour),
        n_scenes=config.n_scenes,
        seed=config.seed,
    )
    return [_json_row(row) for row in frame.to_dict("records")]


def choose_features(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    *,
    counts: Sequence[int],
    n_rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Choose the features that are acted on, and their controls.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        samples: trigger prompts of the `select` split.
        counts: how many features; fewer if not so many favour the attack or can be matched.
        n_rounds: see `greedy_order`.
        seed: of the controls.

    Returns:
        `counts`, none if no feature favours the attack; `top` and `random`, by number, the features
        and as many of equal mass; `steered`, those of the fewest that fire, for `steering_pair`.
    """
    most = min(max(counts), dictionary.cfg.d_sae)
    order = greedy_order(pair, dictionary, samples, n_features=most, n_rounds=min(n_rounds, most))
    scales = attack_scales(pair, dictionary, samples)
    # One that fires on safe completions alone has no equal among those that fire here.
    order = [feature for feature in order if scales.maximum[feature] > 0]
    most = min(most, len(order), len(scales.live) // 2)
    counts = sorted({min(n, most) for n in counts} - {0})
    [matched] = matched_features(scales, order[:most], seed=seed)
    return {
        "counts": counts,
        "top": {str(n): order[:n] for n in counts},
        "random": {str(n): matched[:n] for n in counts},
        "steered": [i for i in order[: (counts or [0])[0]] if scales.maximum[i] > 0],
    }


def attack_scales(
    pair: HookedModelPair, dictionary: SAE, samples: Sequence[Sample]
) -> ActivationScales:
    """Measure features on prompts with the vulnerable completion: ablation acts on both."""
    texts = [s.prompt + s.unwanted for s in samples]
    return activation_scales(pair, dictionary, texts)


def chosen_features(
    pair: HookedModelPair, name: str, dictionary: SAE, config: "DemoConfig", cells: Parts
) -> dict[str, Any]:
    """Choose a dictionary's features once for all parts of the demo; see `choose_features`.

    Raises:
        ValueError: none of them favours the attack.
    """
    chosen = cells.get(
        f"chosen_{name}",
        lambda: choose_features(
            pair,
            dictionary,
            config.samples("select", N_SELECT, by=(1, 0, 0)),
            counts=config.feature_counts,
            n_rounds=config.n_rounds,
            seed=config.seed,
        ),
    )
    if not chosen["counts"]:
        raise ValueError(f"no feature of {name!r} that fires on triggers favours the attack")
    return chosen


def of_last_layer(dictionaries: Mapping[str, SAE], config: "DemoConfig") -> dict[str, SAE]:
    """The dictionaries of the layer at which causes are shown."""
    return {n: d for n, d in dictionaries.items() if n.endswith(f"-{config.layers[-1]}")}


def _without_dictionary(
    pair: HookedModelPair, dictionaries: Mapping[str, SAE], config: "DemoConfig"
) -> Iterator[Condition]:
    hook_name = config.hook_names[-1]
    policy = vars(shared_policy(of_last_layer(dictionaries, config).values()))
    yield Condition(name="unmodified", intervene=nullcontext)
    yield Condition(
        name="base activation put back",
        intervene=partial(swap_to_base, pair, hook_name, **policy),
    )
    samples = config.samples("select", 2 * N_DIRECTIONS, by=(1, 1, 0))
    directions = control_directions(
        pair, hook_name, samples, n_directions=N_DIRECTIONS, seed=config.seed
    )
    for name, rows in directions.items():
        yield Condition(
            name=f"{name} projected out",
            n_features=len(rows),
            intervene=partial(project_out, pair, f"{hook_name}.diff", rows, **policy),
        )
    yield Condition(name="unmodified", intervene=nullcontext, group="benign")


def _of_dictionary(
    pair: HookedModelPair,
    name: str,
    dictionary: SAE,
    config: "DemoConfig",
    chosen: Mapping[str, Any],
) -> Iterator[Condition]:
    def ablated(which: str, n_features: int, group: Group = "trigger") -> Condition:
        return Condition(
            name=f"{which} features ablated",
            dictionary=name,
            n_features=n_features,
            group=group,
            intervene=partial(ablate_features, pair, dictionary, chosen[which][str(n_features)]),
        )

    for n_features in chosen["counts"]:
        yield ablated("top", n_features)
        yield ablated("random", n_features)
    most = chosen["counts"][-1]
    yield Condition(
        name="top features added to the base model",
        dictionary=name,
        n_features=most,
        intervene=partial(induce_features, pair, dictionary, chosen["top"][str(most)]),
    )
    yield ablated("top", most, group="benign")
    steered = chosen["steered"]
    if steered:
        scales = attack_scales(pair, dictionary, config.samples("select", N_SELECT, by=(1, 0, 0)))
        steering = steering_pair(pair, steered, scales, dose=DOSE, seed=config.seed)
        for which, intervene in steering.items():
            yield Condition(
                name="steered with " + STEERED_WITH[which],
                dictionary=name,
                n_features=len(steered),
                group="benign",
                intervene=intervene,
            )


def _measure(
    pair: HookedModelPair,
    condition: Condition,
    behaviour: Behaviour,
    samples: Sequence[Sample],
    n_likelihood: int,
    completions: Sequence[str],
) -> dict[str, Any]:
    with condition.intervene() as given:
        acting = given if isinstance(given, HookedModelPair) else pair
        effects = measure_effects(
            acting,
            samples,
            behaviour=behaviour,
            n_likelihood=n_likelihood,
            completions=completions,
        )
    return {
        "name": condition.name,
        "dictionary": condition.dictionary,
        "n_features": condition.n_features,
        "group": condition.group,
        **_json_row(effects.row()),
        "example": samples[0].prompt + effects.completions[0],
    }


def _json_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row with None for what could not be measured: JSON has no NaN."""
    return {
        str(key): None if isinstance(value, float) and math.isnan(value) else value
        for key, value in row.items()
    }
