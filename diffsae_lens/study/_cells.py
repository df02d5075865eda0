"""Resumable computations: a cell is a pure function of its config and inputs, stored once.

A cell's folder is an artifact (see `diffsae_lens._artifact`), named after a hash of its recipe: its
config, the keys of its inputs, and the versions of its code and of the packages. A cell that was killed
resumes from its last checkpoint. A damaged one is named, set aside and computed again.
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
"""An NFS client may remember for a minute that a file does not exist."""

_of_thread = threading.local()


@dataclass(frozen=True, kw_only=True)
class Job(_artifact.Job):
    """Where a cell works, and on what."""

    device: str
    """A torch device; results are taken to be the same on every device."""
    held: dict[str, Any] = field(default_factory=dict)
    """What cells of one run keep in memory for later cells, such as a loaded pair."""


Run = Callable[[Any, Mapping[str, Path], Job], None]
"""Computes a cell from its config, its inputs' folders by role, and where to write. Must be importable, so
that it can be sent to another process."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated cost of a cell, from measurements on two CPU cores."""

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
    """A frozen dataclass of plain values: everything that the result depends on besides the inputs. Fields
    with `compare=False` do not count: they say where things are."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Names of the cells whose folders it reads, by role."""
    version: Count = 1
    """Version of the code: raise it when a change to `run` changes the result."""
    cost: Cost = Cost(seconds=0, gigabytes=0)
    resources: Mapping[str, int | float] = field(default_factory=dict)
    """Resources that it needs of a cluster worker, besides memory and, if it computes on one, a GPU."""

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
    """A cell with everything resolved, as sent to the process that runs it."""

    cell: Cell
    key: str
    path: Path
    inputs: Mapping[str, Path]
    recipe: Mapping[str, Any]
    """Everything that the result depends on; the key is its hash."""
    device: str

    @classmethod
    def resolve(cls, cell: Cell, inputs: Mapping[str, "Task"], folder: Path, device: str) -> "Task":
        """Give a cell its key and its place in a folder, from the tasks of its inputs by role."""
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
        """Name of the cell."""
        return self.cell.name

    @property
    def resources(self) -> dict[str, int | float]:
        """Resources that it needs of a worker, as cluster workers declare them: `memory` is in bytes."""
        gigabytes = self.cell.cost.gigabytes
        memory = {"memory": gigabytes * 1e9} if gigabytes else {}
        gpu = {"GPU": 1} if self.device.startswith("cuda") else {}
        return {**memory, **gpu, **self.cell.resources}

    def state(self) -> tuple[State, str]:
        """Return the state of the result, and what is wrong with it if it is damaged."""
        if not self.path.exists():
            return "missing", ""
        try:
            manifest = _artifact.open_artifact(self.path)
        except (OSError, ValueError) as error:
            return "damaged", str(error)
        problem = self.mismatch(manifest)
        return ("damaged", problem) if problem else ("done", "")

    def mismatch(self, manifest: _artifact.Manifest) -> str:
        """Return why an artifact is not this cell's result for these inputs; "" if it is."""
        if manifest.recipe != self.recipe:
            said = _artifact.differences(manifest.recipe, self.recipe)
            return f"its manifest is of another cell ({said})"
        made_from = manifest.facts.get("input_digests", {})
        for name, digest in self.input_digests().items():
            if made_from.get(name) != digest:
                return f"it was made from another result of {name!r}"
        return ""

    def input_digests(self) -> dict[str, str]:
        """Return digests of what the inputs' manifests list, leaving out inputs that do not exist.

        Manifests of nested artifacts are left out, since they record how long the computation took.
        """
        manifests = {name: read_manifest(path) for name, path in self.inputs.items()}
        kept = {
            name: {f: h for f, h in m.files.items() if Path(f).name != _artifact.MANIFEST}
            for name, m in manifests.items()
            if m is not None
        }
        return {name: _artifact.digest(files) for name, files in kept.items()}


def read_manifest(path: Path) -> _artifact.Manifest | None:
    """Return a cell's manifest without checking its files; None if it is missing or not valid."""
    try:
        return _artifact.open_artifact(path, check=False)
    except (OSError, ValueError):
        return None


def compute(task: Task, held: dict[str, Any] | None = None) -> None:
    """Make sure that a cell's result exists: read it if it is intact, else compute it.

    If another process is computing the same cell, waits for it.

    Args:
        task: the cell with everything resolved.
        held: what the cells of a run keep in memory, see `Job`; by default what earlier cells of this
            thread have left.

    Raises:
        ValueError: something else is in the cell's place, or the package versions here differ from those
            of the recipe.
        OSError: the disk is full or not writable; the message names the folder.
        FileNotFoundError: the result of an input does not exist.
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
    """Wait until this machine sees the results of others."""
    start = time.monotonic()
    while missing := [p for p in task.inputs.values() if not (p / _artifact.MANIFEST).exists()]:
        if time.monotonic() - start >= SECONDS_UNTIL_SEEN:
            raise MissingFileError(
                errno.ENOENT,
                f"{task.cell.name!r} needs this result of another cell, which is not there",
                str(missing[0]),
            )
        time.sleep(0.5)
        for path in missing:  # makes the client read the folder again
            list(path.parent.glob(path.name))


def _set_aside_if_mismatched(task: Task) -> None:
    """Set aside an intact result that was made from other inputs, which `build` cannot detect."""
    manifest = read_manifest(task.path)
    if manifest is None or not task.mismatch(manifest):
        return
    with _artifact.locked(task.path):  # another process may have been faster
        manifest = read_manifest(task.path)
        if manifest is not None and (problem := task.mismatch(manifest)):
            _artifact.set_aside(task.path, problem)


def _compared(config: Any) -> Any:
    """Return a config as plain values, without the fields that do not take part in comparisons."""
    if is_dataclass(config):
        compared = [f.name for f in fields(config) if f.compare]
        return {name: _compared(getattr(config, name)) for name in compared}
    if isinstance(config, Mapping):
        return {name: _compared(value) for name, value in config.items()}
    return [_compared(value) for value in config] if isinstance(config, tuple | list) else config


def _versions() -> dict[str, str]:
    """Return the versions of the packages on which results depend."""
    return {name: version(name) for name in ("diffsae-lens", "sae-lens", "transformer-lens")}


def _reset_peak() -> None:
    """Reset this process's peak memory, on Linux; elsewhere the peak is since the process started."""
    try:  # glibc keeps what was freed, which would count as this cell's
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        logger.debug("the peak of memory cannot be reset here")


def _peak() -> float | None:
    """Return the peak resident memory of this process in GB, on Linux; includes what it held before."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1e6, 2)
    except (OSError, IndexError):
        return None
