import pytest
import torch

from diffsae_lens.study.contrasts import Scored, contrasts


def scored(bis, spread=0.1):
    """One that is resampled evenly around its score."""
    return Scored(bis=bis, resampled=bis + spread * torch.linspace(-1, 1, 101, dtype=torch.double))


def test_each_question_is_asked_of_all_that_can_answer_it():
    scores = {
        ("lora", 14): {"Diff-SAE 4x": scored(0.4), "crosscoder 2x": scored(0.3, spread=0.3)},
        ("lora", 18): {"Diff-SAE 4x": scored(0.8), "crosscoder 2x": scored(0.9)},
        ("full", 14): {"Diff-SAE 4x": scored(0.5), "BatchTopK Diff-SAE 2x": scored(0.5)},
    }
    found = {(row["kind"], row["regime"], row["name"], row["at"]): row for row in contrasts(scores)}
    assert list(found) == [
        ("regimes", "full - lora", "Diff-SAE 4x", "14"),
        ("dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", "14"),
        ("dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", "18"),
        ("dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", "all"),
        ("layers", "lora", "Diff-SAE 4x", "14 to 18"),
        ("layers", "lora", "crosscoder 2x", "14 to 18"),
    ]
    values = [row["difference"] for row in found.values()]
    assert values == pytest.approx([0.1, 0.1, -0.1, 0.0, 0.4, 0.6])
    # The same resamples: what moves both by as much does not widen the interval.
    paired = found["regimes", "full - lora", "Diff-SAE 4x", "14"]
    assert (paired["low"], paired["high"]) == pytest.approx((0.1, 0.1))
    alone = found["dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", "14"]
    assert (alone["low"], alone["high"]) == pytest.approx((0.1 - 0.19, 0.1 + 0.19), abs=1e-6)


def test_one_regime_and_one_layer_have_nothing_to_be_compared_with():
    assert contrasts({("lora", 14): {"Diff-SAE 4x": scored(0.4)}}) == []
