"""Results on disk: complete or absent, made once, identified by what they were made from.

An artifact is a folder with a manifest, `artifact.json`: its recipe (everything that the result depends
on), the hashes of its files, and how it was made. Work happens in `<path>.partial`, whose `recipe.json`
marks it as ours; the first process to complete it renames it to `<path>`. Imports `_disk`, whose names it
re-exports, and `_claims`.
"""

import errno
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from diffsae_lens._claims import claimed, sharing, work_folder, work_folders
from diffsae_lens._disk import (
    build_json,
    differences,
    digest,
    flush_folder,
    locked,
    naming,
    place_of,
    plain,
    read_json,
    set_aside,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from diffsae_lens._errors import InvalidValueError, MissingFileError

__all__ = [
    "FORMAT", "MANIFEST", "Job", "Manifest", "build", "build_json", "differences", "digest", "find",
    "locked", "naming", "open_artifact", "plain", "read_json", "seal", "set_aside", "sha256",
    "sharing", "version", "write_bytes", "write_json", "write_text",
]  # fmt: skip

logger = logging.getLogger(__name__)

MANIFEST = "artifact.json"
MARK = "recipe.json"
FORMAT = "diffsae-lens artifact 1"

_PACKAGES = ("diffsae-lens", "sae-lens", "transformer-lens", "torch", "transformers", "peft")


version = cache(metadata.version)  # uncached, it reads a file on every call


@dataclass(frozen=True, kw_only=True)
class Job:
    """The folders in which an artifact is made."""

    out: Path
    """Empty at the start of every attempt; becomes the artifact."""
    scratch: Path
    """Partial progress, kept when an attempt is interrupted; removed at the end."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of an artifact's manifest."""

    path: Path
    """The artifact's folder."""
    recipe: dict[str, Any]
    """Everything that the result depends on, as JSON."""
    files: dict[str, str]
    """SHA-256 of every file, by path relative to the folder."""
    made: dict[str, Any]
    """The writer's `facts`, the `versions` of the packages, and `seconds`."""

    @property
    def facts(self) -> dict[str, Any]:
        """Additional information, ignored when recipes are compared."""
        return self.made.get("facts") or {}


def build(
    path: str | Path,
    recipe: Mapping[str, Any],
    write: Callable[[Job], Mapping[str, Any] | None],
) -> Manifest:
    """Open an artifact, making it first if it does not exist.

    A damaged artifact of the same recipe is reported in a warning, renamed to `<path>.damaged` and made
    again. Leftovers of an interrupted or killed attempt are resumed or cleaned up.

    Args:
        path: the artifact's folder.
        recipe: everything that the result depends on, as JSON.
        write: writes the files into `job.out`, using `job.scratch` for what should survive an
            interruption; returns facts to record.

    Returns:
        The manifest.

    Raises:
        ValueError: `path` or `<path>.partial` holds something else, or an artifact of another recipe
            (the message gives the difference).
        OSError: the disk is full or not writable; names `path`. Nothing is left under that name.
    """
    path, recipe = place_of(path), plain(recipe)
    found = find(path, recipe)
    if found is None:
        with locked(path):
            found = find(path, recipe)
            while found is None:
                _set_aside_if_there(path)
                made = _make(path, recipe, write)
                found = open_artifact(path, check=False) if made else find(path, recipe)
    for work in work_folders(path):
        _clean_up(path, work, recipe)
    return found


def find(path: str | Path, recipe: Mapping[str, Any]) -> Manifest | None:
    """Return the manifest of a complete artifact with this recipe, or None if it must be made.

    Raises:
        ValueError: `path` is something else, or an artifact with another recipe.
    """
    path, recipe = place_of(path), plain(recipe)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / MANIFEST).exists() or not _has_our_format(path / MANIFEST):
        raise InvalidValueError(
            f"{path} is there and is not an artifact of this package (it has no {MANIFEST} of ours), so "
            "it is not touched; choose another path, or remove it if it is not needed"
        )
    try:
        manifest = open_artifact(path, check=False)
    except ValueError:  # its recipe cannot be read; `build` sets it aside
        return None
    if manifest.recipe != recipe:
        raise InvalidValueError(
            f"{path} was made with other settings ({differences(manifest.recipe, recipe)}); choose "
            "another path, or remove it"
        )
    return None if _damage(manifest) else manifest


def open_artifact(path: str | Path, *, check: bool = True) -> Manifest:
    """Open an artifact.

    Args:
        path: its folder.
        check: whether to verify the hashes of its files.

    Raises:
        FileNotFoundError: there is no artifact at `path`.
        ValueError: the artifact is damaged; names the file and the remedy.
    """
    path = place_of(path)
    if not (path / MANIFEST).exists():
        text = "there is no such artifact" if not path.exists() else f"it has no {MANIFEST}"
        raise MissingFileError(errno.ENOENT, text, str(path))
    stored = read_json(path / MANIFEST)
    kinds = {"recipe": dict, "files": dict, "made": dict}
    if not isinstance(stored, dict) or not all(
        isinstance(stored.get(name), kind) for name, kind in kinds.items()
    ):
        raise InvalidValueError(
            f"{path / MANIFEST} is damaged: it must have {sorted(kinds)}; remove {path}"
        )
    manifest = Manifest(path=path, **{name: stored[name] for name in kinds})
    damage = _damage(manifest) if check else ""
    if damage:
        raise InvalidValueError(f"{path} is damaged: {damage}; remove it and have it made anew")
    return manifest


