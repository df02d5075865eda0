"""Entry point of the `diffsae-lens` command, which handles Ctrl-C before it imports anything slow.

Python itself reports Ctrl-C in the tenth of a second before, while it starts and imports the package's
lazy names.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FAILED, INTERRUPTED = 2, 130
"""Exit statuses for a failed command and for Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    with _interrupts() as seen:
        try:
            from diffsae_lens.cli.commands import run

            return run(words)
        except (Exception, KeyboardInterrupt) as error:  # the outermost frame: one line for all
            # The error that an interrupted import raises does not mention the interruption.
            if seen or isinstance(error, KeyboardInterrupt):
                print("interrupted; the same command goes on where it was", file=sys.stderr)
                return INTERRUPTED
            from diffsae_lens.cli.commands import explain

            print(f"diffsae-lens: {explain(error, words)}", file=sys.stderr)
            return FAILED


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Record every Ctrl-C as well as raising it: an import may swallow it or turn it into another error."""
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        del frame
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread is interrupted, and only unless the shell made it ignore SIGINT.
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield seen
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
