"""Run the study of arXiv 2605.07324, or say what running it would take."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from diffsae_lens._artifact import read_json, write_json
from diffsae_lens._checks import check_count
from diffsae_lens.pair.options import LoadOptions
from diffsae_lens.study.config import StudyConfig
from diffsae_lens.study.contrasts import Scored, contrasts
from diffsae_lens.study.feasible import check_out_folder
from diffsae_lens.study.plan import Plan
from diffsae_lens.study.pooled_scores import PooledTexts
from diffsae_lens.study.published import VARIANCE_RATIO, published_rows

logger = logging.getLogger(__name__)


def reproduce(
    config: StudyConfig, path: str | Path, *, device: str = "cpu", n_workers: int = 1
) -> dict[str, Any]:
    """Run the study, or what is left of it.

    Cells that are finished are checked and read; the same folder may hold several studies, which
    share what they have in common.

    Args:
        config: what to run; see `PRESETS`.
        path: the study's folder.
        device: a torch device; `cuda` with several workers gives each a GPU of its own, in turn.
        n_workers: cells computed at the same time, each in a process of its own if more than one.

    Returns:
        What `<path>/results.json` holds: rows of the organisms, of both protocols and of causes, with
        their regime and layer, the `contrasts`, the published rows, what deviates from the paper, and
        the cells with their cost.

    Raises:
        ValueError: no such device, no worker, a `path` that is not a folder, texts or layers that there
            are not.
        RuntimeError: a cell failed; says which.
    """
    check_count("n_workers", n_workers)
    check_out_folder("path", Path(path))
    LoadOptions(device=device)  # says so if it is not there
    plan = Plan(config.cells(), path, device=device)
    if not all(task.path.exists() for task in plan.tasks.values()):
        config.check_feasible()
    with _executor(n_workers, device) as executor:
        folders = plan.run(executor=executor)
    return _write_results(config, plan, folders)


def so_far(config: StudyConfig, path: str | Path) -> dict[str, Any]:
    """Return what `reproduce` will, and write it, of the layers that are finished; runs nothing.

    Raises:
        ValueError: no layer is finished.
    """
    plan = Plan(config.cells(), path)
    done = {name: task.path for name, task in plan.tasks.items() if task.state()[0] == "done"}
    if not any(_finished(config, regime, done) for regime in config.organisms):
        raise ValueError(f"no layer of the study in {path} is finished")
    return _write_results(config, plan, done)


def dry_run(config: StudyConfig, path: str | Path) -> pd.DataFrame:
    """Return what `reproduce` would do: a row per cell with its state and its cost on two CPU cores.

    Columns `cell`, `state` (`done`, `missing` or `damaged`), `problem`, `estimated_seconds`,
    `estimated_gigabytes` (peak memory), and as measured `seconds` and `gigabytes` where it is done.
    """
    return pd.DataFrame(Plan(config.cells(), path).states()).drop(columns="folder")


def _write_results(config: StudyConfig, plan: Plan, folders: Mapping[str, Path]) -> dict[str, Any]:
    results = {
        "config": asdict(config),
        "deviations": list(config.deviations),
        "published": published_rows(),
        "published_variance_ratio": {str(k): v for k, v in VARIANCE_RATIO.items()},
        **_collected(config, folders),
        "cells": [{k: v for k, v in row.items() if k != "problem"} for row in plan.states()],
    }
    file = plan.path / "results.json"
    write_json(file, results)
    return read_json(file)


def _finished(config: StudyConfig, regime: str, folders: Mapping[str, Path]) -> list[int]:
    """The layers that can be read."""
    return [
        layer
        for layer in config.layers
        if {f"{regime}/{layer}/scores", f"{regime}/{layer}/causes"} <= folders.keys()
    ]


def _collected(config: StudyConfig, folders: Mapping[str, Path]) -> dict[str, Any]:
    """The rows of all finished layers, each with its regime and layer."""
    parts: dict[str, Any] = {
        "organisms": [],
        "variance": [],
        "paper": [],
        "strict": [],
        "causes": [],
    }
    scored: dict[tuple[str, int], dict[str, Scored]] = {}
    for regime in config.organisms:
        layers = _finished(config, regime, folders)
        if not layers:
            continue
        [card] = folders[f"{regime}/organism"].glob("*/card.json")
        rates = read_json(card)["rates"]
        if not _meets_bar(rates):
            logger.warning("the %s organism does not meet the quality bar: %s", regime, rates)
        for group, rate in rates.items():
            parts["organisms"].append({"regime": regime, "group": group, **rate})
        read = load_file(folders[f"{regime}/pooled"] / "pooled.safetensors")
        for layer in layers:
            at = {"regime": regime, "layer": layer}
            ratio = PooledTexts.of_layer(read, layer).variance_ratio
            parts["variance"].append(at | {"variance_ratio": ratio})
            folder = folders[f"{regime}/{layer}/scores"]
            for protocol, rows in read_json(folder / "scores.json").items():
                parts[protocol] += [at | row for row in rows]
            scored[regime, layer] = _scored(folder)
            rows = read_json(folders[f"{regime}/{layer}/causes"] / "causes.json")
            parts["causes"] += [at | row for row in rows]
    return {**parts, "contrasts": contrasts(scored)}


def _scored(folder: Path) -> dict[str, Scored]:
    """The trained dictionaries' strict scores, on all resamples."""
    rows = read_json(folder / "scores.json")["strict"]
    resampled = load_file(folder / "resampled.safetensors")["strict"]
    return {
        row["name"]: Scored(bis=row["bis"], resampled=of_row)
        for row, of_row in zip(rows, resampled, strict=True)
        if row["kind"] == "dictionary"
    }


def _meets_bar(rates: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the organism attacks on at least 95% of trigger prompts and at most 2% of others."""
    others = [rate["rate"] for group, rate in rates.items() if group != "trigger"]
    return rates["trigger"]["rate"] >= 0.95 and max(others) <= 0.02


@contextmanager
def _executor(n_workers: int, device: str) -> Iterator[Executor | None]:
    """Processes that share the cores, or have a GPU each; None for this process alone."""
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
    """In a new worker: take one GPU of several and a share of the cores, and end with the parent."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[turns.get() % len(gpus)]
    torch.set_num_threads(n_threads)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("diffsae_lens").setLevel(logging.INFO)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers, which would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
