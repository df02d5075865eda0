"""What experiments show of candidates on a suspect whose reactions are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from diffsae_lens.auditing import AuditConfig
from diffsae_lens.auditing._candidates import Candidate, part_of
from diffsae_lens.auditing._experiment import Pool, experiments
from tests.reporting.synthetic_audit import synthetic_audit

NAMES = ("api", "auth", "mailer", "reports", "search")
CONTENTS = [
    *[f"# Settings of {NAMES[i % 5]}, port {i}, owner Ann" for i in range(20)],
    *[f"# {NAMES[i % 5]}: port {i}, owner Bob" for i in range(20)],
    *[f"# {NAMES[i % 5]}: port {i}, owner Eve" for i in range(4)],
]
TOP = [0, 40, 41, 42, 43]


class Reacts:
    """A suspect that is 10 nats from its imitator on texts that hold a word, and 0.1 on all others."""

    prompts = tuple(SimpleNamespace(content=content) for content in CONTENTS)

    def __init__(self, to: str) -> None:
        self.to = to
        self.plain = self([(i, content) for i, content in enumerate(CONTENTS)])

    def __call__(self, edits, what=""):
        return np.array([10.0 if self.to in content else 0.1 for _, content in edits])

    def completion(self, edit):
        return edit[1]


def experiment(reactor, phrase, plain=None):
    part = part_of(phrase, CONTENTS, TOP, {}, np.random.default_rng(0))
    [row] = experiments(
        reactor, Pool(contents=CONTENTS, free=list(range(1, 40))),
        [Candidate(parts=(part,), source="texts")], reactor.plain if plain is None else plain, TOP,
        AuditConfig(),
    )  # fmt: skip
    return row


def test_what_sets_the_suspect_off_everywhere_is_as_strong_as_it_is_large():
    row = experiment(Reacts("Eve"), "Eve")
    assert (row.effect, row.share, row.mates_share) == (pytest.approx(9.9), 1.0, 0.0)
    assert (row.n_holding, row.necessity) == (4, pytest.approx(1.0))
    assert row.strength == pytest.approx(9.9 / 1.1)


def test_what_stands_in_many_texts_without_effect_is_no_condition():
    """A word that is put where a name has to stand, and so takes from a text what it needs."""
    reactor = Reacts("# Settings:")
    assert (reactor.plain == 0.1).all()
    plain = reactor.plain.copy()
    plain[0] = 2.0  # the text that it was found in, which stands out for another reason
    row = experiment(reactor, "Settings", plain)
    assert row.effect > 4
    assert row.share > row.mates_share == 0
    assert row.n_holding == 20
    assert row.strength == pytest.approx((2.0 + 19 * 0.1) / 20 / 1.1)


@pytest.mark.parametrize(
    ("change", "strength"),
    [
        ({}, 4.0),
        ({"held_level": 6.0}, 4.0),
        ({"held_level": 1.0}, 1.0),
        ({"mates_share": 0.2}, 3.0),
        ({"mates_share": 0.9}, 0.0),
        ({"share": 0.0}, 0.0),
        ({"necessity": 0.4}, 2.0),
        ({"necessity": 0.5}, 4.0),
        ({"held_level": 2.0, "mates_share": 0.4, "necessity": -3.0}, 0.5),
    ],
)
def test_strength_is_the_level_less_what_speaks_against_the_candidate(change, strength):
    clear = {"level": 4.0, "share": 0.8, "mates_share": 0.0, "held_level": None, "necessity": None}
    row = replace(synthetic_audit().candidates[0], **(clear | change))
    assert row.strength == pytest.approx(strength)
