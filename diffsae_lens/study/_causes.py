"""What features cause: interventions on the fine-tuned model, beside their controls."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from sae_lens import SAE

from diffsae_lens._artifact import build_json, read_json, write_json
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._attribution import greedy_order
from diffsae_lens.effects._compare import compare_interventions, side_effects
from diffsae_lens.effects._curves import steering_pair
from diffsae_lens.effects._scales import ActivationScales, activation_scales, matched_features
from diffsae_lens.effects._sweep import sweep_trigger
from diffsae_lens.interventions._directions import control_directions, project_out, swap_to_base
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.interventions._features import ablate_features, induce_features
from diffsae_lens.organisms._behaviour import GROUPS, Sample
from diffsae_lens.organisms._ordinary import ordinary_texts
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._tokens import TokenPolicy
from diffsae_lens.results import EffectRow, SideEffectRow
from diffsae_lens.study._cells import Job
from diffsae_lens.study._config import (
    CausesConfig,
    FeaturesConfig,
    ScenesConfig,
    SideEffectsConfig,
)
from diffsae_lens.study._step import Inputs, Step, load_dictionaries, write_rows

logger = logging.getLogger(__name__)

CHOSEN = "features.json"
TOP, RANDOM = "top features ablated", "random features ablated"
STEERED = {"features": "steered with top features", "random": "steered with a random direction"}

R = TypeVar("R", EffectRow, SideEffectRow)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The features of a dictionary that are acted on, and their controls."""

    counts: tuple[int, ...]
    """How many are ablated: fewer than asked for if not so many favour the behaviour or can be matched,
    none if none favours it."""
    top: tuple[int, ...]
    """In the order in which they are taken."""
    matched: tuple[int, ...]
    """A random feature of equal activation mass for each."""
    steered: tuple[int, ...]
    """Those of the fewest that fire, to steer with."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An intervention, and what its rows say of it."""

    edit: Edit
    name: str
    dictionary: str | None = None
    control_of: str | None = None


def choose(step: Step[FeaturesConfig], inputs: Inputs, job: Job) -> None:
    """Choose the features of every dictionary that are acted on."""
    pair, config = step.pair(inputs, job), step.config
    samples = config.select.samples(step.behaviour)
    chosen: dict[str, Any] = {}
    for name, dictionary in load_dictionaries(inputs, pair=pair).items():
        chosen[name] = build_json(
            job.scratch / f"{name}.json",
            {"dictionary": name},
            lambda d=dictionary: asdict(choose_features(pair, d, samples, config, seed=step.seed)),
        )
    write_json(job.out / CHOSEN, chosen)


