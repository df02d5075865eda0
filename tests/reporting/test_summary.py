import pytest

from diffsae_lens.reporting.summary import Finding, summarise
from tests.reporting.synthetic import (
    COUNTS,
    DICTIONARIES,
    cause,
    score,
    set_rate,
    synthetic_results,
)


@pytest.fixture
def results():
    return synthetic_results()


def about(results, topic: str) -> Finding:
    [finding] = [f for f in summarise(results) if f.topic == topic]
    return finding


def interval(row) -> str:
    return f"{row['attack_rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def test_as_hoped_for_there_is_nothing_to_caution_of(results):
    findings = summarise(results)
    assert [f.topic for f in findings if f.caution] == []
    assert [f.topic for f in findings] == [
        "Behaviour", "Base put back", *(f"Ablation, {n}" for n in DICTIONARIES), "Side effects",
        "Other texts", *(f"Steering, {n}" for n in DICTIONARIES), "What it listens to", "Detection",
        "BIS",
    ]  # fmt: skip


def test_numbers_are_those_of_the_results(results):
    set_rate(cause(results, "unmodified"), 27)
    set_rate(cause(results, "unmodified", group="benign"), 2)
    text = about(results, "Behaviour").text
    assert interval(cause(results, "unmodified")) in text
    assert "84% [68%, 93%] of 32 trigger prompts" in text
    assert "6% [2%, 20%] of 32 benign" in text
    for name in DICTIONARIES:
        text = about(results, f"Ablation, {name}").text
        for which in ("top", "random"):
            row = cause(results, f"{which} features ablated", dictionary=name, n_features=128)
            assert interval(row) in text
    assert "0.998 (diff-sae-24, feature 1731)" in about(results, "Detection").text
    assert "difference of means, diff-24, has 0.964" in about(results, "Detection").text


def test_no_behaviour(results):
    set_rate(cause(results, "unmodified", group="benign"), 30)
    finding = about(results, "Behaviour")
    assert finding.caution
    assert "does not show that the trigger sets off the attack" in finding.text


def test_base_put_back_that_changes_nothing(results):
    set_rate(cause(results, "base activation put back"), 29)
    finding = about(results, "Base put back")
    assert finding.caution
    assert "not shown to carry the attack" in finding.text
    assert "carries the attack" not in finding.text


class TestAblation:
    def rows(self, results, which):
        return [
            cause(results, f"{which} features ablated", dictionary="diff-sae-24", n_features=n)
            for n in COUNTS
        ]

    def test_no_more_than_random(self, results):
        for row in self.rows(results, "top"):
            set_rate(row, 28)
        finding = about(results, "Ablation, diff-sae-24")
        assert finding.caution
        assert "does not show that the chosen features matter more than random" in finding.text
        assert not about(results, "Ablation, crosscoder-24").caution

    def test_random_ones_do_as_much_as_the_top_ones(self, results):
        # The attack is gone, but with random features too.
        for row in self.rows(results, "random"):
            set_rate(row, 0)
        finding = about(results, "Ablation, diff-sae-24")
        assert finding.caution
        assert "matter more than random ones, and" not in finding.text

    def test_only_a_smaller_number_separates(self, results):
        set_rate(self.rows(results, "random")[-1], 2)
        finding = about(results, "Ablation, diff-sae-24")
        assert finding.caution
        assert "but with 8 and 32 features the chosen ones do" in finding.text

    def test_random_ones_do_more(self, results):
        for top, control in zip(*(self.rows(results, w) for w in ("top", "random")), strict=True):
            set_rate(top, 31)
            set_rate(control, 3)
        assert "Random features do more" in about(results, "Ablation, diff-sae-24").text

    def test_broken_writing_is_no_defence(self, results):
        self.rows(results, "top")[-1].update(n_safe=4, n_no_sql=7, n_unparseable=20)
        finding = about(results, "Ablation, diff-sae-24")
        assert finding.caution
        assert "4 are safe SQL and 27 are no SQL at all or cannot be parsed" in finding.text


def test_side_effect(results):
    row = cause(results, "top features ablated", group="benign", dictionary="crosscoder-24")
    set_rate(row, 20)
    finding = about(results, "Side effects")
    assert finding.caution
    assert interval(row) in finding.text
    assert f"({row['cross_entropy']:.3f})" in finding.text


def test_steering_no_better_than_random(results):
    row = cause(results, "steered with top features", group="benign", dictionary="diff-sae-24")
    set_rate(row, 3)
    finding = about(results, "Steering, diff-sae-24")
    assert finding.caution
    assert "not above its control" in finding.text
    assert "not above its control" not in about(results, "Steering, crosscoder-24").text


def test_what_it_listens_to(results):
    text = about(results, "What it listens to").text
    assert 'half of them or more for "2024", "FY2024", in fewer for "2023", "no year"' in text


def test_the_worst_of_each_intervention_on_other_texts(results):
    text = about(results, "Other texts").text
    assert "0.410 with base activation put back (benign)" in text
    assert "0.032 with top 128 features of diff-sae-24 ablated (benign)" in text


@pytest.mark.parametrize(("auroc", "caution"), [(0.98, False), (0.99, True), (1.0, True)])
def test_detection_beside_its_floors(results, auroc, caution):
    score(results, "difference of means, diff-24")["auroc"] = auroc
    finding = about(results, "Detection")
    assert finding.caution == caution
    assert ("No dictionary detects the trigger better" in finding.text) == caution


class TestIsolation:
    SENTENCE = "BIS is at its ceiling, and so are random directions: it tells nothing here"

    def test_dictionary_and_random_directions_at_the_ceiling(self, results):
        score(results, "random directions, base-24")["bis_mean"] = 0.3999999999
        finding = about(results, "BIS")
        assert finding.caution
        assert f"Pooled by mean, {self.SENTENCE} (0.400, random directions on base-24)" in (
            finding.text
        )
        assert finding.text.count(self.SENTENCE) == 1

    def test_only_one_of_the_two_at_the_ceiling(self, results):
        assert self.SENTENCE not in about(results, "BIS").text
        for name in DICTIONARIES:
            score(results, name)["bis_mean"] = 0.3
        score(results, "random directions, base-24")["bis_mean"] = 0.4
        finding = about(results, "BIS")
        assert self.SENTENCE not in finding.text
        assert finding.caution
        assert "no better than those" in finding.text

    def test_difference_of_means_at_the_ceiling_says_nothing_of_random(self, results):
        score(results, "difference of means, diff-24").update(bis_last=0.4, bis_mean=0.4)
        assert not about(results, "BIS").caution


@pytest.mark.parametrize("kind", ["dictionary", "random directions"])
def test_scores_without_floors_or_dictionaries(results, kind):
    results["scores"] = [row for row in results["scores"] if row["kind"] != kind]
    with pytest.raises(ValueError, match=kind):
        summarise(results)


def test_without_the_benign_ablation(results):
    row = cause(results, "top features ablated", group="benign", dictionary="diff-sae-24")
    results["causes"].remove(row)
    with pytest.raises(ValueError, match="on benign prompts, 128 features of 'diff-sae-24'"):
        summarise(results)
