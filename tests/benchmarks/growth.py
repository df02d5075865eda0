"""Time and memory against the number of features (a training step) and of models (harvests).

    python -m tests.benchmarks.growth [--streaming streaming.json] [--figure docs/images/growth.png]

Every size has a process of its own. With the output of `tests.benchmarks.streaming`, the figure also shows
training against the number of tokens.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import psutil
import torch
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from diffsae_lens.dictionaries import SparseBatchTopKTrainingSAEConfig
from diffsae_lens.training import harvest
from diffsae_lens.training._optimizer import fuse_adam
from tests.conftest import HOOKS, byte_tokenizer, hooked, plant, tiny_llama

D_IN, K, BATCH, N_STEPS = 576, 32, 1024, 4
FEATURES = tuple(1024 * 2**i for i in range(8))
MODELS, N_SEQUENCES = (1, 2, 4, 8), 400
MB = 2**20


def of_features(d_sae: int) -> dict[str, Any]:
    """Seconds per step and peak memory of a Diff-SAE of so many features."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    config = SparseBatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=d_sae, k=K, decoder_init_norm=0.1, normalize_activations="none"
    )
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=BATCH, lr=1e-4, lr_end=1e-4),
        TrainingSAE.from_dict(config.to_dict()), iter(()),
    )  # fmt: skip
    fuse_adam(trainer)
    batch = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(N_STEPS + 1):
        start = time.perf_counter()
        trainer.step(batch)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"n": d_sae, "seconds": statistics.median(seconds[1:]), "peak_mb": (peak - before) / MB}


def of_models(n: int) -> dict[str, Any]:
    """Seconds and peak memory of harvests of so many fine-tunes of one base, which reads the texts once."""
    torch.set_num_threads(1)
    tokens = torch.randint(100, (N_SEQUENCES, 64), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_llama()
        pair = hooked(base, plant(base), byte_tokenizer(Path(folder) / "tokenizer"))
        names = [f"{HOOKS[1]}.concat"]
        pair.activations(tokens[:1], names)
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        first = None
        for i in range(n):
            found = harvest(pair, tokens, Path(folder) / f"{i}", hook_names=names, base=first)
            first = first or found
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"n": n, "seconds": seconds, "peak_mb": (peak - before) / MB}


def draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw time and memory against each size, with a line of slope one."""
    size = (3.4 * len(rows), 5.6)
    figure, axes = plt.subplots(2, len(rows), figsize=size, layout="constrained", squeeze=False)
    for (above, below), (what, of) in zip(axes.T, rows.items(), strict=True):
        sizes = [row["n"] for row in of]
        linear = [of[-1]["seconds"] * n / sizes[-1] for n in sizes]
        above.loglog(sizes, linear, color="0.6", linestyle=":", label="linear")
        for axis, key in ((above, "seconds"), (below, "peak_mb")):
            axis.loglog(sizes, [row[key] for row in of], marker="o")
            axis.grid(alpha=0.3)
            axis.set_xticks(sizes[:: max(1, len(sizes) // 3)], minor=False)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.xaxis.set_minor_formatter("")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
        above.set(ylabel="seconds", ylim=(min(linear) / 2, 2 * max(linear)))
        above.legend(frameon=False)
        below.set(xlabel=what, ylabel="peak memory, MB", ylim=(1, 10_000))
    figure.savefig(path, dpi=160)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streaming", type=Path, help="output of tests.benchmarks.streaming")
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    options = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    if options.streaming:
        streamed = json.loads(options.streaming.read_text())["rows"]
        rows["tokens"] = [{"n": r["tokens"], **r} for r in streamed if r["way"] == "stream"]
    spawn = multiprocessing.get_context("spawn")
    measured = ("features", of_features, FEATURES), ("fine-tunes of a base", of_models, MODELS)
    for what, measure, sizes in measured:
        rows[what] = []
        for size in sizes:
            with spawn.Pool(1) as pool:
                rows[what].append(pool.apply(measure, (size,)))
            print(what, rows[what][-1], flush=True)
    draw(rows, options.figure)


if __name__ == "__main__":
    main()
