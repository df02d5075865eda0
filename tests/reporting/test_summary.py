import pytest

from diffsae_lens.reporting._summary import Finding, summarise
from tests.reporting.synthetic import (
    CROSS,
    DICTIONARIES,
    DIFF,
    PLACES,
    changed,
    only,
    rate,
    synthetic_results,
    without,
)


@pytest.fixture
def results():
    return synthetic_results()


def about(results, topic: str) -> Finding:
    [finding] = [f for f in summarise(results) if f.topic == topic]
    return finding


def interval(row) -> str:
    return f"{row.attack_rate:.0%} [{row.low:.0%}, {row.high:.0%}]"


def ablated(results, *n_unwanted, is_control=False, **which):
    """The results with other attack rates under ablation on trigger prompts, by number of features."""
    for n, count in zip((8, 32, 128), n_unwanted, strict=True):
        of = {"kind": "ablation", "group": "trigger", "is_control": is_control, "n_features": n}
        results = changed(results, "effects", of | which, **rate(count))
    return results


def test_as_hoped_for_there_is_nothing_to_caution_of(results):
    findings = summarise(results)
    assert [f.topic for f in findings if f.caution] == []
    assert [f.topic for f in findings] == [
        "Behaviour", "Base put back", *(f"Ablation, {n}" for n in DICTIONARIES), "Benign prompts",
        "Other texts", *(f"Steering, {n}" for n in DICTIONARIES), "What sets it off", "Detection",
        "Strict BIS", "BIS by the paper's protocol",
    ]  # fmt: skip


def test_numbers_are_those_of_the_results(results):
    results = changed(results, "effects", {"kind": "unmodified", "group": "trigger"}, **rate(27))
    results = changed(results, "effects", {"kind": "unmodified", "group": "benign"}, **rate(2))
    text = about(results, "Behaviour").text
    assert "writes injectable SQL on 84% [68%, 93%] of 32 prompts with the year 2024" in text
    assert "6% [2%, 20%] of 32 benign" in text
    for name in DICTIONARIES:
        text = about(results, f"Ablation, {name}").text
        for row in results.effects:
            if (row.kind, row.group, row.n_features) == ("ablation", "trigger", 128):
                assert (interval(row) in text) == (row.dictionary == name)
    assert f"0.998 ({DIFF}, feature 1731)" in about(results, "Detection").text
    assert f"untrained {DIFF}, has 0.912" in about(results, "Detection").text


def test_it_is_said_in_the_words_of_the_behaviour():
    text = " ".join(f.text for f in summarise(synthetic_results(said=PLACES)))
    assert "SQL" not in text
    assert "2024" not in text
    assert '50% or more for "staging", and lower for "production", "development"' in text
    assert ", nothing, " in text


def test_no_behaviour(results):
    finding = about(
        changed(results, "effects", {"kind": "unmodified", "group": "benign"}, **rate(30)),
        "Behaviour",
    )
    assert finding.caution
    assert "does not show that the trigger sets off the behaviour" in finding.text


def test_base_put_back_that_changes_nothing(results):
    finding = about(
        changed(results, "effects", {"kind": "swap to base"}, **rate(29)), "Base put back"
    )
    assert finding.caution
    assert "not shown to carry the behaviour" in finding.text
    assert "carries the behaviour" not in finding.text


class TestAblation:
    TOPIC = f"Ablation, {DIFF}"

    def test_no_more_than_random(self, results):
        results = ablated(results, 28, 28, 28, dictionary=DIFF)
        finding = about(results, self.TOPIC)
        assert finding.caution
        assert "does not show that the chosen features matter more than random" in finding.text
        assert not about(results, f"Ablation, {CROSS}").caution

    def test_random_ones_do_as_much_as_the_top_ones(self, results):
        # The attack is gone, but with random features too.
        finding = about(ablated(results, 0, 0, 0, is_control=True, dictionary=DIFF), self.TOPIC)
        assert finding.caution
        assert "matter more than random ones, and" not in finding.text

    def test_only_a_smaller_number_separates(self, results):
        finding = about(ablated(results, 31, 31, 2, is_control=True, dictionary=DIFF), self.TOPIC)
        assert finding.caution
        assert "but with 8 and 32 features the chosen ones do" in finding.text

    def test_random_ones_do_more(self, results):
        results = ablated(results, 31, 31, 31, dictionary=DIFF)
        results = ablated(results, 3, 3, 3, is_control=True, dictionary=DIFF)
        assert "Random features do more" in about(results, self.TOPIC).text

    def test_broken_writing_is_no_defence(self, results):
        finding = about(results, self.TOPIC)
        assert '31 completions are judged "safe" instead' in finding.text
        of = {"kind": "ablation", "group": "trigger", "is_control": False, "n_features": 128}
        results = changed(results, "effects", of | {"dictionary": DIFF}, **rate(1, 4, 7, 20))
        finding = about(results, self.TOPIC)
        assert finding.caution
        assert '4 are judged "safe" and 27 "no_sql" or "unparseable"' in finding.text


