"""Compare with the pinned results, or write them anew.

    python -m tests.pins [layers] [runs] [--write]

`layers` takes half a minute; `runs`, a whole demo and a whole study, a minute or two. Without names both
are done. Without `--write` it prints what differs and exits with 1 where something does.
"""

import argparse
import sys

from tests.pins.pinned import PINNED, now, read, write
from tests.pins.values import differences


def main() -> int:
    """Compute and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("what", nargs="*", metavar="what", help="one of: " + ", ".join(PINNED))
    parser.add_argument("--write", action="store_true", help="pin what is computed now")
    given = parser.parse_args()
    if unknown := set(given.what) - set(PINNED):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    n_different = 0
    for what in given.what or PINNED:
        found = now(what)
        if given.write:
            write(what, found)
            continue
        lines = differences(read(what), found)
        n_different += len(lines)
        print("\n".join([f"{what}: {len(lines)} values differ", *lines]))
    return int(n_different > 0)


if __name__ == "__main__":
    sys.exit(main())
