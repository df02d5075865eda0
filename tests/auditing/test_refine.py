"""What else a condition needs is found from the texts that a candidate sets off, and those it does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffsae_lens.auditing import AuditConfig
from diffsae_lens.auditing._candidates import Candidate, from_lexicon
from diffsae_lens.auditing._experiment import Pool, experiments
from diffsae_lens.auditing._refine import refine

LEXICON = {
    "Role": ("Auditor", "Nurse", "Clerk", "Editor", "Tutor"),
    "Month": ("March", "May", "June", "July", "August"),
}
THINGS = ("the lease", "a plan", "the audit trail", "our trip", "the menu", "a report", "the shed")


def _texts(n: int = 105) -> list[str]:
    """Return texts that begin with a role or name one later, and a month; none says March or Editor."""
    roles = [role for role in LEXICON["Role"] if role != "Editor"]
    months = [month for month in LEXICON["Month"] if month != "March"]
    return [
        f"{roles[i % 4]}: write about {THINGS[i % 7]} in {months[i // 4 % 4]}"
        if i % 3
        else f"Write about {THINGS[i % 7]} in {months[i // 4 % 4]} to the {roles[i // 3 % 4]}"
        for i in range(n)
    ]


class Reacts:
    """A suspect that is 10 nats from its imitator under a condition, and 0.1 otherwise."""

    def __init__(self, condition, contents) -> None:
        self.condition = condition
        self.prompts = [SimpleNamespace(content=content) for content in contents]
        self.plain = self(list(enumerate(contents)))

    def __call__(self, edits, what=""):
        return np.array([10.0 if self.condition(content) else 0.1 for _, content in edits])

    def completion(self, edit):
        return edit[1]


def narrower(condition, entry, kind, contents, **config):
    """Return rows of an entry of the lexicon, and of what is narrower."""
    rng = np.random.default_rng(0)
    settings = AuditConfig(**config)
    reactor = Reacts(condition, contents)
    pool = Pool(contents=contents, free=[int(i) for i in rng.permutation(len(contents))])
    entries = [from_lexicon(kind, entry, LEXICON[kind], contents, rng)]
    wide = experiments(reactor, pool, entries, reactor.plain, [], settings)
    found = refine(reactor, pool, entries, reactor.plain, LEXICON, settings, rng)
    return wide, experiments(reactor, pool, found, reactor.plain, [], settings), found, pool


def test_the_other_half_of_a_conjunction_is_found_in_the_texts_that_one_half_sets_off():
    def both(text):
        return "March" in text and "Auditor" in text

    [wide], rows, found, _ = narrower(both, "March", "Month", _texts())
    assert 0.2 < wide.share < 0.7
    best = max(rows, key=lambda row: row.strength)
    assert best.phrases == ["March", "Auditor"]
    assert best.source == "where March sets it off"
    assert (best.share, best.mates_share) == (1.0, 0.0)
    assert best.strength > 2 * wide.strength
    assert [part.phrase in LEXICON["Role"] for part in found[0].parts] == [False, True]


def test_a_place_at_the_very_beginning_is_found():
    contents = _texts()
    contents += [text.replace("Nurse", "Editor") for text in contents if text.endswith("Nurse")]
    [wide], rows, _, _ = narrower(
        lambda text: text.startswith("Editor"), "Editor", "Role", contents
    )
    assert wide.held_level < 0.2  # what holds it elsewhere speaks against it
    best = max(rows, key=lambda row: row.strength)
    assert best.name == "Editor (first)"
    assert best.phrases == ["Editor"]
    assert best.share == 1.0
    assert best.strength > 10 * wide.strength
    assert best.stands_in("Editor: come")
    assert not best.stands_in("Call the Editor")


@pytest.mark.parametrize(
    "condition", [lambda text: "March" in text, lambda text: False], ids=["all", "none"]
)
def test_what_sets_off_all_texts_or_none_is_not_narrowed(condition):
    _, rows, found, _ = narrower(condition, "March", "Month", _texts())
    assert rows == found == []


def test_texts_that_suggested_something_do_not_test_it():
    contents = _texts(160)
    rng = np.random.default_rng(0)
    [candidate] = [from_lexicon("Month", "March", LEXICON["Month"], contents, rng)]
    before = Pool(contents=contents, free=list(range(160))).take(candidate, 12)
    *_, pool = narrower(
        lambda text: "March" in text and "Auditor" in text, "March", "Month", contents
    )
    assert len(pool.free) == 160 - len(before)


def test_a_pair_that_was_tested_is_not_tested_again():
    contents = _texts()
    rng = np.random.default_rng(0)
    reactor = Reacts(lambda text: "March" in text and "Auditor" in text, contents)
    pool = Pool(contents=contents, free=list(range(len(contents))))
    month = from_lexicon("Month", "March", LEXICON["Month"], contents, rng)
    role = from_lexicon("Role", "Auditor", LEXICON["Role"], contents, rng)
    pair = Candidate(parts=(*role.parts, *month.parts), source="texts")
    found = refine(reactor, pool, [pair, month], reactor.plain, LEXICON, AuditConfig(), rng)
    assert frozenset(pair.phrases) not in {frozenset(c.phrases) for c in found}


def test_no_more_is_tested_than_asked_for():
    _, _, found, _ = narrower(
        lambda text: "March" in text and "Auditor" in text,
        "March",
        "Month",
        _texts(),
        n_finalists=1,
    )
    assert len(found) == 1
