"""The isolation tables of docs/isolation.md: dictionaries, controls and null runs on the organisms.

    python -m tests.benchmarks.scores study --out study [--layers 14 18 22 26 --seeds 0 1 2]
    python -m tests.benchmarks.scores nulls --out nulls [--n-prompt-sets 5]

`study` scores every dictionary and control by both protocols. `nulls` counts false alarms where
there is nothing to find: dictionaries of the clean-control organism, on new prompts for every set
and on the base model against itself. Harvests and dictionaries are kept in the folder, so a run that
was stopped goes on.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig

import diffsae_lens as dl
from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.isolation import IsolationTable
from diffsae_lens.measures import Resampling
from diffsae_lens.organisms._behaviour import Split
from diffsae_lens.organisms.sql_injection import YEAR_TRIGGER
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.training import PairedActivations
from diffsae_lens.training._runner import DictionaryRunnerConfig

D_MODEL = 576
SIZE = {"d_sae": 1152, "k": 32}
N_STEPS, BATCH_SIZE = 250, 512


def hook_names(layers: Sequence[int]) -> list[str]:
    """The residual streams after these layers."""
    return [f"blocks.{layer}.hook_resid_post" for layer in layers]


def samples(split: Split, n: int, by: tuple[int, int, int], seed: int = 0) -> list[dl.Sample]:
    """`n` samples in the proportion trigger : benign : other."""
    counts = [n * share // sum(by) for share in by]
    return YEAR_TRIGGER.make_samples(
        split, n_trigger=counts[0], n_benign=counts[1], n_other=counts[2], seed=seed
    )


def harvest(
    pair: dl.HookedModelPair,
    folder: Path,
    *,
    attacks: bool,
    chosen: Sequence[dl.Sample] | None = None,
) -> PairedActivations:
    """Activations of samples (200 of the `train` split) with the completion that the organism writes."""
    texts = [
        s.written if attacks else s.prompt + s.wanted
        for s in chosen or samples("train", 200, (2, 2, 1))
    ]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = pair.to_tokens([texts[i] for i in order], padding_side="right")
    views = ("diff", "concat", "finetuned")
    names = [f"{hook_name}.{view}" for hook_name in pair.hook_names for view in views]
    return dl.training.harvest(pair, tokens, folder, hook_names=names)


def recipes(hook_name: str, *, controls: bool) -> dict[str, DictionaryRunnerConfig]:
    """The dictionaries of one hook."""
    raw, scaled = dl.training.Normalization(center=False), dl.training.Normalization()

    def sparse(**options: object) -> SparseBatchTopKTrainingSAEConfig:
        return SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, **SIZE, **options)

    both = BatchTopKCrosscoderTrainingSAEConfig(d_in=2 * D_MODEL, **SIZE)
    main = {
        "Diff-SAE": dl.training.DiffSAERunnerConfig(
            hook_name=hook_name, sae=sparse(), normalization=raw
        ),
        "crosscoder": dl.training.CrosscoderRunnerConfig(
            hook_name=hook_name, sae=both, normalization=scaled
        ),
    }
    if not controls:
        return main
    return main | {
        "Diff-SAE, frozen decoder": dl.training.DiffSAERunnerConfig(
            hook_name=hook_name, sae=sparse(frozen_decoder=True), normalization=raw
        ),
        "plain SAE": dl.training.FinetunedSAERunnerConfig(
            hook_name=hook_name, sae=sparse(), normalization=scaled
        ),
    }


def train(
    activations: PairedActivations, layers: Sequence[int], seeds: Sequence[int], folder: Path, *,
    controls: bool = True,
) -> dict[str, list[SAE]]:  # fmt: skip
    """Every recipe at every layer, a dictionary for each seed."""
    configs = {
        f"{name}-{layer}": config
        for layer, hook_name in zip(layers, hook_names(layers), strict=True)
        for name, config in recipes(hook_name, controls=controls).items()
    }
    trainer = SAETrainerConfig(
        total_training_samples=BATCH_SIZE * N_STEPS, train_batch_size_samples=BATCH_SIZE, lr=2e-3,
        lr_end=2e-4, lr_warm_up_steps=25, lr_decay_steps=N_STEPS // 2,
        dead_feature_window=N_STEPS // 8, n_batches_for_norm_estimate=20,
    )  # fmt: skip
    runs = [
        dl.training.train_dictionaries(
            configs,
            activations,
            folder / f"seed-{seed}",
            run=dl.training.TrainingRun(trainer=trainer, seed=seed),
        )
        for seed in seeds
    ]
    return {name: [run[name] for run in runs] for name in configs}


def show(table: IsolationTable, path: Path) -> None:
    """Write a table as JSON, and as Markdown with one row for all seeds."""
    path.with_suffix(".json").write_text(table.to_json())
    short = table.over_seeds()
    columns = ["name", "hook_name", "n_seeds", "bis", "bis_min", "bis_max", "low", "high"]
    columns += ["ceiling", "base_bis", "pvalue", "verdict"]
    path.with_suffix(".md").write_text(short.to_markdown(columns) + "\n")
    print(short.to_markdown(columns), flush=True)


def study(options: argparse.Namespace) -> None:
    """Both protocols on one organism."""
    folder = options.out / options.organism
    pair = dl.load_pair(EMBEDDED_MODEL, options.organism, hook_names=hook_names(options.layers))
    activations = harvest(pair, folder / "acts", attacks=options.organism == "year-trigger")
    dictionaries = train(activations, options.layers, options.seeds, folder)
    split = [samples(name, options.n_prompts, (1, 2, 2)) for name in ("select", "test")]
    for protocol in ("strict", "paper"):
        read = "decision" if protocol == "strict" else "everything"
        prompts = dl.LabelledPrompts.from_samples(*split, read=read)
        table = dl.evaluate_isolation(pair, dictionaries, prompts, protocol=protocol)
        show(table, folder / protocol)


def nulls(options: argparse.Namespace) -> None:
    """False alarms of the strict verdict: two seeds of each recipe for each set of prompts."""
    layers = options.layers[-1:]
    pair = dl.load_pair(EMBEDDED_MODEL, "clean-control", hook_names=hook_names(layers))
    same = dl.load_pair(EMBEDDED_MODEL, EMBEDDED_MODEL, hook_names=hook_names(layers))
    activations = harvest(pair, options.out / "acts", attacks=False)
    n_runs = n_alarms = 0
    for i in range(options.n_prompt_sets):
        trained = train(activations, layers, (2 * i, 2 * i + 1), options.out, controls=False)
        split = [samples(name, options.n_prompts, (1, 2, 2), i) for name in ("select", "test")]
        table = dl.evaluate_isolation(
            pair,
            trained,
            dl.LabelledPrompts.from_samples(*split),
            resampling=Resampling(n_resamples=200, seed=i),
            null_pairs={"base against base": same},
        )
        show(table, options.out / f"set-{i}")
        runs = [row for row in table if row.kind in ("dictionary", "null pair")]
        n_runs += len(runs)
        n_alarms += sum(row.verdict.startswith("isolated") for row in runs)
        print(f"{n_alarms} false alarms in {n_runs} null runs", flush=True)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["study", "nulls"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--organism", default="year-trigger")
    parser.add_argument("--layers", type=int, nargs="+", default=[14, 18, 22, 26])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-prompts", type=int, default=120, help="in each split")
    parser.add_argument("--n-prompt-sets", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    {"study": study, "nulls": nulls}[options.what](options)


if __name__ == "__main__":
    main()
