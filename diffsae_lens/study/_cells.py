"""Resumable computations: a cell is a pure function of its config and inputs, stored once.

A cell's folder is an artifact (see `diffsae_lens._artifact`), named after a hash of its recipe: its
config, the keys of its inputs, the version of its code and of the packages. What was killed half-way is
computed again from its last checkpoint, what was damaged is named, set aside and computed again.
"""

import ctypes
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from diffsae_lens import _artifact
from diffsae_lens._artifact import version
from diffsae_lens._checks import check_number, check_texts, shown
from diffsae_lens._errors import InvalidTypeError, InvalidValueError, MissingFileError
from diffsae_lens._typed import Checked, Count

logger = logging.getLogger(__name__)

State = Literal["done", "missing", "damaged"]

SECONDS_UNTIL_SEEN = 70.0
"""A client of NFS may remember for a minute that something is not there."""

_of_thread = threading.local()


@dataclass(frozen=True, kw_only=True)
class Job(_artifact.Job):
    """Where a cell works, and on what."""

    device: str
    """A torch device; results are taken to be the same on any."""
    held: dict[str, Any] = field(default_factory=dict)
    """What cells of one run keep in memory for those that follow, such as a loaded pair."""


Run = Callable[[Any, Mapping[str, Path], Job], None]
"""Computes a cell: its config, its inputs' folders by their role, where to write. Importable, so that it
can be sent to another process."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cell takes, as measured on two CPU cores: for planning, not for promising."""

    seconds: int | float
    gigabytes: int | float
    """Peak memory."""


