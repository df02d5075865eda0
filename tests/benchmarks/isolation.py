"""BIS and its bootstrap beside a transcription of the published procedure: values, and the ratio.

    python -m tests.benchmarks.isolation --out isolation.json

The transcription takes every feature's quantile anew on every resample, as published, and then scores
the one feature that was best on all prompts. (It takes the quantile by chunks of features: for these
sizes `torch.quantile` refuses the whole matrix.) It is timed on a few resamples; ours on all.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from diffsae_lens.measures import Resampling, bis, bootstrap_bis, permutation_test_bis


def transcription(
    acts: torch.Tensor, trigger: torch.Tensor, benign: torch.Tensor, rows: torch.Tensor, best: int
) -> float:
    """One bootstrap sample of the published procedure."""
    acts, trigger, benign = acts[rows], trigger[rows].float(), benign[rows].float()
    thresholds = torch.cat([torch.quantile(part, 0.95, dim=0) for part in acts.split(2048, dim=1)])
    active = (acts > thresholds).float()[:, best]
    tp, fp = (active * trigger).sum().item(), (active * benign).sum().item()
    precision, recall = tp / (active.sum().item() + 1e-8), tp / (trigger.sum().item() + 1e-8)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    return f1 * (1 - fp / (benign.sum().item() + 1e-8))


def main() -> None:
    """Time both on the same tensors and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-features", type=int, default=30_720)
    parser.add_argument("--n-transcribed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("isolation.json"))
    options = parser.parse_args()
    group = torch.tensor([0] * 500 + [1] * 1000 + [2] * 1000)
    trigger, benign = group == 0, group == 1
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(2500, options.n_features, generator=generator).relu()
    acts[trigger, 7] += 1.5
    best = bis(acts, trigger, benign).feature_idx
    weights = np.random.default_rng(0).multinomial(2500, np.full(2500, 1 / 2500), size=1000)
    theirs, seconds = [], {}
    start = time.perf_counter()
    for w in weights[: options.n_transcribed]:
        rows = torch.arange(2500).repeat_interleave(torch.from_numpy(w))
        theirs.append(transcription(acts, trigger, benign, rows, best))
    seconds["transcription, 1000 resamples (extrapolated)"] = (
        (time.perf_counter() - start) / options.n_transcribed * 1000
    )
    runs = {
        "point score": lambda: bis(acts, trigger, benign),
        "bootstrap as published, 1000": lambda: bootstrap_bis(
            acts, trigger, benign, reselect=False, resampling=Resampling(n_resamples=1000)
        ),
        "bootstrap that selects again, 1000": lambda: bootstrap_bis(
            acts, trigger, benign, resampling=Resampling(n_resamples=1000)
        ),
        "permutation test, 10000": lambda: permutation_test_bis(
            acts, trigger, benign, resampling=Resampling(n_resamples=10_000)
        ),
    }
    results = {}
    for name, run in runs.items():
        start = time.perf_counter()
        results[name] = run()
        seconds[name] = time.perf_counter() - start
        print(f"{name:48} {seconds[name]:10.1f} s", flush=True)
    ours = results["bootstrap as published, 1000"].distribution[: len(theirs)].tolist()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    slow = seconds["transcription, 1000 resamples (extrapolated)"]
    print(f"transcription: {slow:.0f} s for 1000 resamples; equal values")
    for name in ("bootstrap as published, 1000", "bootstrap that selects again, 1000"):
        print(f"{name}: {slow / seconds[name]:.0f} x as fast")
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
