"""How well features isolate the behaviour, and what the best one reads."""

from dataclasses import replace

from safetensors.torch import save_file

from diffsae_lens._artifact import read_json
from diffsae_lens.effects._sweep import sweep_features
from diffsae_lens.isolation._labels import LabelledPrompts
from diffsae_lens.isolation._pooled import evaluate_pooled
from diffsae_lens.isolation._score import evaluate_protocols
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.reading._tokens import token_activations
from diffsae_lens.results import ExamplePrompt, ScoreRow
from diffsae_lens.study._cells import Job
from diffsae_lens.study._parts import ScenesConfig, ScoresConfig
from diffsae_lens.study._step import (
    ROWS,
    Inputs,
    Step,
    load_dictionaries,
    pooled_texts,
    write_rows,
)

RESAMPLED = "resampled.safetensors"
"""The strict scores of all rows on every resample."""


def score_prompts(step: Step[ScoresConfig], inputs: Inputs, job: Job) -> None:
    """Score a layer's dictionaries and controls where the behaviour is decided."""
    pair, config = step.pair(inputs, job), step.config
    select, test = (draw.samples(step.behaviour) for draw in (config.select, config.test))
    tables = evaluate_protocols(
        pair,
        load_dictionaries(inputs, pair=pair),
        LabelledPrompts.from_samples(select, test, read="decision"),
        protocols=config.protocols,
        resampling=Resampling(n_resamples=config.n_resamples, seed=step.seed),
    )
    strict = tables[config.protocols.index("strict")]
    save_file({"strict": strict.resampled}, job.out / RESAMPLED)
    # Rows that read no layer still belong to this layer's table.
    rows = [replace(row, layer=step.layer) for table in tables for row in table]
    write_rows(job, scores=rows)


def score_pooled(step: Step[int], inputs: Inputs, job: Job) -> None:
    """Score the published dictionaries by the paper's protocol, on their training texts."""
    table = evaluate_pooled(
        load_dictionaries(inputs),
        pooled_texts(inputs["pooled"], step.layer or 0),
        resampling=Resampling(n_resamples=step.config, seed=step.seed),
    )
    write_rows(job, scores=table)


def chosen_by_score(inputs: Inputs) -> dict[str, int]:
    """Return the feature of each dictionary that the strict protocol chose on the `select` split."""
    rows = [ScoreRow.from_dict(row) for row in read_json(inputs["scores"] / ROWS)["scores"]]
    return {
        row.name: row.feature_idx
        for row in rows
        if row.kind == "dictionary" and row.protocol == "strict" and row.feature_idx is not None
    }


def sweep(step: Step[ScenesConfig], inputs: Inputs, job: Job) -> None:
    """Read the chosen feature of each dictionary on minimal pairs, by what the prompts say."""
    pair, behaviour = step.pair(inputs, job), step.behaviour
    scenes = behaviour.minimal_pairs(
        "test", behaviour.sweep, n_scenes=step.config.n_scenes, seed=step.seed
    )
    dictionaries = load_dictionaries(inputs, pair=pair)
    rows = sweep_features(pair, dictionaries, chosen_by_score(inputs), scenes)
    write_rows(job, sweep=[replace(row, layer=step.layer) for row in rows])


def show_example(step: Step[ScenesConfig], inputs: Inputs, job: Job) -> None:
    """Read the chosen features per token on scenes, with the trigger and without."""
    pair, behaviour = step.pair(inputs, job), step.behaviour
    dictionaries, chosen = load_dictionaries(inputs, pair=pair), chosen_by_score(inputs)
    said = (behaviour.benign[-1] if behaviour.benign else None, behaviour.trigger)
    n_scenes = step.config.n_scenes
    scenes = behaviour.minimal_pairs("test", said, n_scenes=n_scenes, seed=step.seed)
    samples = [sample for scene in scenes for sample in scene]
    texts = [sample.undecided for sample in samples]
    read = {
        name: token_activations(pair, dictionary, [chosen[name]], texts)
        for name, dictionary in dictionaries.items()
    }
    prompts = [
        ExamplePrompt(
            said=sample.said,
            group=sample.group,
            tokens=next(iter(read.values())).tokens[i],
            activations={name: r.activations[i][:, 0].tolist() for name, r in read.items()},
            feature_idx=chosen,
            layer=step.layer,
        )
        for i, sample in enumerate(samples)
    ]
    write_rows(job, example=prompts)
