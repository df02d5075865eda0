"""Paired tokens a second of the harvest, beside the bare models and one pass for each layer.

python -m tests.benchmarks.harvest --out harvest.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diffsae_lens import HookedModelPair, load_pair
from diffsae_lens.organisms.sql_injection import YEAR_TRIGGER

LAYERS = (14, 18, 22, 26)


def hooks(layers: tuple[int, ...]) -> list[str]:
    """Virtual hook points of the layers."""
    return [f"blocks.{layer}.hook_resid_post.concat" for layer in layers]


def one_pass(pair: HookedModelPair, tokens: torch.Tensor, layers: tuple[int, ...]) -> None:
    """What the harvest does with a batch, without the disk."""
    pair.activations(tokens, hooks(layers))


class _StopError(Exception):
    pass


def bare(pair: HookedModelPair, tokens: torch.Tensor) -> None:
    """Both models through transformers alone, stopped after the deepest layer, adapters switched."""

    def stop(*_: object) -> None:
        raise _StopError

    model = pair.finetuned.original_model
    handle = model.model.layers[max(LAYERS)].register_forward_hook(stop)
    try:
        for switched in (pair.base_model, None):
            try:
                if switched is None:
                    model.model(tokens, use_cache=False)
                else:
                    with switched():
                        model.model(tokens, use_cache=False)
            except _StopError:
                pass
    finally:
        handle.remove()


def main() -> None:
    """Time the three in turns and print paired tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("harvest.json"))
    options = parser.parse_args()
    names = [f"blocks.{layer}.hook_resid_post" for layer in LAYERS]
    pair = load_pair("smollm2-135m", "year-trigger", hook_names=names)
    samples = YEAR_TRIGGER.make_samples("train", n_trigger=8, n_benign=8, n_other=0)
    tokens = pair.to_tokens([s.prompt + s.unwanted for s in samples])
    ways: dict[str, Callable[[], object]] = {
        "one pass": lambda: one_pass(pair, tokens, LAYERS),
        "bare transformers": lambda: bare(pair, tokens),
        "one pass a layer": lambda: [one_pass(pair, tokens, (layer,)) for layer in LAYERS],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(options.rounds + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    rates = {n: tokens.numel() / statistics.median(s[1:]) for n, s in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:20} {rate:8.0f} paired tokens/s, {rates['one pass'] / rate:.2f} x slower")
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, "tokens_per_second": rates}, indent=1))


if __name__ == "__main__":
    main()
