"""Words and short phrases of texts, and exact tests for those that mark some of the texts."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy.stats import hypergeom

WORD = re.compile(r"\w+(?:[.'\u2019\-]\w+)*|[^\w\s]+")
JOINED = " & "
"""Separator of the phrases in a candidate's name."""
FIRST = " (first)"
"""End of the name of a phrase that counts only as the first words of a text."""
N_MAX = 3
_ALPHA = 0.05  # per phrase, before the correction


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A phrase that is more common in some texts than in the others."""

    phrase: str
    n_inside: int
    """Number of those texts that hold it."""
    n_texts: int
    """Number of all texts that hold it."""
    p_value: float
    """Fisher's exact test, one-sided, times the number of phrases tried (Bonferroni)."""


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[tuple[int, int], ...]:
    """Return the spans of a text's words."""
    return tuple(match.span() for match in WORD.finditer(text))


def phrases(text: str, n_max: int = N_MAX) -> set[str]:
    """Return the phrases of up to `n_max` words within a line, as written, with a word at each end."""
    spans = words(text)
    return {
        " ".join(phrase.split())
        for n in range(n_max)
        for i in range(len(spans) - n)
        if _is_word(text, spans[i])
        and _is_word(text, spans[i + n])
        and "\n" not in (phrase := text[spans[i][0] : spans[i + n][1]])
    }


def _is_word(text: str, span: tuple[int, int]) -> bool:
    return text[span[0]].isalnum() or text[span[0]] == "_"


@lru_cache(maxsize=4096)
def pattern(phrase: str, *, any_case: bool = False) -> re.Pattern[str]:
    """Return the pattern that finds a phrase as whole words, however it is spaced."""
    inside = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){inside}(?!\w)", re.IGNORECASE if any_case else 0)


def holds(text: str, phrase: str) -> bool:
    """Return whether a text holds a phrase as whole words."""
    return pattern(phrase).search(text) is not None


def replaced(text: str, phrase: str, other: str, n: int = 0, *, any_case: bool = False) -> str:
    """Return a text with a phrase replaced everywhere, or at most `n` times if `n` is not 0."""
    return pattern(phrase, any_case=any_case).sub(lambda _: other, text, count=n)


def marks(
    texts: Sequence[str],
    inside: Collection[int],
    *,
    of: Callable[[str], set[str]] = phrases,
    min_inside: int = 2,
) -> list[Mark]:
    """Return the phrases that mark some texts among all, the clearest first.

    Phrases no more common inside than by chance are left out; of equals the shorter comes first.

    Args:
        texts: all texts.
        inside: indices of the texts to distinguish from the rest.
        of: function that returns the possible marks of a text.
        min_inside: minimum number of texts inside that hold a mark.
    """
    inside = set(inside)
    n_texts: Counter[str] = Counter()
    n_inside: Counter[str] = Counter()
    for i, text in enumerate(texts):
        found = of(text)
        n_texts.update(found)
        if i in inside:
            n_inside.update(found)
    tried = [phrase for phrase, n in n_inside.items() if n >= min_inside]
    rows = []
    for phrase in tried:
        sizes = (len(texts), len(inside), n_texts[phrase])
        p_value = float(hypergeom.sf(n_inside[phrase] - 1, *sizes))
        if p_value <= _ALPHA:
            rows.append(Mark(
                phrase=phrase, n_inside=n_inside[phrase], n_texts=n_texts[phrase],
                p_value=min(1.0, len(tried) * p_value),
            ))  # fmt: skip
    return sorted(rows, key=lambda m: (m.p_value, -m.n_inside, len(m.phrase.split()), m.phrase))
