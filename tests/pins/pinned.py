"""The pinned results on disk, and as they are now."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pins.compute import compute, one_thread
from tests.pins.runs import demo, study

FOLDER = Path(__file__).parent


def compute_runs() -> dict[str, Any]:
    """Run the tiny demo and the tiny study, on one thread; a minute or two."""
    found = {}
    with one_thread():
        for run in (demo, study):
            with tempfile.TemporaryDirectory() as folder:
                found[run.__name__] = run(Path(folder))
    return found


PINNED: dict[str, Callable[[], dict[str, Any]]] = {"layers": compute, "runs": compute_runs}
"""What is pinned in `expected.json` and in `expected_runs.json`, and how it is computed."""


def now(what: str) -> dict[str, Any]:
    """Compute everything, as it comes back from JSON."""
    return json.loads(json.dumps(PINNED[what](), allow_nan=False))


def read(what: str) -> dict[str, Any]:
    """Read the pinned results."""
    return json.loads(_file(what).read_text(encoding="utf-8"))


def write(what: str, found: dict[str, Any]) -> None:
    """Pin these."""
    _file(what).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _file(what: str) -> Path:
    return FOLDER / ("expected.json" if what == "layers" else f"expected_{what}.json")
