"""One cell per command, for schedulers of any kind. Imports lazily, as `commands` does."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsae_lens._extras import require

if TYPE_CHECKING:
    from diffsae_lens.study._config import StudyConfig


def add_cells(command: argparse.ArgumentParser) -> Any:
    """Add the options that do something other than run a plan, and return their group."""
    instead = command.add_mutually_exclusive_group()
    instead.add_argument(
        "--plan", action="store_true", help="print the cells as JSON, each with its command"
    )
    instead.add_argument("--cell", metavar="NAME", help="compute this cell alone, by its name")
    return instead


def do_cells(config: "StudyConfig", out: Path, cell: str | None, command: str) -> int:
    """Compute one cell, or print all cells, each with the command that computes it."""
    from diffsae_lens.study._run import plan_of

    plan = plan_of(config, out)
    if cell is not None:
        require("bandit", "the judge of generated code")
        print(plan.compute(cell))
        return 0
    rows = []
    for row in plan.states():
        task = plan.tasks[row["cell"]]
        rows.append(
            {
                **row,
                "needs": sorted({*task.cell.inputs.values()}),
                "resources": task.resources,
                "command": f"{command} --cell {shlex.quote(row['cell'])}",
            }
        )
    print(json.dumps(rows, indent=2))
    return 0
