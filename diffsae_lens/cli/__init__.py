"""The `diffsae-lens` command: its entry, which notes Ctrl-C before it imports anything that takes time.

Ctrl-C in the tenth of a second before, while Python starts and imports the package's lazy names, is
Python's own to report.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FAILED, INTERRUPTED = 2, 130
"""Exit statuses: of a command that could not be done, and of Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    with _interrupts() as seen:
        try:
            from diffsae_lens.cli.commands import run

            return run(words)
        except (Exception, KeyboardInterrupt) as error:  # the outermost frame: one line for all
            # What an interrupted import raises in turn says nothing of the interruption.
            if seen or isinstance(error, KeyboardInterrupt):
                print("interrupted; the same command goes on where it was", file=sys.stderr)
                return INTERRUPTED
            from diffsae_lens.cli.commands import explain

            print(f"diffsae-lens: {explain(error, words)}", file=sys.stderr)
            return FAILED


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note every Ctrl-C beside raising it: an import may turn it into another error or swallow it."""
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        del frame
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # The main thread alone is interrupted, and not where the shell has it ignore that.
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield seen
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
