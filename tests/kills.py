"""Kill a computation at random moments: what the next run makes of the rest must be the same bytes.

`python -m tests.kills <subject> <folder> <n_rounds> <seed>` prints a JSON report. It imports once and forks
a child for every attempt, with one thread, so that a kill costs no second start.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

KILLS_PER_ROUND = 2

Run = Callable[[Path], None]


def artifact(_: Path) -> Run:
    """Many small files and a scratch folder that later attempts go on with."""
    from diffsae_lens._artifact import Job, build, write_text

    def write(job: Job) -> None:
        for i in range(20):
            if not (job.scratch / f"{i}").exists():
                write_text(job.scratch / f"{i}", f"{i}" * 1000)
            write_text(job.out / "parts" / f"{i}", (job.scratch / f"{i}").read_text())

    return lambda path: build(path, {"parts": 20}, write)  # type: ignore[return-value]


def _pair(folder: Path):
    from tests.conftest import byte_tokenizer, hooked, plant, tiny_llama

    base = tiny_llama()
    return hooked(base, plant(base), byte_tokenizer(folder / "tokenizer"))


def _harvest(folder: Path) -> Run:
    import torch

    from diffsae_lens.training._harvest import HarvestConfig, harvest
    from tests.conftest import HOOKS

    pair = _pair(folder)
    tokens = torch.randint(3, 259, (64, 12), generator=torch.Generator().manual_seed(0))
    names = [f"{HOOKS[1]}.{view}" for view in ("diff", "concat")]
    config = HarvestConfig(batch_size=4, sequences_per_shard=8)
    return lambda path: harvest(pair, tokens, path, hook_names=names, config=config)  # type: ignore[return-value]


def _training(folder: Path) -> Run:
    from sae_lens.config import SAETrainerConfig

    from diffsae_lens.training._activations import open_harvest
    from diffsae_lens.training._runner import TrainingRun, train_dictionaries
    from tests.training.test_runner import sparse_configs

    _harvest(folder)(folder / "activations")
    activations = open_harvest(folder / "activations")

    def run(path: Path) -> None:
        trainer = SAETrainerConfig(
            total_training_samples=64 * 30,
            train_batch_size_samples=64,
            lr=3e-3,
            lr_end=3e-4,
            dead_feature_window=10,
            n_checkpoints=6,
            checkpoint_path=str(path / "checkpoints"),
            n_batches_for_norm_estimate=3,
        )
        run = TrainingRun(trainer=trainer)
        train_dictionaries(sparse_configs(), activations, path / "dictionaries", run=run)

    return run


def _finetune(folder: Path) -> Run:
    from diffsae_lens.organisms._finetune import finetune
    from tests.conftest import byte_tokenizer
    from tests.organisms.test_finetune import CONFIG, model

    tokenizer = byte_tokenizer(folder / "tokenizer")
    return lambda path: finetune(model(), tokenizer, path, config=CONFIG)  # type: ignore[return-value]


SUBJECTS = {"artifact": artifact, "harvest": _harvest, "training": _training, "finetune": _finetune}

# What is not the same twice: times, and how `datasets` names a table.
NOT_COMPARED = {
    "artifact.json",
    "state.json",
    "dataset_info.json",
    "organism.json",
    "trainer_cfg.json",
}


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file that must be the same."""
    files = [p for p in path.rglob("*") if p.is_file() and p.name not in NOT_COMPARED]
    return {
        p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if not p.name.endswith(".lock")
    }


def start(run: Run, path: Path) -> int:
    """Run in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 1)
            run(path)
            status = 0
    finally:
        os._exit(status)


def finish(run: Run, path: Path) -> float:
    """Run in a child to the end; returns the seconds it took."""
    begun = time.perf_counter()
    _, status = os.waitpid(start(run, path), 0)
    if status:
        raise SystemExit(f"{path}: the child ended with {status}")
    return time.perf_counter() - begun


def report(subject: str, folder: Path, n_rounds: int, seed: int) -> dict:
    """Kill and go on; say which files were not the same in the end, and what was left beside them."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    run = SUBJECTS[subject](folder)
    results = folder / "results"
    results.mkdir()
    seconds = finish(run, results / "whole")
    expected = digests(results / "whole")
    n_killed, changed = 0, []
    for i in range(n_rounds):
        path = results / f"round-{i}"
        for _ in range(KILLS_PER_ROUND):
            child = start(run, path)
            time.sleep(rng.uniform(0.0, 0.8 * seconds))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            n_killed += os.WIFSIGNALED(status)
        finish(run, path)
        found = digests(path)
        changed += [
            f"{path.name}: {n}" for n in expected | found if expected.get(n) != found.get(n)
        ]
    names = {"whole", *(f"round-{i}" for i in range(n_rounds))}
    left = [p.name for p in results.iterdir() if p.name not in names and p.suffix != ".lock"]
    left += [p.as_posix() for p in results.rglob("*.partial")]
    return {"n_files": len(expected), "n_killed": n_killed, "changed": changed, "left": left}


def main(subjects: str, folder: str, n_rounds: str, seed: str) -> None:
    """Report on subjects, separated by commas."""
    if subjects != "artifact":
        import torch

        torch.set_num_threads(1)
    found = {
        name: report(name, Path(folder) / name, int(n_rounds), int(seed))
        for name in subjects.split(",")
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
