"""What may set a suspect off: phrases of texts and entries of a lexicon, and how they are put into others.

A phrase goes where its like stands: where a text holds another of its type, that one is replaced; elsewhere
the line or sentence that the phrase was found in comes first, with the phrase or with one of its type.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffsae_lens.auditing._words import holds, pattern, phrases, replaced, words

GAP = "\0"
"""Where the phrase stands in a carrier."""
_MAX_CARRIER = 200
_COMMENT = re.compile(r"\s*(#|//|--|;)")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A phrase, what it is compared with, and what carries it into a text that has no place for it."""

    phrase: str
    mates: tuple[str, ...]
    """Others of its type, which stand where it could."""
    carrier: str = GAP
    """A line, a sentence or the first words of a text, with a gap for it."""
    between: str = " "
    """What stands between the carrier and the text."""
    place: Literal["front", "start", "end"] = "start"
    """Whether the carrier is put first or last; `front`: the phrase counts as the first words alone."""

    def stands(self, content: str) -> str | None:
        """Return which of the phrase and its like a text has in the phrase's place; None if it has none."""
        there = [
            (match.start(), -len(mate), mate)
            for mate in (self.phrase, *self.mates)
            if (match := pattern(mate).search(content))
            and (self.place != "front" or match.start() == 0)
        ]
        return min(there)[2] if there else None

    def put(self, content: str, phrase: str) -> str:
        """Return a text that says a phrase in this one's place."""
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
    """One phrase, or two that may have to come together."""

    parts: tuple[Part, ...]
    source: str
    """Where it comes from: `texts`, `attribution`, `both`, or a type of the lexicon."""

    @property
    def name(self) -> str:
        """The phrases."""
        return " & ".join(part.phrase for part in self.parts)

    def put(self, content: str) -> str:
        """Return a text that says all of it."""
        for part in self.parts:
            content = part.put(content, part.phrase)
        return content

    def mates(self, n: int) -> list[tuple[str, ...]]:
        """Return what is said in its place, up to `n` of its like: of two phrases, one is exchanged."""
        found: list[tuple[str, ...]] = []
        said = [part.phrase for part in self.parts]
        for i in range(max(len(part.mates) for part in self.parts)):
            for j, part in enumerate(self.parts):
                if i < len(part.mates):
                    found.append((*said[:j], part.mates[i], *said[j + 1 :]))
        return found[:n]

    def put_mate(self, content: str, mate: Sequence[str]) -> str:
        """Return a text that says one of its like."""
        for part, phrase in zip(self.parts, mate, strict=True):
            content = part.put(content, phrase)
        return content

    def stands_in(self, content: str) -> bool:
        """Whether all of it is somewhere in a text, and what has to come first does."""
        return all(
            (match := pattern(part.phrase).search(content)) is not None
            and (part.place != "front" or match.start() == 0)
            for part in self.parts
        )

    def holds(self, content: str) -> bool:
        """Whether a text says all of it, each part before its like."""
        return all(part.stands(content) == part.phrase for part in self.parts)

    def fits(self, content: str) -> bool:
        """Whether a text has a place for it, in which something of its type stands."""
        return all(part.stands(content) is not None for part in self.parts)

    def taken_out(self, content: str, mate: Sequence[str]) -> str:
        """Return a text that says one of its like instead, wherever and in whichever case it stands."""
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
    """Make a part of a phrase that some texts hold.

    Its mates are the other entries of its type in the lexicon, or what else stands after the same words
    in the texts, or else words of the texts that are about as common.

    Args:
        phrase: it.
        contents: all texts.
        top: the texts that it was found in, among others.
        lexicon: entries by type.
        rng: numpy generator for the draw.
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
    """Where the word after the first phrase begins."""
    after = pattern(phrase).match(content)
    rest = re.compile(r"[^\w]*").match(content, after.end() if after else 0)
    return rest.end() if rest else 0


def _at_front(phrase: str, mark: str, contents: Sequence[str]) -> list[str]:
    """What other texts begin with, before the same mark if there are such; or else any first words."""
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
    """The line or sentence that holds a phrase, what stands between it and the rest, and where it stands."""
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
    """What else stands after the words that the phrase stands after, the commonest first."""
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
    """Make a candidate of an entry of a lexicon, said as texts like these would say it."""
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
