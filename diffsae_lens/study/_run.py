"""Run a study, or report what running it would take."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pandas as pd
import torch

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.study._collect import write_results
from diffsae_lens.study._config import StudyConfig
from diffsae_lens.study._feasible import check_feasible, check_out_folder, fetch_config
from diffsae_lens.study._plan import Plan
from diffsae_lens.study._results import Results
from diffsae_lens.study._stages import cells_of


@typed
def run(
    config: StudyConfig, path: str | Path, *, n_workers: Count = 1, executor: Executor | None = None
) -> Results:
    """Run a study, or what is left of it.

    Finished cells with the same models (by their weights, not their names), settings and versions are
    checked and read. Damaged cells are named, set aside and computed again. One folder may hold several
    studies, which share what they have in common, and two runs in it share the work.

    Args:
        config: what to run; see `PRESETS`.
        path: the study's folder.
        n_workers: number of cells computed at the same time, each in its own process if more than one.
        executor: where cells run instead: any `concurrent.futures.Executor`, such as a `ClusterExecutor`,
            whose workers see `path`. It is not shut down. Threads of one process share torch's generator,
            which training seeds, so give a thread pool only one worker.

    Returns:
        The contents of `<path>/results.json`.

    Raises:
        TypeError: `executor` is not an executor.
        ValueError: both `n_workers` and `executor` are given, the models, the behaviour or the machine cannot
            meet the settings, or `path` is not a folder; all checked before anything is loaded, without
            leaving a trace in `path`.
        RuntimeError: a cell failed; the message names it.
    """
    path = Path(path).expanduser()
    if n_workers > 1 and executor is not None:
        raise InvalidValueError(
            f"`n_workers` must be left out where an `executor` is given, which has its own, got {n_workers}"
        )
    check_out_folder("path", path)
    models = config.models
    if executor is None:
        _ = models.options  # raises if the device does not exist
    fetch_config(models.base, models.base_revision)
    for finetuned in models.organisms.values():
        if isinstance(finetuned, str):
            fetch_config(finetuned, models.finetuned_revision)
    plan = plan_of(config, path)
    if not all(task.path.exists() for task in plan.tasks.values()):
        check_feasible(config)
    workers = nullcontext(executor) if executor else _workers(n_workers, models.device)
    with workers as running:
        folders = plan.run(executor=running)
    return write_results(config, plan, folders)


@typed
def so_far(config: StudyConfig, path: str | Path) -> Results:
    """Return and write the results of `run` for the finished layers, without running anything.

    Raises:
        ValueError: no layer is finished.
    """
    plan = plan_of(config, path)
    steps = {name: cell.config for name, cell in plan.cells.items()}
    done = {name: task.path for name, task in plan.tasks.items() if task.state()[0] == "done"}
    missing = {(s.regime, s.layer) for name, s in steps.items() if name not in done}
    layers = {(s.regime, s.layer) for s in steps.values() if s.layer is not None} - missing
    if not layers:
        raise InvalidValueError(f"no layer of the study in {path} is finished")
    whole = layers | {(regime, None) for regime, _ in layers}
    kept = {n: p for n, p in done.items() if (steps[n].regime, steps[n].layer) in whole}
    return write_results(config, plan, kept)


@typed
def plan_of(config: StudyConfig, path: str | Path) -> Plan:
    """Return the cells of a study, to compute one by one or to list.

    Args:
        config: the study.
        path: the study's folder.

    Raises:
        ValueError: `path` is not a folder, or there is no such model.
    """
    path = Path(path).expanduser()
    check_out_folder("path", path)
    return Plan(cells_of(config), path, device=config.models.device)


@typed
def dry_run(config: StudyConfig, path: str | Path) -> pd.DataFrame:
    """Return what `run` would do: one row per cell with its state and its cost on two CPU cores.

    The columns are `cell`, `state` (`done`, `missing` or `damaged`), `problem`, `estimated_seconds`,
    `estimated_gigabytes` (peak memory), and for finished cells the measured `seconds` and `gigabytes`.

    Raises:
        ValueError: `path` is not a folder.
    """
    return pd.DataFrame(plan_of(config, path).states()).drop(columns="folder")


@contextmanager
def _workers(n_workers: int, device: str) -> Iterator[Executor | None]:
    """Yield an executor of processes that share the cores, or have a GPU each; None for one worker."""
    if n_workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    turns = context.SimpleQueue()
    for i in range(n_workers):
        turns.put(i)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if device == "cuda" and gpus == [""]:
        gpus = [str(i) for i in range(torch.cuda.device_count())]
    n_threads = max(1, (os.cpu_count() or 1) // n_workers)
    with ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_settle, initargs=(turns, gpus, n_threads)
    ) as executor:
        yield executor


def _settle(turns: "SimpleQueue[int]", gpus: list[str], n_threads: int) -> None:
    """Set up a new worker: take one of the GPUs and a share of the cores, and end with the parent."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[turns.get() % len(gpus)]
    torch.set_num_threads(n_threads)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("diffsae_lens").setLevel(logging.INFO)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the parent ends: a killed parent cannot tell its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
