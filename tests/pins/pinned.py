"""The pinned results on disk, and as they are now."""

import json
from pathlib import Path
from typing import Any

from tests.pins.compute import compute

EXPECTED = Path(__file__).with_name("expected.json")


def now() -> dict[str, Any]:
    """Compute everything, as it comes back from JSON."""
    return json.loads(json.dumps(compute(), allow_nan=False))


def read() -> dict[str, Any]:
    """Read the pinned results."""
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


def write(found: dict[str, Any]) -> None:
    """Pin these."""
    EXPECTED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
