"""Memory and time of the `paper` preset's cells, on a random model of SmolLM2-360M's configuration.

Every width is the preset's; texts and steps are cut to a few, and the times scaled back up.

python -m tests.benchmarks.paper_size
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from diffsae_lens.pair._embedded import embedded_model_path
from diffsae_lens.study import Draw, Results, StudyConfig, run
from diffsae_lens.study._presets import paper

LAYER = 26
"""The deepest, which takes the most."""


def write_model(path: Path) -> Path:
    """Write a random model of exactly SmolLM2-360M's configuration, with SmolLM2's tokenizer."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=960, intermediate_size=2560, num_hidden_layers=32,
        num_attention_heads=15, num_key_value_heads=5, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    if not (path / "config.json").exists():
        AutoTokenizer.from_pretrained(embedded_model_path()).save_pretrained(path)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(path)
    return path


def cut(config: StudyConfig, base: Path) -> StudyConfig:
    """The study with few texts and steps, and every width as it is."""

    def few(texts: Draw, n: int) -> Draw:
        return replace(texts, n_trigger=n, n_benign=2 * n, n_other=n)

    return replace(
        config,
        models=replace(
            config.models,
            base=str(base),
            finetuned={
                regime: replace(training, n_trigger=8, n_benign=8, n_other=0, n_steps=2)
                for regime, training in config.models.organisms.items()
                if not isinstance(training, str)
            },
            n_measured=2,
        ),
        layers=(LAYER,),
        pooled=replace(config.pooled, texts=few(config.pooled.texts, 8), batch_size=32, n_passes=8),
        tokens=replace(config.tokens, texts=few(config.tokens.texts, 8), n_steps=4),
        scores=replace(
            config.scores,
            select=few(config.scores.select, 4),
            test=few(config.scores.test, 4),
            n_resamples=20,
        ),
        features=replace(
            config.features, select=replace(config.features.select, n_trigger=2), n_rounds=1
        ),
        causes=replace(
            config.causes,
            test=replace(config.causes.test, n_trigger=2, n_benign=1),
            n_likelihood=1,
        ),
    )


def work(config: StudyConfig) -> dict[str, tuple[str, int]]:
    """What a cell's time grows with, and how much of it there is, by kind of cell."""
    [training, *_] = [o for o in config.models.organisms.values() if not isinstance(o, str)]
    pooled, tokens, scores, features = config.pooled, config.tokens, config.scores, config.features
    n_dictionaries = len(pooled.dictionaries) + len(tokens.dictionaries)
    n_rows = 2 + 2 * len(features.counts) * n_dictionaries
    dense = ("vectors", pooled.n_passes * pooled.texts.n_samples)
    return {
        "organism": ("prompts", training.n_steps * training.batch_size),
        "pooled": ("texts", pooled.texts.n_samples),
        "tokens": ("texts", tokens.texts.n_samples),
        "dictionaries": ("steps", tokens.n_steps),
        "scores": ("prompts", scores.select.n_samples + scores.test.n_samples),
        "pooled_scores": ("texts", pooled.texts.n_samples),
        "features": ("attributions", features.n_rounds * features.select.n_trigger),
        "causes": ("completions", n_rows * config.causes.test.n_samples),
        **dict.fromkeys(pooled.by_name, dense),
    }


def measure(path: Path) -> tuple[Results, pd.DataFrame]:
    """Run the cut study; returns its results and a row for each cell.

    `hours` is the cell's time at the preset's numbers if all of it grew with them: more than it would
    take, since loading and what is done once are counted again for every unit.
    """
    whole = paper()
    config = cut(whole, write_model(path / "model"))
    results = run(config, path / "study")
    rows = []
    for cell in results.cells:
        unit, n = work(config)[cell.part]
        wanted = work(whole)[cell.part][1]
        hours = cell.seconds / n * wanted / 3600
        rows.append(
            {
                "cell": cell.cell, "gigabytes": cell.gigabytes, "seconds": cell.seconds,
                "for": f"{n} {unit}", "preset": f"{wanted} {unit}", "hours": round(hours, 2),
            }
        )  # fmt: skip
    return results, pd.DataFrame(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/paper-size"))
    _, table = measure(parser.parse_args().out)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
