"""Completing under many interventions at once against one after the other, side by side in one run.

    python -m tests.benchmarks.side_by_side

Prints seconds of each, their ratio, and how many completions are the same.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch

import diffsae_lens as dl
from diffsae_lens.interventions.side_by_side import Intervene
from tests.benchmarks.scores import hook_names, samples

N_PROMPTS, N_INTERVENTIONS, N_ROUNDS = 10, 12, 2


def main() -> None:
    """Time both, interleaved."""
    [hook_name] = hook_names([18])
    pair = dl.load_pair("smollm2-135m", "year-trigger", hook_names=[hook_name])
    prompts = [s.prompt for s in samples("test", N_PROMPTS, (1, 0, 0))]
    directions = torch.randn(
        N_INTERVENTIONS - 2, pair.cfg.d_model, generator=torch.Generator().manual_seed(0)
    )
    opened: dict[str, Intervene] = {
        "unmodified": nullcontext,
        "base put back": partial(dl.swap_to_base, pair, hook_name),
    } | {
        f"direction {i}": partial(dl.project_out, pair, f"{hook_name}.diff", direction)
        for i, direction in enumerate(directions)
    }

    def one_by_one() -> dict[str, list[str]]:
        written = {}
        for name, intervene in opened.items():
            with intervene():
                written[name] = dl.complete(pair, prompts)
        return written

    def timed(run: Callable[[], dict[str, list[str]]]) -> tuple[float, dict[str, list[str]]]:
        start = time.perf_counter()
        written = run()
        return time.perf_counter() - start, written

    for _ in range(N_ROUNDS):
        alone, expected = timed(one_by_one)
        together, written = timed(lambda: dl.complete_under(pair, opened, prompts))
        n_same = sum(
            a == b for n in opened for a, b in zip(expected[n], written[n], strict=True)
        )  # fmt: skip
        print(
            f"{N_INTERVENTIONS} interventions, {N_PROMPTS} prompts: one by one {alone:.0f} s, at once "
            f"{together:.0f} s, {alone / together:.1f} x as fast; {n_same} of "
            f"{N_INTERVENTIONS * N_PROMPTS} completions the same",
            flush=True,
        )


if __name__ == "__main__":
    main()