def choose_features(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    config: FeaturesConfig,
    *,
    seed: int = 0,
) -> Chosen:
    """Choose the features that are acted on, and their controls.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        samples: trigger prompts of the `select` split.
        config: how many.
        seed: of the controls.
    """
    most = min(max(config.counts), dictionary.cfg.d_sae)
    n_rounds = min(config.n_rounds, most)
    order = greedy_order(pair, dictionary, samples, n_features=most, n_rounds=n_rounds)
    scales = scales_of(pair, dictionary, samples)
    # One that fires on wanted completions alone has no equal among those that fire here.
    order = [feature for feature in order if scales.maximum[feature] > 0]
    most = min(most, len(order), len(scales.live) // 2)
    counts = sorted({min(n, most) for n in config.counts} - {0})
    matched = matched_features(scales, order[:most], seed=seed)
    return Chosen(
        counts=tuple(counts),
        top=tuple(order[:most]),
        matched=tuple(matched),
        steered=tuple(i for i in order[: (counts or [0])[0]] if scales.maximum[i] > 0),
    )


def scales_of(
    pair: HookedModelPair, dictionary: SAE, samples: Sequence[Sample]
) -> ActivationScales:
    """Measure features on prompts with the unwanted completion: ablation acts on both."""
    return activation_scales(pair, dictionary, [s.prompt + s.unwanted for s in samples])


def chosen_features(inputs: Inputs, names: Iterable[str]) -> dict[str, Chosen]:
    """Read what `choose` chose, of the dictionaries in which something favours the behaviour."""
    stored = read_json(inputs["features"] / CHOSEN)
    found = {name: Chosen(**{k: tuple(v) for k, v in stored[name].items()}) for name in names}
    for name, chosen in found.items():
        if not chosen.counts:
            logger.warning("no feature of %s that fires on triggers favours the behaviour", name)
    return {name: chosen for name, chosen in found.items() if chosen.counts}


def causes(step: Step[CausesConfig], inputs: Inputs, job: Job) -> None:
    """Complete held-out prompts under every intervention and its control, and judge them.

    Controls are as many features of equal activation mass, a random direction as long as what is
    steered with, and what needs no dictionary: the base's activation put back, directions projected out.
    """
    pair, config = step.pair(inputs, job), step.config
    dictionaries = load_dictionaries(inputs, pair=pair)
    chosen = chosen_features(inputs, dictionaries)
    samples = config.test.samples(step.behaviour)
    policy = _shared_tokens(dictionaries)
    back = _base_put_back(pair, step.site, policy)
    on_triggers = [
        back,
        *_directions(step, pair, policy),
        *(t for n, c in chosen.items() for t in _on_triggers(pair, n, dictionaries[n], c, config)),
    ]
    on_others = [
        back,
        *(t for n, c in chosen.items() for t in _on_others(step, pair, n, dictionaries[n], c)),
    ]
    rows: list[EffectRow] = []
    for group in GROUPS:
        members = [sample for sample in samples if sample.group == group]
        if members:
            tried = on_triggers if group == "trigger" else on_others
            measured = build_json(
                job.scratch / f"{group}.json",
                {"group": group},
                lambda m=members, t=tried: _measured(step, pair, t, m),
            )
            rows += [EffectRow.from_dict(row) for row in measured]
    write_rows(job, effects=rows)


def _measured(
    step: Step[CausesConfig],
    pair: HookedModelPair,
    tried: Sequence[Tried],
    samples: Sequence[Sample],
) -> list[dict[str, Any]]:
    numbered = dict(enumerate(tried))
    table = compare_interventions(
        pair,
        {str(number): t.edit for number, t in numbered.items()},
        samples,
        behaviour=step.behaviour,
        n_likelihood=step.config.n_likelihood,
        max_new_tokens=step.config.max_new_tokens,
    )
    unmodified, *others = table
    # It is a row of this layer's table, so that each layer has all it is compared with.
    rows = [replace(unmodified, layer=step.layer), *_named(others, numbered)]
    return [row.as_dict() for row in rows]


def _named(rows: Iterable[R], tried: Mapping[int, Tried]) -> Iterator[R]:
    """Say in rows that were named by their number what they are of."""
    for row in rows:
        t = tried[int(row.name)]
        yield replace(
            row,
            name=t.name,
            dictionary=t.dictionary,
            control_of=t.control_of,
            layer=t.edit.layer,
        )


def _shared_tokens(dictionaries: Mapping[str, SAE]) -> TokenPolicy:
    """Where the controls of all dictionaries act: on every token that any of these acts on."""
    return TokenPolicy.any_of(DictionaryRecord.of(d).tokens for d in dictionaries.values())


def _base_put_back(pair: HookedModelPair, site: str, policy: TokenPolicy) -> Tried:
    return Tried(edit=swap_to_base(pair, site, **vars(policy)), name="base activation put back")


def _directions(
    step: Step[CausesConfig], pair: HookedModelPair, policy: TokenPolicy
) -> Iterator[Tried]:
    config = step.config
    if config.directions is None:
        return
    directions = control_directions(
        pair,
        step.site,
        config.directions.samples(step.behaviour),
        n_directions=config.n_directions,
        seed=step.seed,
    )
    for name, rows in directions.items():
        edit = project_out(pair, VirtualHook(step.site, "diff").name, rows, **vars(policy))
        yield Tried(edit=edit, name=f"{name} projected out")


def _ablated(
    pair: HookedModelPair, name: str, dictionary: SAE, chosen: Chosen, n_features: int
) -> Iterator[Tried]:
    top, matched = chosen.top[:n_features], chosen.matched[:n_features]
    yield Tried(edit=ablate_features(pair, dictionary, top), name=TOP, dictionary=name)
    edit = ablate_features(pair, dictionary, matched)
    yield Tried(edit=edit, name=RANDOM, dictionary=name, control_of=TOP)


def _on_triggers(
    pair: HookedModelPair, name: str, dictionary: SAE, chosen: Chosen, config: CausesConfig
) -> Iterator[Tried]:
    for n_features in chosen.counts:
        yield from _ablated(pair, name, dictionary, chosen, n_features)
    if config.is_added_to_base:
        edit = induce_features(pair, dictionary, chosen.top)
        yield Tried(edit=edit, name="top features added to the base model", dictionary=name)


def _on_others(
    step: Step[CausesConfig], pair: HookedModelPair, name: str, dictionary: SAE, chosen: Chosen
) -> Iterator[Tried]:
    yield from _ablated(pair, name, dictionary, chosen, chosen.counts[-1])
    steering = step.config.steering
    if steering is None or not chosen.steered:
        return
    scales = scales_of(pair, dictionary, steering.scales.samples(step.behaviour))
    edits = steering_pair(pair, chosen.steered, scales, dose=steering.dose, seed=step.seed)
    for which, edit in edits.items():
        of = STEERED["features"] if which == "random" else None
        yield Tried(edit=edit, name=STEERED[which], dictionary=name, control_of=of)


def spare(step: Step[SideEffectsConfig], inputs: Inputs, job: Job) -> None:
    """Measure what ablating the most features does to texts that have nothing to do with the behaviour."""
    pair, config = step.pair(inputs, job), step.config
    dictionaries = load_dictionaries(inputs, pair=pair)
    tried = [
        _base_put_back(pair, step.site, _shared_tokens(dictionaries)),
        *(
            t
            for name, chosen in chosen_features(inputs, dictionaries).items()
            for t in _ablated(pair, name, dictionaries[name], chosen, chosen.counts[-1])
        ),
    ]
    members = config.texts.samples(step.behaviour)
    texts = {
        group: [s.prompt + s.wanted for s in members if s.group == group]
        for group in ("benign", "other")
    }
    texts |= {kind: found[: config.n_ordinary] for kind, found in ordinary_texts().items()}
    numbered = dict(enumerate(tried))
    table = side_effects(
        pair,
        {str(number): t.edit for number, t in numbered.items()},
        {kind: of_kind for kind, of_kind in texts.items() if of_kind},
    )
    write_rows(job, side_effects=_named(table, numbered))


def say(step: Step[ScenesConfig], inputs: Inputs, job: Job) -> None:
    """Measure what the fine-tuned model does where the trigger is said in other ways, or nearly."""
    table = sweep_trigger(
        step.pair(inputs, job),
        behaviour=step.behaviour,
        n_scenes=step.config.n_scenes,
        seed=step.seed,
    )
    write_rows(job, sayings=table)
