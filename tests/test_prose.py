"""No text of the project has a habit that `tests.prose` lists, and each rule sees what it is for."""

import pytest

from tests.prose import RULES, broken, files, report


def test_the_text_keeps_the_rules():
    assert len(list(files())) > 200
    assert report() == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.example)
def test_a_rule_sees_its_example(rule):
    assert [found for _, _, found in broken(f"Fine.\n{rule.example}\n")] == [rule]


@pytest.mark.parametrize(
    "text",
    [
        "Returns one value per feature.",
        "It says which tokens a dictionary reads and which rows a feature fires on.",
        "Below 0.5 a feature is lower on the positives.",
        "It is not a hook point of this pair.",
    ],
)
def test_plain_english_passes(text):
    assert not [*broken(text)]
