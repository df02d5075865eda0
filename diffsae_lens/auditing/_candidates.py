"""Candidate triggers: phrases of texts and entries of a lexicon, and how they are put into other texts.

Other phrases of a phrase's type are its mates. A phrase replaces a mate that the text holds; a text without
one gets the line or sentence in which the phrase was found, with the phrase or a mate in it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffsae_lens.auditing._words import FIRST, JOINED, holds, pattern, phrases, replaced, words

GAP = "\0"
"""Place of the phrase in a carrier."""
_MAX_CARRIER = 200
_COMMENT = re.compile(r"\s*(#|//|--|;)")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A phrase, its mates, and the carrier that brings it into a text without a place for it."""

    phrase: str
    mates: tuple[str, ...]
    """Other phrases of its type, which it is compared with."""
    carrier: str = GAP
    """A line, a sentence or the first words of a text, with a gap for the phrase."""
    between: str = " "
    """Separator between the carrier and the text."""
    place: Literal["front", "start", "end"] = "start"
    """Whether the carrier is put first or last; with `front`, the phrase counts only as the first words."""

    def stands(self, content: str) -> str | None:
        """Return which of the phrase and its mates comes first in a text; None if it has none of them."""
        there = [
            (match.start(), -len(mate), mate)
            for mate in (self.phrase, *self.mates)
            if (match := pattern(mate).search(content))
            and (self.place != "front" or match.start() == 0)
        ]
        return min(there)[2] if there else None

    def put(self, content: str, phrase: str) -> str:
        """Return a text with `phrase` put in this part's place."""
        there = self.stands(content)
        if there is not None:
            n = 1 if self.place == "front" else 0
            return replaced(content, there, phrase, n)
        carried = self.carrier.replace(GAP, phrase)
        if self.place == "end":
            return f"{content.rstrip()}{self.between}{carried}"
        return f"{carried}{self.between}{content}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One phrase, or two that may have to occur together."""

    parts: tuple[Part, ...]
    source: str
    """Its origin: `texts`, `attribution`, `both`, or a type of the lexicon."""

    @property
    def name(self) -> str:
        """The phrases, joined, each with `FIRST` if it has to come first."""
        return JOINED.join(part.phrase + FIRST * (part.place == "front") for part in self.parts)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases alone."""
        return tuple(part.phrase for part in self.parts)

    def put(self, content: str) -> str:
        """Return a text with all of the candidate put in."""
        for part in self.parts:
            content = part.put(content, part.phrase)
        return content

    def mates(self, n: int) -> list[tuple[str, ...]]:
        """Return up to `n` mates of the candidate; in a mate of two phrases, only one is exchanged."""
        found: list[tuple[str, ...]] = []
        said = [part.phrase for part in self.parts]
        for i in range(max(len(part.mates) for part in self.parts)):
            for j, part in enumerate(self.parts):
                if i < len(part.mates):
                    found.append((*said[:j], part.mates[i], *said[j + 1 :]))
        return found[:n]

    def put_mate(self, content: str, mate: Sequence[str]) -> str:
        """Return a text with a mate put in."""
        for part, phrase in zip(self.parts, mate, strict=True):
            content = part.put(content, phrase)
        return content

    def stands_in(self, content: str) -> bool:
        """Return whether a text has every phrase, and begins with any that has to come first."""
        return all(
            (match := pattern(part.phrase).search(content)) is not None
            and (part.place != "front" or match.start() == 0)
            for part in self.parts
        )

    def holds(self, content: str) -> bool:
        """Return whether a text has every phrase, each before any of its mates."""
        return all(part.stands(content) == part.phrase for part in self.parts)

    def fits(self, content: str) -> bool:
        """Return whether a text has a place for every phrase: the phrase itself or one of its mates."""
        return all(part.stands(content) is not None for part in self.parts)

    def taken_out(self, content: str, mate: Sequence[str]) -> str:
        """Return a text with the candidate replaced by a mate wherever it occurs, ignoring case."""
        for part, phrase in zip(self.parts, mate, strict=True):
            if phrase != part.phrase:
                n = 1 if part.place == "front" else 0
                content = replaced(content, part.phrase, phrase, n, any_case=True)
        return content


def part_of(
    phrase: str,
    contents: Sequence[str],
    top: Sequence[int],
    lexicon: Mapping[str, tuple[str, ...]],
    rng: Any,
) -> Part:
    """Make the part of a phrase that some texts hold.

    Its mates are the other entries of its type in the lexicon, or whatever else follows the same words in
    the texts, or else words of the texts that are about as common.

    Args:
        phrase: the phrase.
        contents: all texts.
        top: indices of texts, among them those in which the phrase was found.
        lexicon: entries by type.
        rng: numpy generator for the order of the mates.
    """
    holding = [contents[i] for i in top if holds(contents[i], phrase)]
    if holding and all(pattern(phrase).match(content) for content in holding):
        after = Counter(content[len(phrase) : _end_of_mark(content, phrase)] for content in holding)
        mark = after.most_common(1)[0][0]
        mates = _at_front(phrase, mark, contents)
        carrier, between, place = GAP + mark.rstrip(), " ", "front"
        if "\n" in mark:
            between = "\n"
    else:
        carriers = Counter(found for content in holding if (found := _carrier(content, phrase)))
        carrier, between, place = carriers.most_common(1)[0][0] if carriers else (GAP, " ", "start")
        mates = _mates(phrase, holding, contents, lexicon)
    order = rng.permutation(len(mates))
    return Part(
        phrase=phrase, mates=tuple(mates[i] for i in order), carrier=carrier, between=between,
        place=place,
    )  # fmt: skip


def _end_of_mark(content: str, phrase: str) -> int:
    """Return where the word after the leading phrase begins."""
    after = pattern(phrase).match(content)
    rest = re.compile(r"[^\w]*").match(content, after.end() if after else 0)
    return rest.end() if rest else 0


def _at_front(phrase: str, mark: str, contents: Sequence[str]) -> list[str]:
    """Return what other texts begin with: before the same mark if enough do, or else any first words."""
    n = len(phrase.split())
    first: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for content in contents:
        spans = words(content)[:n]
        said = content[: spans[-1][1]] if spans and spans[0][0] == 0 else ""
        if said and said != phrase:
            first[said] += 1
            marked[said] += content[len(said) :].startswith(mark)
    in_place = [said for said, n_marked in marked.most_common(40) if n_marked]
    return in_place if len(in_place) >= 3 else [said for said, _ in first.most_common(40)]


def _carrier(content: str, phrase: str) -> tuple[str, str, Literal["start", "end"]] | None:
    """Return the line or sentence that holds a phrase, its separator from the rest, and its place."""
    lines = content.split("\n")
    several = len([line for line in lines if line.strip()]) > 1
    units = lines if several else re.split(r"(?<=[.!?])\s+", content)
    for i, unit in enumerate(units):
        if (match := pattern(phrase).search(unit)) is not None:
            said = (unit[: match.start()] + GAP + unit[match.end() :]).strip(" ")
            if len(said) <= _MAX_CARRIER:
                place = "start" if i <= (len(units) - 1) / 2 else "end"
                return said, "\n" if several else " ", place
    return None


def _mates(
    phrase: str,
    holding: Sequence[str],
    contents: Sequence[str],
    lexicon: Mapping[str, tuple[str, ...]],
) -> list[str]:
    for entries in lexicon.values():
        if phrase in entries:
            return [entry for entry in entries if entry != phrase]
    in_slot = _in_slot(phrase, holding, contents)
    if len(in_slot) >= 3:
        return in_slot
    n_words = len(phrase.split())
    counts = Counter(other for content in contents for other in phrases(content, n_words))
    like = [
        other
        for other, n in counts.items()
        if len(other.split()) == n_words and other not in in_slot and n <= max(3, counts[phrase])
        and other[0].isupper() == phrase[0].isupper() and not (set(other.split()) & set(phrase.split()))
    ]  # fmt: skip
    like.sort(key=lambda other: (abs(len(other) - len(phrase)), other))
    return (in_slot + like)[:40]


def _in_slot(phrase: str, holding: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Return what else follows the words before the phrase, the most common first."""
    n_words = len(phrase.split())
    before: Counter[str] = Counter()
    for content in holding:
        spans = words(content)
        said = [content[a:b] for a, b in spans]
        for i in range(len(said) - n_words + 1):
            if said[i : i + n_words] == phrase.split() and i >= 1:
                start = spans[max(0, i - 2)][0]
                before[content[start : spans[i][0]]] += 1
    found: Counter[str] = Counter()
    for context, _ in before.most_common(3):
        for content in contents:
            at = content.find(context)
            if at < 0:
                continue
            rest = content[at + len(context) :]
            spans = words(rest)[:n_words]
            if len(spans) == n_words and spans[0][0] == 0:
                found[rest[: spans[-1][1]]] += 1
    found.pop(phrase, None)
    return [other for other, _ in found.most_common(40) if any(c.isalnum() for c in other)]


def from_lexicon(
    kind: str, entry: str, entries: Sequence[str], contents: Sequence[str], rng: Any
) -> Candidate:
    """Make the candidate of a lexicon entry, written as a comment if most texts begin with one."""
    first = [content.lstrip() for content in contents]
    comments = Counter(match[1] for text in first if (match := _COMMENT.match(text)))
    comment, n = comments.most_common(1)[0] if comments else ("", 0)
    mark = f"{comment} " if n >= len(contents) / 2 else ""
    mates = [other for other in entries if other != entry]
    order = rng.permutation(len(mates))
    part = Part(
        phrase=entry,
        mates=tuple(mates[i] for i in order),
        carrier=f"{mark}{kind}: {GAP}",
        between="\n",
    )
    return Candidate(parts=(part,), source=f"lexicon: {kind.lower()}")