@dataclass(frozen=True, kw_only=True)
class Cell(Checked):
    """One computation of a study."""

    name: str
    """Unique in the study, such as `lora/14/diff-sae`; becomes part of the folder's name."""
    run: Run
    config: Any
    """A frozen dataclass of plain values: all that the result depends on besides the inputs. Fields with
    `compare=False` play no part: they say where things are."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """By role, the names of the cells whose folders it reads."""
    version: Count = 1
    """Of the code: raise it when a change of `run` changes the result."""
    cost: Cost = Cost(seconds=0, gigabytes=0)
    resources: Mapping[str, int | float] = field(default_factory=dict)
    """What it needs of a worker of a cluster besides memory, and one GPU where it computes on one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        if not is_dataclass(self.config) or isinstance(self.config, type):
            raise InvalidTypeError(
                f"`config` must be a frozen dataclass of plain values, got {shown(self.config)}"
            )
        check_texts("resources", list(self.resources), allow_empty=True)
        for amount in self.resources.values():
            check_number("resources", amount, low=0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell with everything resolved, as it is sent to whoever runs it."""

    cell: Cell
    key: str
    path: Path
    inputs: Mapping[str, Path]
    recipe: Mapping[str, Any]
    """Everything that the result depends on; the key is its hash."""
    device: str

    @classmethod
    def resolve(cls, cell: Cell, inputs: Mapping[str, "Task"], folder: Path, device: str) -> "Task":
        """Give a cell its key and its place in a folder, those of its inputs (by role) being known."""
        input_keys = {role: task.key for role, task in inputs.items()}
        recipe = {
            "format": _artifact.FORMAT,
            "run": f"{cell.run.__module__}.{cell.run.__qualname__}",
            "version": cell.version,
            "packages": _versions(),
            "config": _compared(cell.config),
            "inputs": input_keys,
        }
        key = _artifact.digest(recipe)
        return cls(
            cell=cell,
            key=key,
            path=folder / f"{cell.name.replace('/', '.')}-{key[:12]}",
            inputs={role: task.path for role, task in inputs.items()},
            recipe=_artifact.plain(recipe),
            device=device,
        )

    @property
    def name(self) -> str:
        """Of its cell."""
        return self.cell.name

    @property
    def resources(self) -> dict[str, int | float]:
        """What it needs of a worker, as the workers of a cluster declare it: `memory` is in bytes."""
        gigabytes = self.cell.cost.gigabytes
        memory = {"memory": gigabytes * 1e9} if gigabytes else {}
        gpu = {"GPU": 1} if self.device.startswith("cuda") else {}
        return {**memory, **gpu, **self.cell.resources}

    def state(self) -> tuple[State, str]:
        """Return whether the result is there, and what is wrong with it if it is damaged."""
        if not self.path.exists():
            return "missing", ""
        try:
            manifest = _artifact.open_artifact(self.path)
        except (OSError, ValueError) as error:
            return "damaged", str(error)
        problem = self.mismatch(manifest)
        return ("damaged", problem) if problem else ("done", "")

    def mismatch(self, manifest: _artifact.Manifest) -> str:
        """Return in what an artifact is not this cell's result of these inputs; "" if it is."""
        if manifest.recipe != self.recipe:
            said = _artifact.differences(manifest.recipe, self.recipe)
            return f"its manifest is of another cell ({said})"
        made_from = manifest.facts.get("input_digests", {})
        for name, digest in self.input_digests().items():
            if made_from.get(name) != digest:
                return f"it was made from another result of {name!r}"
        return ""

    def input_digests(self) -> dict[str, str]:
        """What the inputs' manifests say they hold; none of inputs that are not there.

        Manifests of artifacts inside are left out: they say how long it took.
        """
        manifests = {name: read_manifest(path) for name, path in self.inputs.items()}
        kept = {
            name: {f: h for f, h in m.files.items() if Path(f).name != _artifact.MANIFEST}
            for name, m in manifests.items()
            if m is not None
        }
        return {name: _artifact.digest(files) for name, files in kept.items()}


def read_manifest(path: Path) -> _artifact.Manifest | None:
    """Return a cell's manifest, its files unchecked; None if there is none or it is not one."""
    try:
        return _artifact.open_artifact(path, check=False)
    except (OSError, ValueError):
        return None


def compute(task: Task, held: dict[str, Any] | None = None) -> None:
    """Make sure that a cell's result is there: read it if it is whole, else compute it.

    Another process that computes the same cell is waited for.

    Args:
        task: the cell with everything resolved.
        held: what the cells of a run keep in memory, see `Job`; by default what those that this thread
            computed before have left.

    Raises:
        ValueError: something else lies in the cell's place, or the packages here have other versions than
            those of the recipe.
        OSError: the disk is full or forbids it; names the folder.
        FileNotFoundError: the result of an input is not there.
    """
    cell, ran = task.cell, False
    kept = vars(_of_thread) if held is None else held
    if (here := _versions()) != task.recipe["packages"]:
        said = _artifact.differences(here, task.recipe["packages"])
        raise InvalidValueError(f"this process has other packages than the study: {said}")
    _await_inputs(task)

    def write(job: _artifact.Job) -> dict[str, Any]:
        nonlocal ran
        ran = True
        logger.info("%s ...", cell.name)
        start = time.perf_counter()
        _reset_peak()
        cell.run(cell.config, task.inputs, Job(**vars(job), device=task.device, held=kept))
        facts = {
            "cell": cell.name,
            "input_digests": task.input_digests(),
            "seconds": round(time.perf_counter() - start, 1),
            "gigabytes": _peak(),
        }
        logger.info("%s: %.0f s, %s GB", cell.name, facts["seconds"], facts["gigabytes"])
        return facts

    _set_aside_if_mismatched(task)
    _artifact.build(task.path, task.recipe, write)
    if not ran:
        logger.info("%s: read", cell.name)


def _await_inputs(task: Task) -> None:
    """Wait until this machine sees what others have made."""
    start = time.monotonic()
    while missing := [p for p in task.inputs.values() if not (p / _artifact.MANIFEST).exists()]:
        if time.monotonic() - start >= SECONDS_UNTIL_SEEN:
            raise MissingFileError(
                errno.ENOENT,
                f"{task.cell.name!r} needs this result of another cell, which is not there",
                str(missing[0]),
            )
        time.sleep(0.5)
        for path in missing:  # has the folder read again
            list(path.parent.glob(path.name))


def _set_aside_if_mismatched(task: Task) -> None:
    """Make room where a whole result lies that is of other inputs, which `build` cannot tell."""
    manifest = read_manifest(task.path)
    if manifest is None or not task.mismatch(manifest):
        return
    with _artifact.locked(task.path):  # another process may have been quicker
        manifest = read_manifest(task.path)
        if manifest is not None and (problem := task.mismatch(manifest)):
            _artifact.set_aside(task.path, problem)


def _compared(config: Any) -> Any:
    """A config as plain values, without the fields that play no part in comparisons."""
    if is_dataclass(config):
        compared = [f.name for f in fields(config) if f.compare]
        return {name: _compared(getattr(config, name)) for name in compared}
    if isinstance(config, Mapping):
        return {name: _compared(value) for name, value in config.items()}
    return [_compared(value) for value in config] if isinstance(config, tuple | list) else config


def _versions() -> dict[str, str]:
    """The packages whose new versions make new results."""
    return {name: version(name) for name in ("diffsae-lens", "sae-lens", "transformer-lens")}


def _reset_peak() -> None:
    """Linux: let the peak of this process's memory start anew; elsewhere it is since its start."""
    try:  # glibc keeps what was freed, which would count as this cell's
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        logger.debug("the peak of memory cannot be reset here")


def _peak() -> float | None:
    """Peak resident memory of this process in GB, on Linux; what it held before is part of it."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1e6, 2)
    except (OSError, IndexError):
        return None
