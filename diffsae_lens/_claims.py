"""Who makes what on a disk that several machines share, whose locks are not trusted.

Every attempt at `<path>` has a work folder of its own, `<path>.<token>.partial`, and touches the mark in it
for as long as it lives. One whose mark rests for longer than a lease belongs to a process that is dead or
cut off: whoever renames it first goes on in it, and if its owner lives, it finds its files gone and fails.
This saves work and decides nothing: whose result gets the name `<path>` first has made it, also where
leases fail. Imports nothing of the package.
"""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

logger = logging.getLogger(__name__)

LEASE = 90.0
"""Seconds. Longer than the minute for which a client of NFS may remember when a file was touched."""

_lease: ContextVar[float | None] = ContextVar("lease", default=None)


@contextmanager
def sharing(lease: float = LEASE) -> Iterator[None]:
    """Trust no lock in this context: other machines may write to the same disk."""
    token = _lease.set(lease)
    try:
        yield
    finally:
        _lease.reset(token)


def is_sharing() -> bool:
    """Whether locks are not trusted here."""
    return _lease.get() is not None


def work_folders(path: Path) -> list[Path]:
    """Return the work folders of all attempts at a path that are there."""
    ours = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8})?\.partial")
    if not path.parent.is_dir():
        return []
    return sorted(entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name))


def work_folder(path: Path, mark: str) -> Path:
    """Return where to work on a path: where its locks are held `<path>.partial`, else one's own.

    Waits while another attempt lives, until the path is there; goes on with what a dead one left.
    """
    lease = _lease.get()
    if lease is None:
        return path.with_name(f"{path.name}.partial")
    own = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    touched: dict[Path, tuple[float, float]] = {}  # when, and since when we know
    waits = False
    while not path.exists():
        alive = False
        for other in work_folders(path):
            try:
                at = (other / mark).stat().st_mtime
                if touched.get(other, (None,))[0] != at:
                    touched[other] = at, time.monotonic()
                if at != 0 and time.monotonic() - touched[other][1] < lease:
                    alive = True
                    continue
                other.rename(own)
            except FileNotFoundError:  # not begun yet, finished, or another process was quicker
                continue
            logger.info("going on with what another process left of %s", path)
            return own
        if not alive:
            break
        if not waits:
            logger.warning("waiting for another process that is making %s", path)
            waits = True
        time.sleep(min(1.0, lease / 10))
    return own


@contextmanager
def claimed(mark: Path) -> Iterator[None]:
    """Touch a mark all the time, and leave it as of an attempt that has ended."""
    lease = _lease.get()
    if lease is None:
        yield
        return
    ended = threading.Event()
    _touch(mark)

    def touch() -> None:
        while not ended.wait(lease / 9):
            _touch(mark)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _touch(mark, (0, 0))


def _touch(mark: Path, times: tuple[int, int] | None = None) -> None:
    try:
        os.utime(mark, times)
    except OSError as error:  # not begun, taken over, or removed at the end
        logger.debug("%s was not touched: %s", mark, error)
