"""Compare with the pinned results, or write them anew.

    python -m tests.pins [--write]

Without `--write` it prints what differs and exits with 1 where something does.
"""

import argparse
import sys

from tests.pins.pinned import EXPECTED, now, read, write
from tests.pins.values import differences


def main() -> int:
    """Compute and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--write", action="store_true", help=f"write {EXPECTED.name}")
    write_it = parser.parse_args().write
    found = now()
    if write_it:
        write(found)
        return 0
    lines = differences(read(), found)
    print("\n".join(lines) or "nothing differs")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
