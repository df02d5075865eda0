"""Results on disk: written whole or not at all, computed once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename it, so that no half-written file is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def once(path: Path, compute: Callable[[], Any]) -> Any:
    """Return what `path` holds, computing and storing it the first time."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text())
