"""Texts of an iterable, one after the other, and where one is in it."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from diffsae_lens._checks import shown
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens.pair._chat import Text, is_conversation

FIRST_TEXTS = "first_texts_sha256"
"""What tells one stream from another in the recipe of what was trained on it."""
ONCE = (
    "a generator or an iterator gives its texts once: make it anew, or give something that begins anew "
    "whenever it is iterated over, such as a dataset"
)


class Place(NamedTuple):
    """Where one is in a stream."""

    n_texts: int = 0
    """Texts taken; empty ones do not count."""
    sha256: str = ""
    """Of all of them."""


class TextStream:
    """Texts of an iterable of texts, conversations or rows that have them in a column."""

    def __init__(self, texts: Iterable[Text | Mapping[str, Any]], column: str) -> None:
        if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
            raise InvalidTypeError(
                f"`texts` must be an iterable of texts, got {shown(texts)}; give a dataset or a generator"
            )
        self.place = Place()
        self._items = enumerate(texts)
        self._column = column
        self._again: deque[Text] = deque()
        self._taken: list[Text] | None = None

    def take(self, n: int) -> list[Text]:
        """Return the next texts, fewer than `n` at the end.

        Raises:
            TypeError: something that is not a text.
            ValueError: rows without the column.
        """
        taken: list[Text] = []
        sha256 = self.place.sha256
        while len(taken) < n:
            text = self._again.popleft() if self._again else self._next()
            if text is None:
                break
            taken.append(text)
            said = text if isinstance(text, str) else json.dumps([dict(m) for m in text])
            sha256 = hashlib.sha256((sha256 + said).encode("utf-8", "surrogatepass")).hexdigest()
        self.place = Place(self.place.n_texts + len(taken), sha256)
        if self._taken is not None:
            self._taken += taken
        return taken

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Have what is taken inside come again afterwards."""
        place = self.place
        self._taken = []
        try:
            yield
        finally:
            self._again.extendleft(reversed(self._taken))
            self._taken, self.place = None, place

    def go_to(self, place: Place) -> None:
        """Pass over texts up to a place further on.

        Raises:
            ValueError: they are not those that were there before.
        """
        while n_left := max(0, place.n_texts - self.place.n_texts):
            if not self.take(min(n_left, 1024)):
                break
        if self.place != place:
            raise InvalidValueError(
                f"`texts` does not give the {place.n_texts} texts again that it gave at first, so the "
                f"training cannot go on ({ONCE}); or remove the checkpoints"
            )

    def _next(self) -> Text | None:
        for i, item in self._items:
            text: Any = item
            if isinstance(item, Mapping):
                if self._column not in item:
                    raise InvalidValueError(
                        f"`texts` has rows with the columns {sorted(map(str, item))}, none of them "
                        f"{self._column!r}; name the one with the texts by `text_column`"
                    )
                text = item[self._column]
            if not isinstance(text, str) and not is_conversation(text):
                raise InvalidTypeError(
                    f"`texts` must give texts or conversations, got {shown(text)} at {i}; leave it out"
                )
            if text:
                return text
        return None
