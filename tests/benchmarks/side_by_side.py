"""Completing under many edits at once against one after the other, in one run.

    python -m tests.benchmarks.side_by_side

Prints seconds of each, their ratio, and how many completions are the same.
"""

import argparse
import time
from collections.abc import Callable

import torch

import diffsae_lens as dl
from diffsae_lens.interventions._edit import Edit, running
from tests.benchmarks.scores import hook_names, samples

N_PROMPTS, N_EDITS, N_ROUNDS = 10, 12, 2


def main() -> None:
    """Time both, interleaved."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    [hook_name] = hook_names([18])
    pair = dl.load_pair("smollm2-135m", "year-trigger", hook_names=[hook_name])
    prompts = [s.prompt for s in samples("test", N_PROMPTS, (1, 0, 0))]
    directions = torch.randn(
        N_EDITS - 2, pair.cfg.d_model, generator=torch.Generator().manual_seed(0)
    )
    under: dict[str, Edit | None] = {
        "unmodified": None,
        "base put back": dl.swap_to_base(pair, hook_name),
    } | {
        f"direction {i}": dl.interventions.project_out(pair, f"{hook_name}.diff", direction)
        for i, direction in enumerate(directions)
    }

    def one_by_one() -> dict[str, list[str]]:
        written = {}
        for name, edit in under.items():
            with running(pair, edit) as acting:
                written[name] = dl.complete(acting, prompts)
        return written

    def timed(run: Callable[[], dict[str, list[str]]]) -> tuple[float, dict[str, list[str]]]:
        start = time.perf_counter()
        written = run()
        return time.perf_counter() - start, written

    for _ in range(N_ROUNDS):
        alone, expected = timed(one_by_one)
        together, written = timed(lambda: dl.complete(pair, prompts, under=under))
        n_same = sum(
            a == b for n in under for a, b in zip(expected[n], written[n], strict=True)
        )  # fmt: skip
        print(
            f"{N_EDITS} edits, {N_PROMPTS} prompts: one by one {alone:.0f} s, at once "
            f"{together:.0f} s, {alone / together:.1f} x as fast; {n_same} of "
            f"{N_EDITS * N_PROMPTS} completions the same",
            flush=True,
        )


if __name__ == "__main__":
    main()
