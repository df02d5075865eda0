"""Files on disk: written atomically, locked, and named in errors.

Imports only `_claims` and the errors.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from diffsae_lens._claims import is_sharing, sharing
from diffsae_lens._errors import InvalidTypeError, InvalidValueError, MissingFileError

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_BROKEN = {errno.EIO, errno.ENAMETOOLONG}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_SECONDS_OF_A_WRITE = 3600.0  # an older temporary file was left by a killed process
_N_SHOWN, _WIDTH_SHOWN = 12, 80  # number and width of the differences shown


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it, so that it is never found half-written.

    Raises:
        OSError: names the file and says what to do.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sweep(path, older_than=_SECONDS_OF_A_WRITE)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with `write_bytes`.

    Raises:
        ValueError: `value` contains NaN or an infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise InvalidValueError(f"{path} cannot be written as JSON: {error}") from error
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: names the file.
        ValueError: the file is not JSON; names the file and the remedy.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(errno.ENOENT, "there is no such file", str(path)) from error
    except ValueError as error:  # JSON's and UTF-8's errors both
        raise InvalidValueError(
            f"{path} is not JSON ({error}): it was cut short or edited. Restore it, or remove it and "
            "have it made anew"
        ) from error


def sha256(path: str | Path, *, flush: bool = False) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; `flush` writes it through to disk first."""
    with Path(path).open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, regardless of key order."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a path, `<parent>/.<name>.lock`, waiting for any other process that holds it.

    Where locks are not trusted, or the disk does not support them, no lock is taken: see `_claims`.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = None if is_sharing() else _acquired(path)
    if lock is None:
        with nullcontext() if is_sharing() else sharing():
            yield
        return
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path) -> BaseFileLock | None:
    """Acquire and return the lock of a path, or None on a disk without locks."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("waiting for another process that is making %s", path)
        lock.acquire(poll_interval=0.1)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s); two processes may make it twice", path, error)
        return None
    return lock


@contextmanager
def naming(path: Path, *, kept: Path | None = None) -> Iterator[None]:
    """Make disk errors name the file being written and say what to do.

    Args:
        path: the file or folder being written.
        kept: the folder that keeps partial progress.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno not in _FULL | _FORBIDDEN | _BROKEN:
            raise
        raise _explained(error.errno, path, kept) from error
    except (RuntimeError, SafetensorError) as error:
        # How torch.save and safetensors report errors of the operating system.
        number = re.search(r"os error (\d+)", str(error))
        if number is None and not re.search(r"iostream|inline_container", str(error)):
            raise
        code = errno.ENOSPC if number is None else int(number.group(1))
        raise _explained(code, path, kept) from error


def _explained(code: int, path: Path, kept: Path | None) -> OSError:
    if code in _FULL:
        advice = "free some space, then run it again"
        advice += f": it goes on with what {kept} keeps" if kept is not None else ""
    elif code in _FORBIDDEN:
        advice = "choose a path that can be written to"
    else:
        advice = "check the disk and the name"
    return OSError(code, f"{os.strerror(code)}: {path} was not written; {advice}")


def _sweep(path: Path, *, older_than: float) -> None:
    """Remove temporary files that killed writes of this file left behind."""
    for left in path.parent.glob(f".{_quoted(path.name)}.*.writing"):
        try:
            if time.time() - left.stat().st_mtime >= older_than:
                left.unlink()
        except FileNotFoundError:  # another process's file, renamed in the meantime
            continue


