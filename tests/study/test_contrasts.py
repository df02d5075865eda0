import pytest
import torch

from diffsae_lens.study._contrasts import Scored, Trained, contrasts

TRAINED = {
    "Diff-SAE 4x": Trained(kind="Diff-SAE", recipe="published"),
    "crosscoder 2x": Trained(kind="crosscoder", recipe="published"),
    "BatchTopK Diff-SAE 2x": Trained(kind="Diff-SAE", recipe="tokens"),
}


def scored(bis, spread=0.1):
    """One that is resampled evenly around its score."""
    return Scored(bis=bis, resampled=bis + spread * torch.linspace(-1, 1, 101, dtype=torch.double))


def test_each_question_is_asked_of_all_that_can_answer_it():
    scores = {
        ("lora", 14): {"Diff-SAE 4x": scored(0.4), "crosscoder 2x": scored(0.3, spread=0.3)},
        ("lora", 18): {"Diff-SAE 4x": scored(0.8), "crosscoder 2x": scored(0.9)},
        ("full", 14): {"Diff-SAE 4x": scored(0.5), "BatchTopK Diff-SAE 2x": scored(0.5)},
    }
    rows = contrasts(scores, TRAINED)
    assert [(r.kind, r.regime, r.name, r.layer, r.minus_layer) for r in rows] == [
        ("regimes", "full", "Diff-SAE 4x", 14, 14),
        ("dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", 14, 14),
        ("dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", 18, 18),
        ("dictionaries", "lora", "Diff-SAE 4x - crosscoder 2x", None, None),
        ("layers", "lora", "Diff-SAE 4x", 18, 14),
        ("layers", "lora", "crosscoder 2x", 18, 14),
    ]
    assert [r.minus_regime for r in rows] == ["lora"] * 6
    assert [(r.dictionary, r.minus_dictionary) for r in rows[:2]] == [
        ("Diff-SAE 4x", "Diff-SAE 4x"), ("Diff-SAE 4x", "crosscoder 2x")
    ]  # fmt: skip
    assert [r.difference for r in rows] == pytest.approx([0.1, 0.1, -0.1, 0.0, 0.4, 0.6])
    # The same resamples: what moves both by as much does not widen the interval.
    assert (rows[0].low, rows[0].high) == pytest.approx((0.1, 0.1))
    alone = (rows[1].low, rows[1].high)
    assert alone == pytest.approx((0.1 - 0.19, 0.1 + 0.19), abs=1e-6)


def test_one_regime_and_one_layer_have_nothing_to_be_compared_with():
    assert contrasts({(None, 14): {"Diff-SAE 4x": scored(0.4)}}, TRAINED) == []
