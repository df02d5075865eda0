"""Try every family of models with every way to fine-tune it; write docs/families.md.

    python -m tests.families [family ...]

With names of families only those are tried, and nothing is written. Exits with 1 where a pair is
wrong or dies of an error that is not this package's own. Takes minutes on one core.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.families.judge import Judge, Outcome
from tests.families.models import FAMILIES
from tests.families.page import PAGE, page, tables
from tests.families.variants import variants


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument(
        "families", nargs="*", metavar="family", help="one of: " + ", ".join(FAMILIES)
    )
    families = parser.parse_args().families
    if unknown := set(families) - set(FAMILIES):
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    outcomes: dict[tuple[str, str], Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder))
        for family in families or FAMILIES:
            for variant in variants(family):
                outcome = outcomes[family, variant] = judge.judge(family, variant)
                if outcome.kind != "right" and not variants(family)[variant].must_be_refused:
                    sys.stderr.write(f"{family}, {variant}: {outcome.kind}: {outcome.detail}\n")
    sys.stdout.write(tables(outcomes))
    if not families:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    return int(any(outcome.kind in ("WRONG", "raw error") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