def _quoted(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as it would be read back from JSON.

    Raises:
        TypeError: `recipe` contains a value that JSON does not have.
        ValueError: `recipe` contains NaN or an infinity.
    """
    return json.loads(json.dumps(recipe, allow_nan=False, default=_number))


def _number(value: Any) -> Any:
    """Return a NumPy or torch number as a Python number."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise InvalidTypeError(f"{value!r} ({type(value).__name__}) is not a JSON value")


def differences(stored: Any, wanted: Any) -> str:
    """Describe how two recipes differ, with dotted names.

    Examples:
        >>> differences({"run": {"lr": 0.1, "seed": 0}}, {"run": {"lr": 0.2, "seed": 0}})
        'run.lr: 0.1 there, 0.2 asked for'
    """
    found = list(_differing("", stored, wanted))
    left = len(found) - _N_SHOWN
    return "; ".join(found[:_N_SHOWN]) + (f"; and {left} more" if left > 0 else "")


_NOTHING = object()


def _differing(name: str, stored: Any, wanted: Any) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in [*stored, *(key for key in wanted if key not in stored)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from _differing(inner, stored.get(key, _NOTHING), wanted.get(key, _NOTHING))
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted) < 20:
        for i, (ours, theirs) in enumerate(zip(stored, wanted, strict=True)):
            yield from _differing(f"{name}[{i}]", ours, theirs)
    elif stored is _NOTHING or wanted is _NOTHING or stored != wanted:
        yield f"{name or 'all of it'}: {_shown(stored)} there, {_shown(wanted)} asked for"


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    text = repr(value)
    return text if len(text) <= _WIDTH_SHOWN else text[: _WIDTH_SHOWN - 4] + " ..."


def flush_folder(path: Path) -> None:
    """Flush the renames in a folder to disk, where the system supports it."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        logger.debug("%s cannot be flushed: %s", path, error)
    finally:
        os.close(handle)


def place_of(path: str | Path) -> Path:
    """Return a path with `~` expanded; refuse one that does not end in a name."""
    place = Path(path).expanduser()
    if place.name in ("", ".."):
        raise InvalidValueError(f"`path` must end in a name, got {str(path)!r}")
    return place


def set_aside(path: Path, damage: str) -> Path:
    """Rename a damaged file or folder to `<path>.damaged` (or `-2` ...), with a warning that names it."""
    aside = path.with_name(f"{path.name}.damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    logger.warning("%s is damaged: %s; set aside as %s, made anew", path, damage, aside.name)
    with naming(path), suppress(FileNotFoundError):  # another process may have been faster
        path.rename(aside)
    return aside


def build_json(path: str | Path, recipe: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """Read a JSON value, computing and storing it first if it does not exist.

    An edited or truncated file is reported in a warning, set aside and computed again.

    Args:
        path: the file; it holds `recipe`, the `sha256` of the value, and `value`.
        recipe: everything that the value depends on, as JSON.
        compute: returns the value.

    Returns:
        The value as read back from JSON.

    Raises:
        ValueError: `path` holds the value of another recipe; the message gives the difference.
        OSError: names the file.
    """
    path, recipe = place_of(path), plain(recipe)
    if path.exists():
        stored = _stored_value(path, recipe)
        if not isinstance(stored, str):
            return stored["value"]
    with locked(path):
        if not is_sharing():
            _sweep(path, older_than=0.0)
        stored = _stored_value(path, recipe) if path.exists() else None
        if isinstance(stored, str):
            set_aside(path, stored)
        elif stored is not None:
            return stored["value"]
        value = compute()
        write_json(path, {"recipe": recipe, "sha256": digest(value), "value": value})
        return read_json(path)["value"]


def _stored_value(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | str:
    """Return the contents of a `build_json` file, or a description of what is wrong with it."""
    try:
        stored = read_json(path)
    except ValueError as error:
        return str(error)
    if not isinstance(stored, dict) or set(stored) != {"recipe", "sha256", "value"}:
        return "it does not have `recipe`, `sha256` and `value`"
    if stored["recipe"] != recipe:
        raise InvalidValueError(
            f"{path} was made with other settings ({differences(stored['recipe'], recipe)}); remove "
            "it, or choose another path"
        )
    return stored if digest(stored["value"]) == stored["sha256"] else "its value was edited"
