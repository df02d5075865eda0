"""The table of docs/dictionaries.md: four dictionaries of the shipped organism, trained in lockstep.

    python -m tests.benchmarks.lockstep --out lockstep

Trained on 180 texts, thresholds set on 20 others; scored on 40 new texts of the same templates, and
on 40 of the `test` split, whose templates are others.
"""

import argparse
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.config import SAETrainerConfig

import diffsae_lens as dl
from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    DeltaCrosscoderTrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.dictionaries._decoding import decoder_halves
from diffsae_lens.measures import relative_decoder_norm
from diffsae_lens.measures._geometry import call_by_decoder_norm
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.training._runner import DictionaryRunnerConfig
from tests.benchmarks.scores import D_MODEL, harvest, hook_names, samples

[HOOK_NAME] = hook_names([18])
D_SAE, N_STEPS, BATCH_SIZE = 2304, 600, 512


def recipes() -> dict[str, DictionaryRunnerConfig]:
    """A Diff-SAE and three crosscoders with 32 active features."""
    both: dict[str, Any] = {"d_in": 2 * D_MODEL, "d_sae": D_SAE}
    crosscoders = {
        "BatchTopK crosscoder": BatchTopKCrosscoderTrainingSAEConfig(**both, k=32),
        "dedicated features (5%, 5%, 90%)": BatchTopKCrosscoderTrainingSAEConfig(
            **both, k=32, n_base_only=D_SAE // 20, n_finetuned_only=D_SAE // 20
        ),
        "Delta-crosscoder (experimental)": DeltaCrosscoderTrainingSAEConfig(
            **both, k=24, k_delta=8, n_delta_features=D_SAE // 5
        ),
    }
    return {
        "Diff-SAE": dl.training.DiffSAERunnerConfig(
            hook_name=HOOK_NAME,
            sae=SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=32),
            normalization=dl.training.Normalization(center=False),
        )
    } | {
        name: dl.training.CrosscoderRunnerConfig(
            hook_name=HOOK_NAME,
            sae=sae,
            normalization=dl.training.Normalization(
                scale="common" if "Delta" in name else "by model"
            ),
        )
        for name, sae in crosscoders.items()
    }


def describe(pair: dl.HookedModelPair, sae: SAE, tokens: Any, **held_out: Any) -> dict[str, Any]:
    """A row of the table: reconstruction on each set of activations, loss recovered on the tokens."""
    row: dict[str, Any] = {}
    for name, activations in held_out.items():
        found = dl.reading.reconstruction(sae, activations.split(BATCH_SIZE))
        row[name] = {"l0": found.l0, "dead": found.n_dead, "dense": found.n_dense}
        row[name] |= found.variance_explained
    recovered = dl.reading.recovered(pair, sae, tokens)
    row |= {
        "ce_recovered": recovered.ce_recovered,
        "kl_recovered": recovered.kl_recovered,
        "cross_entropy": recovered.cross_entropy,
    }
    if sae.cfg.d_in == 2 * D_MODEL:
        scaling = dl.reading.latent_scaling(sae, held_out["same_templates"].split(BATCH_SIZE))
        called = call_by_decoder_norm(relative_decoder_norm(*decoder_halves(sae)))
        row |= {"specific": int(scaling.is_specific.sum()), "called": dict(Counter(called))}
    return row


def main() -> None:
    """Train what is not there, and write the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    pair = dl.load_pair(EMBEDDED_MODEL, "year-trigger", hook_names=[HOOK_NAME])
    activations = harvest(pair, options.out / "acts", attacks=True)
    trainer = SAETrainerConfig(
        total_training_samples=BATCH_SIZE * N_STEPS, train_batch_size_samples=BATCH_SIZE, lr=2e-3,
        lr_end=2e-4, lr_warm_up_steps=N_STEPS // 10, lr_decay_steps=N_STEPS // 2,
        dead_feature_window=N_STEPS // 8, n_batches_for_norm_estimate=20,
    )  # fmt: skip
    start = time.perf_counter()
    configs = recipes()
    trained = dl.training.train_dictionaries(
        configs, activations, options.out / "saes", run=dl.training.TrainingRun(trainer=trainer)
    )
    print(f"trained in {time.perf_counter() - start:.0f} s")
    sets = {
        "same_templates": samples("train", 40, (2, 2, 1), seed=1),
        "other_templates": samples("test", 40, (2, 2, 1)),
    }
    harvests = {
        name: harvest(pair, options.out / name, attacks=True, chosen=chosen)
        for name, chosen in sets.items()
    }
    texts = [s.written for s in sets["other_templates"]]
    tokens = pair.to_tokens(texts, padding_side="right")
    rows = {}
    for name, sae in trained.items():
        hook_name = configs[name].hook.name
        held_out = {n: h.rows(0, h.n_sequences)[hook_name] for n, h in harvests.items()}
        rows[name] = describe(pair, sae, tokens, **held_out)
    (options.out / "table.json").write_text(json.dumps(rows, indent=1))
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
