"""Claims on work on a disk that several machines share and whose locks are not trusted.

Every attempt at `<path>` has its own work folder, `<path>.<token>.partial`, and keeps touching the mark in
it while it runs. A folder whose mark has not been touched for longer than a lease belongs to a process that
is dead or cut off: the first process to rename it resumes in it, and if its owner is alive after all, it
finds its files gone and fails. Claims only save work; they decide nothing: the first result to be renamed
to `<path>` wins, even where leases fail. Imports nothing from the package.
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
"""Seconds. Longer than the minute for which an NFS client may cache a file's modification time."""

_lease: ContextVar[float | None] = ContextVar("lease", default=None)


@contextmanager
def sharing(lease: float = LEASE) -> Iterator[None]:
    """Do not trust locks in this context: other machines may write to the same disk."""
    token = _lease.set(lease)
    try:
        yield
    finally:
        _lease.reset(token)


def is_sharing() -> bool:
    """Return whether locks are not trusted in this context."""
    return _lease.get() is not None


def work_folders(path: Path) -> list[Path]:
    """Return the existing work folders of all attempts at a path."""
    ours = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8})?\.partial")
    if not path.parent.is_dir():
        return []
    return sorted(entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name))


def work_folder(path: Path, mark: str) -> Path:
    """Return the folder to work in: `<path>.partial` where locks are trusted, otherwise a separate one.

    Waits while another attempt is alive, until `path` exists; resumes what a dead attempt left.
    """
    lease = _lease.get()
    if lease is None:
        return path.with_name(f"{path.name}.partial")
    own = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    touched: dict[Path, tuple[float, float]] = {}  # modification time, and when we first saw it
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
            except FileNotFoundError:  # not started yet, finished, or another process was faster
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
    """Keep touching a mark inside the context, and date it as ended (time 0) on exit."""
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
    except OSError as error:  # not started, taken over, or removed at the end
        logger.debug("%s was not touched: %s", mark, error)
