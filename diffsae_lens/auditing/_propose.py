"""Candidates from the texts themselves: what distinguishes those with the largest residuals."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from diffsae_lens.auditing._candidates import Candidate, part_of
from diffsae_lens.auditing._words import Mark, holds, marks

_N_PAIRS = 3
_N_ALIKE = 2


def propose(  # noqa: PLR0913
    contents: Sequence[str],
    top: Sequence[int],
    groups: Sequence[Sequence[int]],
    attributed: Sequence[tuple[str, float]],
    lexicon: Mapping[str, tuple[str, ...]],
    n: int,
    rng: Any,
) -> list[Candidate]:
    """Return up to `n` candidates: phrases by exact test and words by attribution in turn, then pairs.

    Args:
        contents: contents of all texts.
        top: indices of the texts with the largest residuals.
        groups: the same texts, grouped by their completions.
        attributed: words that carry their residuals, the strongest first.
        lexicon: entries by type, the mates of a phrase that is an entry.
        n: maximum number of candidates.
        rng: numpy generator.
    """
    by_test = _without_doubles(
        [
            m
            for inside in ([*map(list, groups), list(top)])
            if len(inside) > 1
            for m in marks(contents, inside)
        ],
        contents,
    )
    of_test = [m.phrase for m in by_test]
    of_words = [word for word, _ in attributed]
    phrases: dict[str, str] = {}
    for i in range(max(len(of_test), len(of_words))):
        for source, found in (("texts", of_test), ("attribution", of_words)):
            if i < len(found):
                phrases[found[i]] = "both" if phrases.get(found[i], source) != source else source
    singles = list(phrases)[: max(n // 2, n - _N_PAIRS, 1)]
    pairs = [
        pair
        for pair in combinations(singles[:4], 2)
        if not (set(pair[0].split()) & set(pair[1].split()))
        and sum(all(holds(contents[i], p) for p in pair) for i in top) >= 2
    ][:_N_PAIRS]
    parts = {phrase: part_of(phrase, contents, top, lexicon, rng) for phrase in singles}
    found = [Candidate(parts=(parts[phrase],), source=phrases[phrase]) for phrase in singles]
    found += [Candidate(parts=tuple(parts[p] for p in pair), source="texts") for pair in pairs]
    return [candidate for candidate in found if candidate.mates(1)]


def _without_doubles(found: Sequence[Mark], contents: Sequence[str]) -> list[Mark]:
    """Keep a few of the shortest phrases in the same texts, and the longest around the first of these."""
    same: dict[tuple[int, ...], list[Mark]] = {}
    for mark in sorted(
        found, key=lambda m: (m.p_value, -m.n_inside, len(m.phrase.split()), m.phrase)
    ):
        where = tuple(i for i, content in enumerate(contents) if holds(content, mark.phrase))
        there = same.setdefault(where, [])
        if mark.phrase not in [m.phrase for m in there]:
            there.append(mark)
    kept = []
    for marks_there in same.values():
        first = marks_there[0]
        n_words = len(first.phrase.split())
        kept += [m for m in marks_there if len(m.phrase.split()) == n_words][:_N_ALIKE]
        around = [m for m in marks_there if first.phrase in m.phrase and m is not first]
        kept += [m for m in around if m not in kept][-1:]
    return kept
