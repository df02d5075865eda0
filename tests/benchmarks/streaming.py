"""Training from a stream beside training from a harvest on disk: tokens a second, memory, disk.

python -m tests.benchmarks.streaming --tokens 100000 1000000 --out streaming.json

Every run has a process of its own, which says how much memory it took beyond what was there before the
training began: at its peak, and at each fifth of the texts.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from diffsae_lens.training import HarvestConfig, StreamConfig, TrainConfig, train
from tests.conftest import HOOKS, byte_tokenizer, hooked, plant, tiny_llama

CONTEXT, BATCH, D_MODEL = 128, 512, 32
WAYS = ("stream", "disk", "disk, bfloat16")
MB = 2**20


class Texts:
    """Random texts of a whole context each; notes how much memory is in use on the way.

    Of few words: a tokenizer remembers 10,000 different ones.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.memory: list[int] = []

    def __iter__(self) -> Iterator[str]:
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(1000)]
        for i in range(self.n):
            if i % (self.n // 5) == self.n // 5 - 1:
                self.memory.append(psutil.Process().memory_info().rss)
            yield " ".join(rng.choices(words, k=CONTEXT // 8 + 1))


def measure(way: str, n_tokens: int) -> dict[str, Any]:
    """Train a small crosscoder on so many tokens and say what it took."""
    torch.set_num_threads(1)
    n_steps = n_tokens // BATCH
    stream = StreamConfig(buffer_tokens=16_384, n_held_out=32)
    # Besides the tokens: those held out, and what the buffer keeps at the end.
    n_texts = n_tokens // (CONTEXT - 1) + 2 + stream.n_held_out
    dtype = "bfloat16" if way.endswith("bfloat16") else "float32"
    with tempfile.TemporaryDirectory() as folder:
        base = tiny_llama(hidden_size=D_MODEL)
        pair = hooked(base, plant(base), byte_tokenizer(Path(folder) / "tokenizer"))
        texts = Texts(n_texts)
        pair.activations("warm up", f"{HOOKS[1]}.diff")
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        train(
            pair, texts if way == "stream" else list(texts), site=HOOKS[1], kind="crosscoder",
            d_sae=8 * D_MODEL, k=8, n_steps=n_steps, path=Path(folder) / "run",
            config=TrainConfig(
                context_size=CONTEXT, batch_size=BATCH, stream=stream, calibration_fraction=0.01,
                harvest=HarvestConfig(dtype=dtype),
            ),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        files = [p for p in (Path(folder) / "run").rglob("*") if p.is_file()]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "tokens": n_steps * BATCH,
            "seconds": seconds,
            "tokens_per_second": n_steps * BATCH / seconds,
            "peak_mb": (peak - before) / MB,
            "mb_at_each_fifth": [(m - before) / MB for m in texts.memory]
            if way == "stream"
            else None,
            "disk_mb": sum(p.stat().st_size for p in files) / MB,
        }


def main() -> None:
    """Measure each way at each length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, default=Path("streaming.json"))
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for n_tokens in options.tokens:
        for way in options.ways:
            with spawn.Pool(1) as pool:
                row = {"way": way} | pool.apply(measure, (way, n_tokens))
            rows.append(row)
            fifths = [f"{m:.0f}" for m in row["mb_at_each_fifth"] or ()]
            print(
                f"{way:15} {row['tokens']:9} tokens {row['tokens_per_second']:8.0f} tokens/s, peak "
                f"{row['peak_mb']:6.0f} MB {fifths}, on disk {row['disk_mb']:6.1f} MB",
                flush=True,
            )
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
