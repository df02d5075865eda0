"""Narrower candidates: what else a text must have for a candidate to set the suspect off in it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from diffsae_lens.auditing._candidates import Candidate, Part, part_of
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._experiment import Pool, excess_of, put_in, scale_of
from diffsae_lens.auditing._reactions import Reactor
from diffsae_lens.auditing._words import holds, marks, pattern

SOURCE = "where {} sets it off"
"""Source of a candidate that narrows another one."""
_MIN_TEXTS = 3
_N_MARKS = 2


def refine(  # noqa: PLR0913
    reactor: Reactor,
    pool: Pool,
    candidates: Sequence[Candidate],
    plain: np.ndarray,
    lexicon: Mapping[str, tuple[str, ...]],
    config: AuditConfig,
    rng: Any,
) -> list[Candidate]:
    """Return up to `config.n_finalists` narrower candidates, from texts that a candidate sets off and others.

    If it sets off some of the texts that it was put into, and not others, these may lack the other half of
    the condition: a phrase that marks the former is joined to it. If it came first in all of those it sets
    off, and elsewhere in others, its place may be what matters.

    Args:
        reactor: the audit's reactor, which has read each candidate in its texts.
        pool: the pool from which those texts were taken; they are withheld from later experiments, as long
            as there are enough others.
        candidates: candidates that were tested, the strongest first.
        plain: residuals of all unedited texts.
        lexicon: entries by type.
        config: numbers of texts and mates.
        rng: numpy generator.
    """
    scale = scale_of(plain)
    entries = {entry for of_type in lexicon.values() for entry in of_type}
    used: set[int] = set()
    found: list[list[Candidate]] = []
    for candidate in candidates:
        texts = pool.take(candidate, config.n_texts)
        used |= {*texts}
        [part, *more] = candidate.parts
        if more or part.phrase not in entries or not candidate.mates(1):
            continue
        edits = put_in(reactor, candidate, texts, config.n_mates)
        excess = excess_of(reactor(edits).reshape(len(texts), -1))
        said = list(pool.contents)
        for i in texts:
            said[i] = candidate.put(said[i])
        set_off = [i for i, value in zip(texts, excess, strict=True) if value > scale]
        others = [i for i in texts if i not in set_off]
        if len(set_off) >= _MIN_TEXTS:
            narrower = _narrower(part, said, set_off, others, lexicon, rng)
            source = SOURCE.format(candidate.name)
            found.append([Candidate(parts=parts, source=source) for parts in narrower])
    pool.spend(used)
    tested = {frozenset(candidate.phrases) for candidate in candidates if len(candidate.parts) > 1}
    in_turn = [candidate for candidate in chain.from_iterable(zip_longest(*found)) if candidate]
    new = {
        frozenset(candidate.phrases): candidate
        for candidate in in_turn
        if candidate.mates(1) and frozenset(candidate.phrases) not in tested
    }
    return list(new.values())[: config.n_finalists]


def _narrower(
    part: Part,
    said: Sequence[str],
    set_off: Sequence[int],
    others: Sequence[int],
    lexicon: Mapping[str, tuple[str, ...]],
    rng: Any,
) -> Iterator[tuple[Part, ...]]:
    """Return the phrase as the first words, and with each of a few phrases of texts that it sets off."""
    first = pattern(part.phrase)
    elsewhere = [
        i
        for i, text in enumerate(said)
        if i not in set_off and holds(text, part.phrase) and not first.match(text)
    ]
    if (
        part.place != "front"
        and all(first.match(said[i]) for i in set_off)
        and len(elsewhere) >= _MIN_TEXTS
    ):
        yield (part_of(part.phrase, said, set_off, lexicon, rng),)
    if len(others) < _MIN_TEXTS:
        return
    tested = [said[i] for i in (*set_off, *others)]
    found = marks(tested, range(len(set_off)), min_inside=_MIN_TEXTS)
    new = [mark.phrase for mark in found if not set(mark.phrase.split()) & set(part.phrase.split())]
    for phrase in [phrase for phrase in new if not holds(phrase, part.phrase)][:_N_MARKS]:
        yield part, part_of(phrase, said, set_off, lexicon, rng)