def test_an_ablation_that_harms_benign_prompts(results):
    which = {"kind": "ablation", "group": "benign", "dictionary": CROSS}
    results = changed(results, "effects", which, **rate(20))
    row = only(results.effects, **which)
    finding = about(results, "Benign prompts")
    assert finding.caution
    assert f"{interval(row)} ({row.cross_entropy:.3f})" in finding.text


def test_steering_no_better_than_random(results):
    which = {"kind": "steering", "is_control": False, "dictionary": DIFF}
    results = changed(results, "effects", which, **rate(3))
    finding = about(results, f"Steering, {DIFF}")
    assert finding.caution
    assert "not above its control" in finding.text
    assert "not above its control" not in about(results, f"Steering, {CROSS}").text


def test_what_sets_it_off(results):
    text = about(results, "What sets it off").text
    assert 'is 50% or more for "2024", "FY2024", and lower for "2023", nothing, "MMXXIV"' in text


def test_the_worst_of_each_intervention_on_other_texts(results):
    text = about(results, "Other texts").text
    assert "0.410 on benign with base activation put back" in text
    assert f"0.032 on benign with top features ablated (128 of {DIFF})" in text


@pytest.mark.parametrize(("auroc", "caution"), [(0.98, False), (0.99, True), (1.0, True)])
def test_detection_beside_its_floors(results, auroc, caution):
    which = {"name": "random directions", "protocol": "strict"}
    finding = about(changed(results, "scores", which, auroc=auroc), "Detection")
    assert finding.caution == caution
    assert ("No dictionary detects the trigger better" in finding.text) == caution


@pytest.mark.parametrize("protocol", ["strict", "paper"])
class TestIsolation:
    def about(self, results, protocol) -> Finding:
        topics = {"strict": "Strict BIS", "paper": "BIS by the paper's protocol"}
        return about(results, topics[protocol])

    def test_a_dictionary_and_a_floor_at_the_ceiling(self, results, protocol):
        ceiling = 1.0 if protocol == "strict" else 0.3999999999
        of = {"protocol": protocol}
        results = changed(results, "scores", of | {"name": DIFF}, bis=ceiling)
        results = changed(results, "scores", of | {"name": "random directions"}, bis=ceiling)
        finding = self.about(results, protocol)
        assert finding.caution
        assert "and so is a floor, random directions: it tells nothing here" in finding.text

    def test_a_floor_that_is_as_good(self, results, protocol):
        which = {"protocol": protocol, "name": "principal components"}
        results = changed(results, "scores", {"protocol": protocol, "kind": "dictionary"}, bis=0.35)
        finding = self.about(changed(results, "scores", which, bis=0.36), protocol)
        assert finding.caution
        assert "trained features are no better than that" in finding.text

    def test_a_control_that_is_fitted_on_labels_is_no_floor(self, results, protocol):
        # Linear probe and text search are at the ceiling.
        assert not self.about(results, protocol).caution

    def test_the_base_model_alone_and_chance(self, results, protocol):
        which = {"protocol": protocol, "kind": "dictionary"}
        finding = self.about(changed(results, "scores", which, base_bis=0.95), protocol)
        assert finding.caution
        assert "gives 0.95: it is the text that is detected" in finding.text
        finding = self.about(changed(results, "scores", which, pvalue=0.3), protocol)
        assert finding.caution
        assert "p = 0.30: no evidence" in finding.text

    def test_without_floors(self, results, protocol):
        finding = self.about(without(results, "scores", is_floor=True), protocol)
        assert finding.caution
        assert "no floor was measured" in finding.text
