"""`python -m tests.campaign [FUNCTION ...]`: print the counts and every call that went wrong."""

import logging
import sys

from tests.campaign.run import Call, campaign, counts


def show(call: Call) -> None:
    """Print what went wrong."""
    if call.outcome in ("raw error", "silently wrong"):
        print(call, flush=True)


logging.basicConfig(level=logging.INFO, format="%(message)s")
found = campaign(sys.argv[1:], show)
total = counts(found)
functions = len({call.function for call in found})
print(f"{len(found)} calls of {functions} functions: ", end="")
print(", ".join(f"{total[o]} {o}" for o in (
    "accepted and right", "refused clearly", "raw error", "silently wrong"
)))  # fmt: skip
sys.exit(bool(total["raw error"] or total["silently wrong"]))
