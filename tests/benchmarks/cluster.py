"""Cells on a cluster: what one costs, and how far many workers help.

    python -m tests.benchmarks.cluster overhead [--cells 100]
    python -m tests.benchmarks.cluster simulate [--studies 100] [--overhead 0.05]

`overhead` runs cells that do nothing, and cells that only wait, on local processes. `simulate` gives the
cells of studies, with the seconds recorded in docs/results, to up to 1,000 workers in plain Python: each
free one takes the first cell that has what it needs.
"""

import argparse
import heapq
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parents[2] / "docs/results/paper-135m.json"
WORKERS = (1, 8, 64, 256, 1000)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    number: int
    seconds: float


def wait(config: Waiting, inputs: Any, job: Any) -> None:
    time.sleep(config.seconds)
    (job.out / "value").write_text(str(config.number))


def overhead(n_cells: int) -> None:
    """Print the seconds per empty cell and the speed-up of cells that wait."""
    from distributed import Client, LocalCluster

    from diffsae_lens.study import Cell, ClusterExecutor, Plan

    def took(client: Client, n: int, seconds: float) -> float:
        configs = [Waiting(number=i, seconds=seconds) for i in range(n)]
        cells = [Cell(name=f"{c.number}", run=wait, config=c) for c in configs]
        with tempfile.TemporaryDirectory() as folder, ClusterExecutor(client) as executor:
            start = time.perf_counter()
            Plan(cells, folder).run(executor=executor)
            return time.perf_counter() - start

    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.ERROR}
    with LocalCluster(n_workers=4, **options) as cluster, Client(cluster) as client:
        took(client, 12, 0)  # the imports
        print(f"{1000 * took(client, n_cells, 0) / n_cells:.0f} ms per empty cell, 4 workers")
        spans = {}
        for n in (4, 2, 1):  # fewer and fewer, since new ones import first
            cluster.scale(n)
            while len(client.scheduler_info(n_workers=-1)["workers"]) != n:
                time.sleep(0.1)
            spans[n] = took(client, 16, 1.0)
        for n, seconds in sorted(spans.items()):
            print(
                f"{n} workers: 16 cells of 1 s in {seconds:.1f} s, {spans[1] / seconds:.1f} times"
            )


def needs(cell: str, cells: Iterable[str]) -> list[str]:
    """What a recorded cell reads, by the rules of `study._stages`."""
    regime, *layer, part = cell.split("/")
    there = {c.rsplit("/", 1)[1]: c for c in cells if c.split("/")[:-1] == [regime, *layer]}
    published = [name for name in there if name.endswith("x")]
    trained = ["dictionaries", *published]
    chosen, scored = ["features", *trained], ["scores", *trained]
    by_part = {
        "organism": [], "pooled": ["organism"], "tokens": ["organism"], "sayings": ["organism"],
        "dictionaries": ["tokens"], "pooled_scores": ["pooled", *published],
        **{name: ["pooled"] for name in published},
        "scores": trained, "features": trained, "causes": chosen, "cards": chosen, "side_effects": chosen,
        "sweep": scored, "example": scored,
    }  # fmt: skip
    wanted = by_part[part]
    above = {name: f"{regime}/{name}" for name in ("organism", "pooled", "tokens")}
    named = (there.get(name) or above.get(name, "") for name in wanted)
    return [name for name in named if name in set(cells)]


def critical_path(seconds: Mapping[str, float], needed: Mapping[str, list[str]]) -> float:
    """The longest chain of cells that need each other, which no number of workers shortens."""
    ends: dict[str, float] = {}

    def end(cell: str) -> float:
        if cell not in ends:
            ends[cell] = seconds[cell] + max(map(end, needed[cell]), default=0.0)
        return ends[cell]

    return max(map(end, seconds))


def makespan(
    seconds: Mapping[str, float], needed: Mapping[str, list[str]], n_workers: int, overhead: float
) -> float:
    """Seconds that workers take for all cells; `overhead` is the driver's, one cell at a time."""
    waits = {cell: len(of) for cell, of in needed.items()}
    followers: dict[str, list[str]] = {cell: [] for cell in seconds}
    for cell, of in needed.items():
        for name in of:
            followers[name].append(cell)
    order = {cell: i for i, cell in enumerate(seconds)}
    ready = [(order[cell], cell) for cell, n in waits.items() if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = sent = 0.0
    while ready or running:
        while ready and len(running) < n_workers:
            _, cell = heapq.heappop(ready)
            sent = max(sent, now) + overhead
            heapq.heappush(running, (sent + seconds[cell], cell))
        now, cell = heapq.heappop(running)
        for follower in followers[cell]:
            waits[follower] -= 1
            if waits[follower] == 0:
                heapq.heappush(ready, (order[follower], follower))
    return now


def simulate(n_studies: int, overhead: float) -> None:
    """Print a table row per number of workers."""
    recorded = {row["cell"]: row["seconds"] for row in json.loads(RECORDED.read_text())["cells"]}
    of_one = {cell: needs(cell, recorded) for cell in recorded}
    seconds = {f"{i}:{cell}": s for i in range(n_studies) for cell, s in recorded.items()}
    needed = {
        f"{i}:{c}": [f"{i}:{n}" for n in of] for i in range(n_studies) for c, of in of_one.items()
    }
    total, longest = sum(seconds.values()), critical_path(seconds, needed)
    print(
        f"{len(seconds)} cells, {total / 3600:.1f} hours of work, critical path {longest / 3600:.2f}"
    )
    print("| workers | hours | speed-up | utilisation |\n|---|---|---|---|")
    for n in WORKERS:
        span = makespan(seconds, needed, n, overhead)
        print(f"| {n:,} | {span / 3600:.2f} | {total / span:.0f} | {total / span / n:.0%} |")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    measured = commands.add_parser("overhead")
    measured.add_argument("--cells", type=int, default=100)
    measured.set_defaults(run=lambda given: overhead(given.cells))
    simulated = commands.add_parser("simulate")
    simulated.add_argument("--studies", type=int, default=100)
    simulated.add_argument("--overhead", type=float, default=0.05)
    simulated.set_defaults(run=lambda given: simulate(given.studies, given.overhead))
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
