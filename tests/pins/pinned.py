"""The pinned results on disk, and as they are now."""

import json
from pathlib import Path
from typing import Any

from tests.pins.compute import compute

FILE = Path(__file__).parent / "expected.json"


def now() -> dict[str, Any]:
    """Compute everything, as it comes back from JSON."""
    return json.loads(json.dumps(compute(), allow_nan=False))


def read() -> dict[str, Any]:
    """Read the pinned results."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(found: dict[str, Any]) -> None:
    """Pin these."""
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
