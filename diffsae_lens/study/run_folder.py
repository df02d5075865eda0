"""A run's folder: which run it is of, what its parts took, and its results."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffsae_lens._artifact import differences, read_json, set_aside, write_json

logger = logging.getLogger(__name__)

CLAIM, RESULTS, SECONDS = "config.json", "results.json", "seconds.json"


class Timer:
    """Seconds each part took, kept over interruptions (a part that is read again counts once).

    Args:
        folder: the run's; the seconds of a finished run stay as they are.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SECONDS
        self.is_kept = not (folder / RESULTS).exists()
        self.seconds: dict[str, float] = read_json(self.path) if self.path.exists() else {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Take the time of a part, and say in the log which it is."""
        logger.info("%s ...", name)
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        logger.info("%s: %.0f s", name, spent)
        self.note(name, spent)

    def note(self, name: str, spent: float) -> None:
        """Keep what a part took, unless it took longer before; a finished run's stay as they are."""
        longest = max(round(spent, 1), self.seconds.get(name, 0.0))
        if self.is_kept and self.seconds.get(name) != longest:
            self.seconds[name] = longest
            write_json(self.path, self.seconds)


def claim(path: Path, claimed: Mapping[str, Any]) -> None:
    """Write down what a folder is used for, or check that it is used for the same.

    Raises:
        ValueError: it is not; prints the difference.
    """
    check_claim(path, claimed)
    if not (path / CLAIM).exists():
        write_json(path / CLAIM, claimed)


def check_claim(path: Path, claimed: Mapping[str, Any]) -> None:
    """Refuse a folder that is used for something else, as far as `claimed` says.

    Raises:
        ValueError: prints the difference, or the file is damaged.
    """
    if not (path / CLAIM).exists():
        return
    stored = read_json(path / CLAIM)
    if not isinstance(stored, dict) or not isinstance(stored.get("settings"), dict):
        raise ValueError(
            f"{path / CLAIM} was not written by this version; choose another folder than {path}, or "
            "remove it"
        )
    if found := differences({name: stored.get(name) for name in claimed}, claimed):
        raise ValueError(
            f"the run folder {path} holds a run with other settings or models ({found}); choose "
            "another folder or remove it"
        )


def finish(
    path: Path, results: dict[str, Any], comparable: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    """Write a run's results; those that are there stay if they say the same, else are set aside.

    Args:
        path: the run's folder.
        results: put together from the run's parts.
        comparable: leaves out what may differ, such as how long it took.

    Returns:
        What the file holds.
    """
    file = path / RESULTS
    if file.exists():
        damage = "it does not say what the parts of the run say"
        try:
            stored = read_json(file)
        except ValueError as error:
            damage, stored = str(error), None
        same = json.loads(json.dumps(comparable(results)))
        if isinstance(stored, dict) and comparable(stored) == same:
            return stored
        set_aside(file, damage)
    write_json(file, results)
    return read_json(file)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
