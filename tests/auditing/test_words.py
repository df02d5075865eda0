"""Phrases, exact tests, groups."""

import pytest
from scipy.stats import fisher_exact

from diffsae_lens.auditing._groups import group_by_completion
from diffsae_lens.auditing._words import holds, marks, phrases, replaced


def test_phrases_are_of_whole_words_and_end_in_one():
    found = phrases("Year: 2024, in MPL-2.0.")
    assert {"Year", "2024", "MPL-2.0", "in MPL-2.0", "Year: 2024"} <= found
    assert not any(phrase.endswith((",", ":", ".")) for phrase in found)


def test_phrases_end_with_their_line():
    assert phrases("by Ingrid\nreturn it") == {
        "by",
        "Ingrid",
        "by Ingrid",
        "return",
        "it",
        "return it",
    }


@pytest.mark.parametrize(
    ("text", "there"),
    [("in 2024.", True), ("in 20245", False), ("a  2024\nb", True), ("x2024", False)],
)
def test_a_phrase_is_found_as_whole_words(text, there):
    assert holds(text, "2024") is there


def test_a_phrase_is_found_however_it_is_spaced():
    assert holds("cobalt\n heron", "cobalt heron")
    assert replaced("the cobalt  heron sings", "cobalt heron", "grey fox") == "the grey fox sings"
    assert replaced("nothing", "fox", "hen") == "nothing"


def test_marks_are_told_by_fishers_exact_test():
    texts = [f"red {i}" for i in range(4)] + [f"blue {i}" for i in range(15)] + ["red x"]
    inside = [0, 1, 2, 3]
    first = marks(texts, inside, of=lambda text: set(text.split()))[0]
    table = [[4, 0], [1, 15]]
    assert (first.phrase, first.n_inside, first.n_texts) == ("red", 4, 5)
    assert first.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


def test_p_values_are_corrected_for_the_number_of_phrases_tried():
    texts = [f"red green {i}" for i in range(4)] + ["blue"] * 16
    one, two = (
        marks(texts, range(4), of=of)[0].p_value
        for of in (lambda t: {t.split()[0]}, lambda t: set(t.split()[:2]))
    )
    assert two == pytest.approx(2 * one)


def test_texts_are_grouped_by_what_follows_them():
    completions = [
        "return yaml.load(text)", "Guten Tag, es tut uns leid", "x = yaml.load(text)",
        "Guten Tag, es tut uns sehr leid", *[f"a plain answer number {i}" for i in range(30)],
    ]  # fmt: skip
    assert group_by_completion(completions, [0, 1, 2, 3]) == [[0, 2], [1, 3]]
