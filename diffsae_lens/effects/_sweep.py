"""What triggers a behaviour: the same scenes with different texts in the trigger's place."""

from collections.abc import Mapping, Sequence

from sae_lens import SAE

from diffsae_lens._checks import check_items, check_list
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.dictionaries._fits import check_features, check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._likelihood import check_scored, likelihoods
from diffsae_lens.effects._rates import attack_rate
from diffsae_lens.interventions._run import complete
from diffsae_lens.organisms._behaviour import Behaviour, Sample, check_said
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.reading._prompts import Reader, read_prompts
from diffsae_lens.results import SayingRow, SweepRow, Table


@typed
def sweep_trigger(
    pair: HookedModelPair,
    said: Sequence[str | None] | None = None,
    *,
    behaviour: Behaviour,
    n_scenes: Count = 8,
    seed: int = 0,
) -> Table[SayingRow]:
    """Measure what the fine-tuned model does on the same scenes with different texts as the trigger.

    It runs under the edits open on the pair.

    Args:
        pair: the two models.
        said: texts for the trigger's place, None for no text; the behaviour's own `sayings` if left out.
        behaviour: the behaviour whose scenes, judge and outcomes are used.
        n_scenes: number of scenes of the `test` split.
        seed: seed of the scenes.

    Returns:
        One row per text.

    Raises:
        TypeError: `said` is a single text, or not a list of texts.
        ValueError: no texts or scenes, or a scene that does not fit the context.
    """
    said = check_said(behaviour.sayings if said is None else said)
    scenes = behaviour.minimal_pairs("test", said, n_scenes=n_scenes, seed=seed)
    by_said = list(zip(*scenes, strict=True))
    # All together, since a batch of many prompts takes little longer than one of a few.
    together = check_scored(pair, [sample for samples in by_said for sample in samples])
    completions = complete(pair, [sample.prompt for sample in together])
    rows = []
    for i, (text, samples) in enumerate(zip(said, by_said, strict=True)):
        written = completions[i * n_scenes : (i + 1) * n_scenes]
        rate = attack_rate([s.prompt for s in samples], written, behaviour=behaviour)
        odds = likelihoods(pair, samples).log_odds.mean().item()
        group = samples[0].group
        rows.append(SayingRow(said=text, group=group, **rate.columns(), log_odds=odds))
    return Table(tuple(rows))


@typed
def sweep_features(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    features: Mapping[str, int],
    scenes: Sequence[Sequence[Sample]],
) -> Table[SweepRow]:
    """Read one feature per dictionary where the behaviour is decided, for each text as the trigger.

    Args:
        pair: the two models.
        dictionaries: dictionaries by name.
        features: one feature per dictionary, by the same names.
        scenes: from `Behaviour.minimal_pairs`: each scene with every text, in the same order.

    Returns:
        One row per dictionary and text.

    Raises:
        TypeError: dictionaries, features or samples of another type.
        ValueError: no scenes, scenes with different texts, a dictionary of another pair, or a feature that
            it does not have.
    """
    scenes = [
        check_items(f"scenes[{i}]", scene, Sample)
        for i, scene in enumerate(check_list("scenes", scenes, "lists of Sample"))
    ]
    said = [[sample.said for sample in scene] for scene in scenes]
    if not said or any(other != said[0] for other in said):
        raise InvalidValueError(
            "`scenes` must be one or more that say the same things in the same order, got "
            f"{len(said)} scenes; make them with `Behaviour.minimal_pairs`"
        )
    readers, chosen = {}, {}
    for name, dictionary in dictionaries.items():
        if name not in features:
            raise InvalidValueError(
                f"`features` must name one for {name!r}, got {sorted(features)}"
            )
        [chosen[name]] = check_features(dictionary, [features[name]], name=f"features[{name!r}]")
        readers[name] = Reader(
            hook_name=check_fits(pair, dictionary).name,
            encode=dictionary.encode,
            policy=DictionaryRecord.of(dictionary).tokens,
        )
    prompts = [sample.undecided for scene in scenes for sample in scene]
    rows = []
    for name, acts in read_prompts(pair, prompts, readers).items():
        by_said = acts[:, chosen[name]].view(len(scenes), len(said[0])).T
        for sample, values in zip(scenes[0], by_said, strict=True):
            row = SweepRow(
                dictionary=name,
                said=sample.said,
                group=sample.group,
                feature_idx=chosen[name],
                mean=values.mean().item(),
                values=values.tolist(),
            )
            rows.append(row)
    return Table(tuple(rows))