def seal(
    path: Path,
    recipe: Mapping[str, Any],
    *,
    facts: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> None:
    """Write the manifest of a folder, once all other files are there.

    Args:
        path: the folder.
        recipe: everything that the result depends on, as JSON.
        facts: additional information to record.
        seconds: how long it took to make.
    """
    there = (p for p in path.rglob("*") if p.is_file() and p != path / MANIFEST)
    files = {}
    for name in sorted(p.relative_to(path).as_posix() for p in there):
        files[name] = sha256(path / name, flush=True)
    made = {
        "facts": dict(facts or {}),
        "versions": {name: version(name) for name in _PACKAGES},
        "seconds": seconds,
    }
    write_json(
        path / MANIFEST, {"format": FORMAT, "recipe": dict(recipe), "files": files, "made": made}
    )


def _has_our_format(file: Path) -> bool:
    """Whether a manifest is ours; an unreadable one is assumed to be, since it is only renamed."""
    try:
        stored = read_json(file)
    except ValueError:
        return True
    return isinstance(stored, dict) and stored.get("format") == FORMAT


def _damage(manifest: Manifest) -> str:
    """Say what is wrong with an artifact's files; files that are not in the manifest are allowed."""
    for name, expected in manifest.files.items():
        file = manifest.path / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256(file) != expected:
            return f"{name} was changed after it was written"
    return ""


def _set_aside_if_there(path: Path) -> None:
    if not path.exists():
        return
    if not any(path.iterdir()):
        path.rmdir()
        return
    try:
        damage = _damage(open_artifact(path, check=False))
    except ValueError as error:
        damage = str(error)
    set_aside(path, damage)


def _make(
    path: Path, recipe: dict[str, Any], write: Callable[[Job], Mapping[str, Any] | None]
) -> bool:
    """Make an artifact; return False if another process was faster."""
    work = work_folder(path, MARK)
    with naming(path, kept=work), claimed(work / MARK):
        if path.exists():
            return False
        job = None
        try:
            job = _begin(work, recipe)
            start = time.perf_counter()
            facts = write(job)
            seal(job.out, recipe, facts=facts, seconds=round(time.perf_counter() - start, 3))
            job.out.rename(path)
        except BaseException as error:
            if job is not None:
                _give_up(work)
            if isinstance(error, Exception) and path.exists():
                logger.info("another process was quicker to make %s", path)
                return False
            raise
    flush_folder(path.parent)
    return True


def _give_up(work: Path) -> None:
    """Keep what a later attempt can resume from, if there is anything."""
    shutil.rmtree(work / "out", ignore_errors=True)
    with suppress(FileNotFoundError):  # another process is removing it, or took it over
        if all(entry.suffix == ".lock" for entry in (work / "scratch").iterdir()):
            _remove(work)


def _begin(work: Path, recipe: dict[str, Any]) -> Job:
    """Claim the work folder, or resume in it; refuse one that is not ours or has another recipe."""
    work.mkdir(exist_ok=True)
    if not _is_ours(work):
        write_json(work / MARK, {"format": FORMAT, "recipe": recipe})
    stored = read_json(work / MARK)["recipe"]
    if stored != recipe:
        raise InvalidValueError(
            f"{work} holds an unfinished run with other settings ({differences(stored, recipe)}); "
            "remove it, or choose another path"
        )
    job = Job(out=work / "out", scratch=work / "scratch")
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir()
    job.scratch.mkdir(exist_ok=True)
    return job


def _is_ours(work: Path) -> bool:
    """Whether a work folder has our mark; False for an empty one.

    Raises:
        ValueError: the folder has files but not our mark.
    """
    if (work / MARK).exists():
        mark = read_json(work / MARK)
        if isinstance(mark, dict) and mark.get("format") == FORMAT:
            return True
    # A kill may leave the mark's own temporary file.
    left = [entry for entry in work.iterdir() if not re.match(r"\.recipe\.json\.", entry.name)]
    if left:
        raise InvalidValueError(
            f"{work} is needed as a work folder, but holds files that this package did not write "
            f"(such as {left[0].name!r}) and is not touched; move it, or choose another path"
        )
    return False


def _clean_up(path: Path, work: Path, recipe: dict[str, Any]) -> None:
    """Remove an attempt's work folder once the artifact exists, whoever made it."""
    try:
        with locked(path):
            if not work.exists():
                return
            if not any(work.iterdir()):
                work.rmdir()
            elif _is_ours(work) and read_json(work / MARK)["recipe"] == recipe:
                _remove(work)
    except (OSError, ValueError) as error:  # a read-only disk, or a folder of the user's
        logger.debug("%s stays: %s", work, error)


def _remove(work: Path) -> None:
    """Remove a work folder, the mark last: after a kill, what is left is still known as ours."""
    for entry in work.iterdir():
        if entry.name == MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (work / MARK).unlink(missing_ok=True)
    work.rmdir()
