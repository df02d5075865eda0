"""Resumable computations: a cell is a pure function of its config and inputs, stored once.

A cell's folder is named after a hash of its config, of the keys of its inputs and of the version of its
code. It appears by a rename when the cell is finished, with a manifest of its files' hashes, and is
checked before it is read: what was killed half-way is computed again, what was damaged is named,
set aside and computed again.
"""

import ctypes
import gc
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from diffsae_lens.experiments.store import write_json

logger = logging.getLogger(__name__)

MANIFEST = "cell.json"
State = Literal["done", "missing", "damaged"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where a cell works, and on what."""

    out: Path
    """Empty at the start of every attempt; becomes the cell's folder when it is finished."""
    scratch: Path
    """Kept when an attempt is interrupted, for checkpoints; removed when the cell is finished."""
    device: str
    """A torch device; results are taken to be the same on any."""


Run = Callable[[Mapping[str, Any], Mapping[str, Path], Job], None]
"""Computes a cell: its config, its inputs' folders by name, where to write. Importable, so that it can
be sent to another process."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cell takes, as measured on two CPU cores: for planning, not for promising."""

    seconds: int | float
    gigabytes: int | float
    """Peak memory."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One computation of a study."""

    name: str
    """Unique in the study, such as `lora/14/diff-sae`; becomes part of the folder's name."""
    run: Run
    config: Mapping[str, Any]
    """Plain JSON values; all that the result depends on besides the inputs."""
    inputs: tuple[str, ...] = ()
    """Names of the cells whose folders it reads."""
    version: int = 1
    """Of the code: raise it when a change of `run` changes the result."""
    cost: Cost = Cost(seconds=0, gigabytes=0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell with everything resolved, as it is sent to whoever runs it."""

    cell: Cell
    key: str
    path: Path
    inputs: Mapping[str, Path]
    input_keys: Mapping[str, str]
    device: str

    @classmethod
    def resolve(cls, cell: Cell, inputs: Mapping[str, "Task"], folder: Path, device: str) -> "Task":
        """Give a cell its key and its place in a folder, those of its inputs being known."""
        input_keys = {name: task.key for name, task in inputs.items()}
        described = {
            "run": f"{cell.run.__module__}.{cell.run.__qualname__}",
            "version": cell.version,
            "packages": _versions(),
            "config": cell.config,
            "inputs": input_keys,
        }
        key = _digest_of(described)
        return cls(
            cell=cell,
            key=key,
            path=folder / f"{cell.name.replace('/', '.')}-{key[:12]}",
            inputs={name: task.path for name, task in inputs.items()},
            input_keys=input_keys,
            device=device,
        )

    @property
    def scratch(self) -> Path:
        """The folder of checkpoints."""
        return self.path.with_name(self.path.name + ".scratch")

    def state(self) -> tuple[State, str]:
        """Return whether the result is there, and what is wrong with it if it is damaged."""
        if not self.path.exists():
            return "missing", ""
        problem = self._problem()
        return ("damaged", problem) if problem else ("done", "")

    def input_digests(self) -> dict[str, str]:
        """What the inputs' manifests say they hold; none of inputs that are not there."""
        manifests = {name: read_manifest(path) for name, path in self.inputs.items()}
        return {name: _digest_of(m["files"]) for name, m in manifests.items() if m is not None}

    def _problem(self) -> str:
        manifest = read_manifest(self.path)
        if manifest is None:
            return f"no manifest {MANIFEST} that can be read"
        if manifest["key"] != self.key:
            return f"its manifest is of another cell ({manifest['cell']!r})"
        for name, digest in self.input_digests().items():
            if manifest["input_digests"].get(name) != digest:
                return f"it was made from another result of {name!r}"
        files = manifest["files"]
        there = {name for name in _files(self.path) if name != MANIFEST}
        for name in sorted(there ^ set(files)):
            return f"{name} is {'not in the manifest' if name in there else 'missing'}"
        for name, digest in files.items():
            if _digest(self.path / name) != digest:
                return f"{name} has changed since it was written"
        return ""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a cell's manifest, or None if there is none or it is not one."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    kinds = {"cell": str, "key": str, "files": dict, "input_digests": dict}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), kind) for name, kind in kinds.items()
    ):
        return None
    return manifest


def compute(task: Task) -> None:
    """Make sure that a cell's result is there: read it if it is whole, else compute it.

    Another process that computes the same cell is waited for.
    """
    cell, path = task.cell, task.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        state, problem = task.state()
        if state == "done":
            logger.info("%s: read", cell.name)
            shutil.rmtree(task.scratch, ignore_errors=True)
            return
        if state == "damaged":
            aside = _free_name(path.with_name(path.name + ".damaged"))
            logger.warning("%s: %s: %s; set aside as %s", cell.name, path, problem, aside.name)
            path.rename(aside)
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        task.scratch.mkdir(exist_ok=True)
        logger.info("%s ...", cell.name)
        start = time.perf_counter()
        _reset_peak()
        cell.run(
            cell.config, task.inputs, Job(out=partial, scratch=task.scratch, device=task.device)
        )
        seconds = round(time.perf_counter() - start, 1)
        manifest = {
            "cell": cell.name,
            "key": task.key,
            "config": cell.config,
            "version": cell.version,
            "inputs": dict(task.input_keys),
            "input_digests": task.input_digests(),
            "files": {name: _digest(partial / name) for name in _files(partial)},
            "seconds": seconds,
            "gigabytes": _peak(),
            "packages": _versions(),
        }
        write_json(partial / MANIFEST, manifest)
        _flush(partial)
        partial.rename(path)
        shutil.rmtree(task.scratch, ignore_errors=True)
        logger.info("%s: %.0f s, %s GB", cell.name, seconds, manifest["gigabytes"])


def _versions() -> dict[str, str]:
    """The packages whose new versions make new results."""
    return {name: version(name) for name in ("diffsae-lens", "sae-lens", "transformer-lens")}


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _files(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the files on the disk before the name that vouches for them."""
    for name in _files(path):
        with (path / name).open("rb") as file:
            os.fsync(file.fileno())


def _free_name(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_suffix(f".damaged-{number}")
    return path


def _reset_peak() -> None:
    """Linux: let the peak of this process's memory start anew; elsewhere it is since its start."""
    gc.collect()
    try:  # glibc keeps what was freed, which would count as this cell's
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        logger.debug("freed memory cannot be given back here")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("the peak of memory cannot be reset here")


def _peak() -> float | None:
    """Peak resident memory of this process in GB, on Linux; what it held before is part of it."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1e6, 2)
    except (OSError, IndexError):
        return None
