"""Memory and time of the `paper` preset's cells, on a random model of SmolLM2-360M's configuration.

Every width is the preset's; texts and steps are cut to a few, and the times scaled back up.

python -m tests.benchmarks.paper_size
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffsae_lens.study.reproduce import reproduce
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from diffsae_lens.pair._embedded import embedded_model_path
from diffsae_lens.study._config import StudyConfig, Texts
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

    def few(texts: Texts, n: int) -> Texts:
        return replace(texts, n_trigger=n, n_benign=2 * n, n_other=n)

    return replace(
        config,
        base=str(base),
        layers=(LAYER,),
        organisms={
            regime: replace(training, n_trigger=8, n_benign=8, n_other=0, n_steps=2)
            for regime, training in config.organisms.items()
            if not isinstance(training, str)
        },
        pooled=replace(config.pooled, texts=few(config.pooled.texts, 8), batch_size=32, n_passes=8),
        tokens=replace(config.tokens, texts=few(config.tokens.texts, 8), n_steps=4),
        scored=(few(config.scored[0], 4), few(config.scored[1], 4)),
        causes=replace(
            config.causes,
            select=replace(config.causes.select, n_trigger=2),
            test=replace(config.causes.test, n_trigger=2, n_benign=1),
            n_rounds=1,
            n_likelihood=1,
        ),
        n_resamples=20,
        n_card_prompts=2,
    )


def work(config: StudyConfig) -> dict[str, tuple[str, int]]:
    """What a cell's time grows with, and how much of it there is, by kind of cell."""
    [training, *_] = [o for o in config.organisms.values() if not isinstance(o, str)]
    n_dictionaries = len(config.pooled.expansions) + 3
    n_rows = 2 + 2 * len(config.causes.counts) * n_dictionaries
    dense = ("vectors", config.pooled.n_passes * config.pooled.texts.n_texts)
    return {
        "organism": ("prompts", training.n_steps * training.batch_size),
        "pooled": ("texts", config.pooled.texts.n_texts),
        "tokens": ("texts", config.tokens.texts.n_texts),
        "dictionaries": ("steps", config.tokens.n_steps),
        "scores": ("prompts", sum(texts.n_texts for texts in config.scored)),
        "causes": ("completions", n_rows * config.causes.test.n_texts),
        **dict.fromkeys(config.pooled.expansions, dense),
    }


def measure(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Run the cut study; returns its results and a row for each cell.

    `hours` is the cell's time at the preset's numbers if all of it grew with them: more than it would
    take, since loading and what is done once are counted again for every unit.
    """
    whole = paper()
    config = cut(whole, write_model(path / "model"))
    results = reproduce(config, path / "study")
    rows = []
    for cell in results["cells"]:
        kind = cell["cell"].rsplit("/", 1)[-1]
        unit, n = work(config)[kind]
        wanted = work(whole)[kind][1]
        hours = cell["seconds"] / n * wanted / 3600
        rows.append(
            {
                "cell": cell["cell"], "gigabytes": cell["gigabytes"], "seconds": cell["seconds"],
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
