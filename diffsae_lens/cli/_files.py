"""Files that a user gives to a command, read before anything heavy is imported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffsae_lens._errors import InvalidValueError, MissingFileError

Message = Mapping[str, Any]
KINDS = {
    ".txt": "one text per line",
    ".json": "a list of texts or conversations",
    ".jsonl": 'a text, {"text": ..}, {"prompt": ..} or {"messages": [..]} per line',
}


def texts_of(path: Path, *, at_least: int) -> list[str | list[Message]]:
    """Read texts and conversations from a file.

    Args:
        path: a file of one of the `KINDS`. Empty lines are skipped.
        at_least: minimum number of different texts.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is of another kind, is damaged, holds something else, or has too few texts.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        known = "; ".join(f"{name} ({what})" for name, what in KINDS.items())
        raise InvalidValueError(
            f"`texts` must be a file of one of these kinds: {known}; got {path}"
        )
    source = _read("texts", path)
    if kind == ".json":
        items = _parsed(source, str(path))
        if not isinstance(items, list):
            raise InvalidValueError(f"{path} must hold {KINDS[kind]}, got {_shown(items)}")
        numbered = [(f"item {i} of {path}", item) for i, item in enumerate(items)]
    else:
        lines = [(f"{path}, line {i + 1}", line) for i, line in enumerate(source.split("\n"))]
        full = [(where, line.removesuffix("\r")) for where, line in lines if line.strip()]
        as_json = kind == ".jsonl"
        numbered = [(where, _parsed(line, where) if as_json else line) for where, line in full]
    texts = [_text(item, where) for where, item in numbered]
    n_different = len({json.dumps(text) for text in texts})
    if n_different < at_least:
        raise InvalidValueError(
            f"{path} must hold at least {at_least} different texts, got {n_different}; something that "
            "is in one text of a hundred takes 400 to be found"
        )
    return texts


def lexicon_of(path: Path) -> dict[str, list[str]]:
    """Read a lexicon, such as `{"Year": ["2023", "2024"]}`, from a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON, or holds something else.
    """
    found = _parsed(_read("lexicon", path), str(path))
    for kind, entries in found.items() if isinstance(found, dict) else ((None, None),):
        if not isinstance(entries, list) or not all(isinstance(e, str) and e for e in entries):
            raise InvalidValueError(
                f'{path} must hold lists of entries by type, such as {{"Year": ["2023", "2024"]}}, got '
                f"{_shown(found if kind is None else {kind: entries})}"
            )
    return found


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingFileError(f"`{name}`: there is no file {path}") from error
    except IsADirectoryError as error:
        raise InvalidValueError(f"`{name}` must be a file, got the folder {path}") from error
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def _parsed(source: str, where: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{where} is not JSON ({error})") from error


def _text(item: Any, where: str) -> str | list[Message]:
    """Return a text or a conversation, or the one in a mapping."""
    found = item
    if isinstance(item, dict):
        keys = [key for key in ("messages", "prompt", "text") if key in item]
        if len(keys) != 1:
            said = (
                f"has {' and '.join(keys)}"
                if keys
                else f"has {', '.join(map(str, item)) or 'nothing'}"
            )
            raise InvalidValueError(
                f"{where} must have one of text, prompt and messages; it {said}"
            )
        found = item[keys[0]]
    if isinstance(found, str) and found.strip():
        return found
    if isinstance(found, list) and found and all(map(_is_message, found)):
        return found
    raise InvalidValueError(
        f"{where} must be a text that is not empty, or a list of messages with role and content, got "
        f"{_shown(found)}"
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(k), str) for k in ("role", "content"))


def _shown(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.80}"
