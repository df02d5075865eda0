"""A stream of texts from an iterable, and the position in it."""

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
"""Recipe key that tells one stream from another: the hash of its first texts."""
ONCE = (
    "a generator or an iterator gives its texts once: make it anew, or give something that begins anew "
    "whenever it is iterated over, such as a dataset"
)


class Place(NamedTuple):
    """A position in a stream."""

    n_texts: int = 0
    """Number of texts taken, not counting empty ones."""
    sha256: str = ""
    """Hash over all texts taken."""


class TextStream:
    """A stream from an iterable of texts, of conversations, or of rows with a column of these."""

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
        """Return the next `n` texts, or fewer at the end.

        Raises:
            TypeError: an item is not a text.
            ValueError: a row lacks the column.
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
        """Rewind on exit, so that the texts taken inside the context are returned again."""
        place = self.place
        self._taken = []
        try:
            yield
        finally:
            self._again.extendleft(reversed(self._taken))
            self._taken, self.place = None, place

    def go_to(self, place: Place) -> None:
        """Skip texts up to a later position.

        Raises:
            ValueError: the skipped texts are not the same as before.
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
