"""Cells that depend on each other: their order, and where they run."""

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import cached_property
from pathlib import Path
from typing import Any

from diffsae_lens._artifact import sharing
from diffsae_lens._checks import check_choice, check_items, check_texts
from diffsae_lens._errors import FailedRunError, InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.study._cells import Cell, Task, compute, read_manifest


class Plan:
    """The cells of a study in order, and where their results are stored.

    Args:
        cells: all cells, in any order.
        path: the study's folder; results are in `<path>/cells`.
        device: the torch device that cells compute on.

    Raises:
        ValueError: two cells have the same name, no cell makes an input, or the inputs form a circle.
    """

    @typed
    def __init__(self, cells: Iterable[Cell], path: str | Path, *, device: str = "cpu") -> None:
        self.path = Path(path).absolute()  # workers may be in other folders
        self.device = check_texts("device", [device])[0]
        self.cells: dict[str, Cell] = {}
        for cell in check_items("cells", cells, Cell):
            if cell.name in self.cells:
                raise InvalidValueError(f"two cells are called {cell.name!r}")
            self.cells[cell.name] = cell
        for cell in self.cells.values():
            if unknown := set(cell.inputs.values()) - set(self.cells):
                raise InvalidValueError(
                    f"{cell.name!r} needs {sorted(unknown)}, which no cell makes"
                )
        self.order = tuple(self._ordered())

    def _ordered(self) -> Iterable[str]:
        """Return the cells in the order given, each after its inputs: the first results come early."""
        order: dict[str, None] = {}

        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                raise InvalidValueError(f"cells need each other in a circle: {[*above, name]}")
            if name not in order:
                for needed in self.cells[name].inputs.values():
                    visit(needed, (*above, name))
                order[name] = None

        for name in self.cells:
            visit(name, ())
        return order

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every cell with its key and folder, each after its inputs."""
        tasks: dict[str, Task] = {}
        for name in self.order:
            needed = self.cells[name].inputs
            inputs = {role: tasks[input_] for role, input_ in needed.items()}
            tasks[name] = Task.resolve(self.cells[name], inputs, self.path / "cells", self.device)
        return tasks

    def states(self) -> list[dict[str, Any]]:
        """Return one row per cell: `cell`, `state`, `problem`, estimated and measured cost, `folder`."""
        rows = []
        for name, task in self.tasks.items():
            state, problem = task.state()
            manifest = read_manifest(task.path) if state == "done" else None
            facts = {} if manifest is None else manifest.facts
            rows.append(
                {
                    "cell": name,
                    "state": state,
                    "problem": problem,
                    "estimated_seconds": task.cell.cost.seconds,
                    "estimated_gigabytes": task.cell.cost.gigabytes,
                    "seconds": facts.get("seconds"),
                    "gigabytes": facts.get("gigabytes"),
                    "folder": task.path.name,
                }
            )
        return rows

    @typed
    def compute(self, name: str) -> Path:
        """Compute one cell unless its result exists; the results of its inputs must exist.

        For schedulers of any kind, with one job per cell. Locks are not trusted, since other machines may
        write to the same folder.

        Args:
            name: name of the cell.

        Returns:
            The cell's folder.

        Raises:
            ValueError: there is no such cell.
            FileNotFoundError: the result of an input does not exist.
        """
        check_choice("name", name, self.tasks)
        task = self.tasks[name]
        with sharing():
            compute(task)
        return task.path

    def run(self, *, executor: Executor | None = None) -> dict[str, Path]:
        """Compute all results that do not exist yet.

        Args:
            executor: where cells run, several at a time if it has several workers; any
                `concurrent.futures.Executor`, such as a `ProcessPoolExecutor` or a `ClusterExecutor`.
                None runs them here, one after the other. Its workers must see the study's folder.

        Returns:
            The folder of every cell.

        Raises:
            RuntimeError: a cell failed; cells already started finish first, and no finished work is lost.
        """
        if executor is None:
            held: dict[str, Any] = {}
            for name, task in self.tasks.items():
                try:
                    compute(task, held)
                except Exception as error:
                    raise FailedRunError(f"the cell {name!r} failed: {error}") from error
        else:
            self._run_side_by_side(executor)
        return {name: task.path for name, task in self.tasks.items()}

    def _run_side_by_side(self, executor: Executor) -> None:
        waiting, running, done = [*self.order], dict[Future[None], str](), set[str]()
        try:
            while waiting or running:
                for name in [n for n in waiting if done.issuperset(self.cells[n].inputs.values())]:
                    waiting.remove(name)
                    running[executor.submit(compute, self.tasks[name])] = name
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name, error = running.pop(future), future.exception()
                    if error is not None:
                        raise FailedRunError(f"the cell {name!r} failed: {error}") from error
                    done.add(name)
        finally:  # start nothing new after a failure or an interruption
            for future in running:
                future.cancel()
            wait(running)
