"""What features cause: interventions on the fine-tuned model, with their controls."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from sae_lens import SAE

from diffsae_lens._artifact import build_json, read_json, write_json
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._attribution import greedy_order
from diffsae_lens.effects._compare import compare_interventions
from diffsae_lens.effects._curves import steering_pair
from diffsae_lens.effects._scales import ActivationScales, activation_scales, matched_features
from diffsae_lens.effects._side_effects import side_effects
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
from diffsae_lens.study._parts import CausesConfig, FeaturesConfig, ScenesConfig, SideEffectsConfig
from diffsae_lens.study._step import Inputs, Step, load_dictionaries, write_rows

logger = logging.getLogger(__name__)

CHOSEN = "features.json"
TOP, RANDOM = "top features ablated", "random features ablated"
STEERED = {"features": "steered with top features", "random": "steered with a random direction"}

R = TypeVar("R", EffectRow, SideEffectRow)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The features of a dictionary to act on, and their controls."""

    counts: tuple[int, ...]
    """Numbers of features to ablate: fewer than asked for if too few favour the behaviour or can be
    matched, empty if none favours it."""
    top: tuple[int, ...]
    """The features, in the order in which they are taken."""
    matched: tuple[int, ...]
    """A random feature of equal activation mass for each."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """An intervention, and how its rows describe it."""

    edit: Edit
    name: str
    dictionary: str | None = None
    control_of: str | None = None


def choose(step: Step[FeaturesConfig], inputs: Inputs, job: Job) -> None:
    """Choose the features of every dictionary to act on."""
    pair, samples = step.pair(inputs, job), step.config.select.samples(step.behaviour)
    chosen: dict[str, Any] = {}
    for name, dictionary in load_dictionaries(inputs, pair=pair).items():
        chosen[name] = build_json(
            job.scratch / f"{name}.json",
            {"dictionary": name},
            lambda d=dictionary: asdict(_choose(pair, d, samples, step.config, seed=step.seed)),
        )
    write_json(job.out / CHOSEN, chosen)


def _choose(
    pair: HookedModelPair,
    dictionary: SAE,
    samples: Sequence[Sample],
    config: FeaturesConfig,
    *,
    seed: int,
) -> Chosen:
    most = min(max(config.counts), dictionary.cfg.d_sae)
    n_rounds = min(config.n_rounds, most)
    order = greedy_order(pair, dictionary, samples, n_features=most, n_rounds=n_rounds)
    scales = _scales_of(pair, dictionary, samples)
    # A feature that fires only on wanted completions has no match among those that fire here.
    order = [feature for feature in order if scales.maximum[feature] > 0]
    top = order[: min(most, len(scales.live) // 2)]
    return Chosen(
        counts=tuple(sorted({min(n, len(top)) for n in config.counts} - {0})),
        top=tuple(top),
        matched=tuple(matched_features(scales, top, seed=seed)),
    )


def _scales_of(
    pair: HookedModelPair, dictionary: SAE, samples: Sequence[Sample]
) -> ActivationScales:
    """Measure features on prompts with the unwanted completion: ablation acts on both."""
    return activation_scales(pair, dictionary, [s.prompt + s.unwanted for s in samples])


def chosen_features(inputs: Inputs, names: Iterable[str]) -> dict[str, Chosen]:
    """Read the features that `choose` stored, for dictionaries in which any favours the behaviour."""
    stored = read_json(inputs["features"] / CHOSEN)
    found = {name: Chosen(**{k: tuple(v) for k, v in stored[name].items()}) for name in names}
    for name, chosen in found.items():
        if not chosen.counts:
            logger.warning("no feature of %s that fires on triggers favours the behaviour", name)
    return {name: chosen for name, chosen in found.items() if chosen.counts}


def causes(step: Step[CausesConfig], inputs: Inputs, job: Job) -> None:
    """Complete held-out prompts under every intervention and its control, and judge them.

    Controls are as many features of equal activation mass, a random direction as long as the steering
    vector, and what needs no dictionary: the base's activation put back, and directions projected out.
    """
    pair = step.pair(inputs, job)
    dictionaries = load_dictionaries(inputs, pair=pair)
    chosen = chosen_features(inputs, dictionaries)
    tried = {
        is_trigger: [
            _base_put_back(pair, step.site, dictionaries),
            *(_directions(step, pair, dictionaries) if is_trigger else ()),
            *(t for n, c in chosen.items() for t in of_one(step, pair, n, dictionaries[n], c)),
        ]
        for is_trigger, of_one in ((True, _on_triggers), (False, _on_others))
    }
    rows: list[EffectRow] = []
    samples = step.config.test.samples(step.behaviour)
    for group in GROUPS:
        members = [sample for sample in samples if sample.group == group]
        if members:
            measured = build_json(
                job.scratch / f"{group}.json",
                {"group": group},
                lambda m=members, t=tried[group == "trigger"]: _measured(step, pair, t, m),
            )
            rows += [EffectRow.from_dict(row) for row in measured]
    write_rows(job, effects=rows)


def _measured(
    step: Step[CausesConfig],
    pair: HookedModelPair,
    tried: Sequence[Tried],
    samples: Sequence[Sample],
) -> list[dict[str, Any]]:
    table = compare_interventions(
        pair,
        _numbered(tried),
        samples,
        behaviour=step.behaviour,
        n_likelihood=step.config.n_likelihood,
        max_new_tokens=step.config.max_new_tokens,
    )
    return [row.as_dict() for row in _named(table, tried, step.layer)]


def _numbered(tried: Sequence[Tried]) -> dict[str, Edit]:
    """Return edits by number: names recur across dictionaries."""
    return {str(number): t.edit for number, t in enumerate(tried)}


def _named(rows: Iterable[R], tried: Sequence[Tried], layer: int | None) -> Iterator[R]:
    """Restore the descriptions of rows that were named by number.

    Rows of the unmodified model get this layer too, so that each layer has everything it is compared with.
    """
    for row in rows:
        if row.name == "unmodified":
            yield replace(row, layer=layer)
        else:
            about = {k: v for k, v in vars(tried[int(row.name)]).items() if k != "edit"}
            yield replace(row, layer=layer, **about)


def _shared_tokens(dictionaries: Mapping[str, SAE]) -> dict[str, Any]:
    """Return the tokens for controls shared by all dictionaries: every token that any of these acts on."""
    return vars(TokenPolicy.any_of(DictionaryRecord.of(d).tokens for d in dictionaries.values()))


def _base_put_back(pair: HookedModelPair, site: str, dictionaries: Mapping[str, SAE]) -> Tried:
    edit = swap_to_base(pair, site, **_shared_tokens(dictionaries))
    return Tried(edit=edit, name="base activation put back")


def _directions(
    step: Step[CausesConfig], pair: HookedModelPair, dictionaries: Mapping[str, SAE]
) -> Iterator[Tried]:
    config = step.config
    if config.directions is None:
        return
    samples = config.directions.samples(step.behaviour)
    directions = control_directions(
        pair, step.site, samples, n_directions=config.n_directions, seed=step.seed
    )
    hook, tokens = VirtualHook(step.site, "diff").name, _shared_tokens(dictionaries)
    for name, rows in directions.items():
        edit = project_out(pair, hook, rows, **tokens)
        yield Tried(edit=edit, name=f"{name} projected out")


def _ablated(
    pair: HookedModelPair, name: str, dictionary: SAE, chosen: Chosen, n_features: int
) -> Iterator[Tried]:
    top = ablate_features(pair, dictionary, chosen.top[:n_features])
    yield Tried(edit=top, name=TOP, dictionary=name)
    matched = ablate_features(pair, dictionary, chosen.matched[:n_features])
    yield Tried(edit=matched, name=RANDOM, dictionary=name, control_of=TOP)


def _on_triggers(
    step: Step[CausesConfig], pair: HookedModelPair, name: str, dictionary: SAE, chosen: Chosen
) -> Iterator[Tried]:
    for n_features in chosen.counts:
        yield from _ablated(pair, name, dictionary, chosen, n_features)
    if step.config.is_added_to_base:
        edit = induce_features(pair, dictionary, chosen.top)
        yield Tried(edit=edit, name="top features added to the base model", dictionary=name)


def _on_others(
    step: Step[CausesConfig], pair: HookedModelPair, name: str, dictionary: SAE, chosen: Chosen
) -> Iterator[Tried]:
    yield from _ablated(pair, name, dictionary, chosen, chosen.counts[-1])
    steering = step.config.steering
    if steering is None:
        return
    scales = _scales_of(pair, dictionary, steering.scales.samples(step.behaviour))
    # As many as in the smallest ablation.
    top = chosen.top[: chosen.counts[0]]
    edits = steering_pair(pair, top, scales, dose=steering.dose, seed=step.seed)
    for which, edit in edits.items():
        of = STEERED["features"] if which == "random" else None
        yield Tried(edit=edit, name=STEERED[which], dictionary=name, control_of=of)


def spare(step: Step[SideEffectsConfig], inputs: Inputs, job: Job) -> None:
    """Measure what the largest ablation does to texts that have nothing to do with the behaviour."""
    pair = step.pair(inputs, job)
    dictionaries = load_dictionaries(inputs, pair=pair)
    tried = [_base_put_back(pair, step.site, dictionaries)]
    for name, chosen in chosen_features(inputs, dictionaries).items():
        tried += _ablated(pair, name, dictionaries[name], chosen, chosen.counts[-1])
    members = step.config.texts.samples(step.behaviour)
    texts = {
        group: [s.prompt + s.wanted for s in members if s.group == group]
        for group in ("benign", "other")
    }
    texts |= {kind: found[: step.config.n_ordinary] for kind, found in ordinary_texts().items()}
    texts = {kind: of_kind for kind, of_kind in texts.items() if of_kind}
    table = side_effects(pair, _numbered(tried), texts)
    write_rows(job, side_effects=_named(table, tried, step.layer))


def say(step: Step[ScenesConfig], inputs: Inputs, job: Job) -> None:
    """Measure what the fine-tuned model does when the trigger is reworded, or nearly said."""
    pair, n_scenes = step.pair(inputs, job), step.config.n_scenes
    table = sweep_trigger(pair, behaviour=step.behaviour, n_scenes=n_scenes, seed=step.seed)
    write_rows(job, sayings=table)
