"""Compare with the pinned results, or write them anew: `python -m tests.pins [--write]`.

Half a minute. Without `--write` it prints what differs, and exits with 1 where something does.
"""

import argparse
import sys

from tests.pins.pinned import now, read, write
from tests.pins.values import differences


def main() -> int:
    """Compute and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--write", action="store_true", help="pin what is computed now")
    given = parser.parse_args()
    found = now()
    if given.write:
        write(found)
        return 0
    lines = differences(read(), found)
    print("\n".join([f"{len(lines)} values differ", *lines]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
