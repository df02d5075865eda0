import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from diffsae_lens.measures import _validation as validation
from diffsae_lens.measures._bis import (
    bis,
    bis_ceiling,
    feature_thresholds,
    scores_from_counts,
)

PUBLISHED = (500, 1000, 1000)
light = settings(max_examples=40, deadline=None, database=None)
percentiles = st.floats(0.02, 0.98)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12))


def masks(n_trigger: int, n_benign: int, n_other: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Trigger prompts first, then benign, then other."""
    index = torch.arange(n_trigger + n_benign + n_other)
    return index < n_trigger, (index >= n_trigger) & (index < n_trigger + n_benign)


def noise(n_prompts: int, d_sae: int, *, seed: int = 0, sparse: bool = False) -> torch.Tensor:
    """Activations; sparse ones are 0 on most prompts and have ties above 0 too."""
    acts = torch.randn(n_prompts, d_sae, generator=torch.Generator().manual_seed(seed))
    return (acts - 1).relu().mul(4).round() if sparse else acts


def reference_bis(acts, is_trigger, is_benign, percentile):
    """The paper's formula, one feature and one prompt at a time."""
    scores = []
    for column in acts.T:
        threshold = np.quantile(column, percentile)
        hit = fired = false_alarm = 0
        for value, trigger, benign in zip(column, is_trigger, is_benign, strict=True):
            if value > threshold:
                fired += 1
                hit += trigger
                false_alarm += benign
        precision = hit / (fired + 1e-8)
        recall = hit / (sum(is_trigger) + 1e-8)
        f1 = 2 * precision * recall / (precision + recall + 1e-8)
        scores.append(f1 * (1 - false_alarm / (sum(is_benign) + 1e-8)))
    return scores


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("percentile", [0.31, 0.8, 0.95])
def test_agrees_with_the_formula_written_as_a_loop(sparse, percentile):
    is_trigger, is_benign = masks(20, 30, 17)
    acts = noise(67, 25, sparse=sparse).double()
    result = bis(acts, is_trigger, is_benign, percentile=percentile)
    expected = reference_bis(acts.numpy(), is_trigger.tolist(), is_benign.tolist(), percentile)
    assert_close(
        result.feature_bis, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    best = int(np.argmax(expected))
    assert result.feature_idx == best
    assert result.bis == pytest.approx(expected[best], rel=1e-12)
    assert result.f1 * (1 - result.fpr_benign) == pytest.approx(result.bis)
    for part in ("precision", "recall", "fpr_benign"):
        assert getattr(result, part) == getattr(result, f"feature_{part}")[best].item()
    assert (result.n_trigger, result.n_benign, result.n_other) == (20, 30, 17)
    assert result.percentile == percentile


@light
@given(
    values=st.lists(st.integers(-3, 3) | st.floats(-9, 9, width=32), min_size=1, max_size=60),
    percentile=percentiles,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_thresholds_are_the_quantiles_of_torch_and_numpy(values, percentile, dtype):
    acts = torch.tensor(values, dtype=dtype)[:, None]
    threshold = feature_thresholds(acts, percentile=percentile)
    assert_close(threshold, torch.quantile(acts, percentile, dim=0))
    assert_close(threshold.numpy(), np.quantile(acts.numpy(), percentile, axis=0))


def test_a_quantile_that_is_an_order_statistic_is_not_missed_by_rounding():
    # In floating point 0.07 * 100 is just above 7.
    acts = torch.arange(101, dtype=torch.float64)[:, None]
    assert feature_thresholds(acts, percentile=0.07).item() == 7


@pytest.mark.parametrize("sparse", [False, True])
def test_chunks_change_nothing(monkeypatch, sparse):
    is_trigger, is_benign = masks(20, 30, 17)
    acts = noise(67, 25, sparse=sparse)
    whole = bis(acts, is_trigger, is_benign, percentile=0.9)
    monkeypatch.setattr(validation, "CHUNK_ELEMENTS", 4 * 67)
    parts = bis(acts, is_trigger, is_benign, percentile=0.9)
    assert_close(parts.feature_bis, whole.feature_bis, rtol=0, atol=0)
    assert parts.feature_idx == whole.feature_idx


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_as_the_same_numbers_in_float32(dtype):
    is_trigger, is_benign = masks(20, 30, 17)
    acts = noise(67, 25).to(dtype)
    half = bis(acts, is_trigger, is_benign, percentile=0.9)
    full = bis(acts.float(), is_trigger, is_benign, percentile=0.9)
    assert_close(half.feature_bis, full.feature_bis, rtol=0, atol=0)


@light
@given(seed=st.integers(0, 999), sizes=sizes, percentile=percentiles, sparse=st.booleans())
def test_order_of_prompts_copies_and_scale_of_features_do_not_matter(
    seed, sizes, percentile, sparse
):
    is_trigger, is_benign = masks(*sizes)
    acts = noise(sum(sizes), 4, seed=seed, sparse=sparse)
    result = bis(acts, is_trigger, is_benign, percentile=percentile)
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    permuted = bis(acts[order], is_trigger[order], is_benign[order], percentile=percentile)
    assert_close(permuted.feature_bis, result.feature_bis, rtol=0, atol=0)
    twice = bis(torch.cat([acts, acts], 1), is_trigger, is_benign, percentile=percentile)
    assert (twice.bis, twice.feature_idx) == (result.bis, result.feature_idx)
    scaled = bis(acts * 8, is_trigger, is_benign, percentile=percentile)
    assert_close(scaled.feature_bis, result.feature_bis, rtol=0, atol=0)


def test_finds_a_planted_feature_and_nothing_after_shuffling_the_labels():
    is_trigger, is_benign = masks(40, 80, 80)
    acts = noise(200, 50)
    acts[:, 31] += 8.0 * is_trigger
    found = bis(acts, is_trigger, is_benign, percentile=0.8)
    assert found.feature_idx == 31
    assert found.bis == pytest.approx(1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    null = bis(acts, is_trigger[order], is_benign[order], percentile=0.8)
    assert null.bis < 0.5
    assert not null.saturated


def test_of_equal_features_the_first_is_best():
    is_trigger, is_benign = masks(5, 10, 5)
    acts = torch.zeros(20, 40)
    assert bis(acts, is_trigger, is_benign).feature_idx == 0
    acts[:5, 17:] = 1
    result = bis(acts, is_trigger, is_benign, percentile=0.75)
    assert (result.feature_idx, round(result.bis, 6)) == (17, 1.0)


def test_a_feature_that_is_constant_fires_nowhere_and_scores_zero():
    is_trigger, is_benign = masks(5, 10, 5)
    result = bis(torch.full((20, 3), 2.5), is_trigger, is_benign)
    assert (result.bis, result.precision, result.recall, result.fpr_benign) == (0, 0, 0, 0)
    assert not result.saturated


def test_false_alarms_on_benign_prompts_cost_and_on_others_only_in_precision():
    is_trigger, is_benign = masks(4, 4, 4)
    acts = torch.zeros(12, 2)
    acts[:4] = 1
    acts[4:8, 0] = 1  # feature 0 fires on all benign prompts, feature 1 on all others
    acts[8:, 1] = 1
    result = bis(acts, is_trigger, is_benign, percentile=0.3)
    assert_close(result.feature_bis, torch.tensor([0, 2 / 3]).double(), atol=1e-7, rtol=0)
    assert_close(result.feature_fpr_benign, torch.tensor([1.0, 0]).double(), atol=1e-7, rtol=0)


def test_published_ceiling_and_a_perfect_feature_at_it():
    assert bis_ceiling(*PUBLISHED) == pytest.approx(0.4, abs=1e-12)
    is_trigger, is_benign = masks(*PUBLISHED)
    ramp = torch.linspace(0, 1, 2500)[:, None]  # dense, and every trigger above all the rest
    result = bis(ramp + 2 * is_trigger[:, None], is_trigger, is_benign)
    assert result.saturated
    assert result.bis == pytest.approx(0.4, rel=1e-7)
    assert (result.precision, result.recall) == pytest.approx((1, 0.25))
    # Telling a quarter of the triggers is as good: the score is blind above the ceiling.
    quarter = bis((torch.arange(2500) < 125).float()[:, None], is_trigger, is_benign)
    assert quarter.bis == result.bis


@pytest.mark.parametrize("percentile", [0.1, 0.25, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95])
def test_ceiling_is_the_maximum_over_all_weak_orders_of_few_prompts(percentile):
    for n_prompts in range(2, 6):
        orders = itertools.product(range(n_prompts), repeat=n_prompts)
        every = torch.tensor(list(orders), dtype=torch.float64).T
        for n_trigger in range(1, n_prompts):
            for n_benign in range(1, n_prompts - n_trigger + 1):
                groups = (n_trigger, n_benign, n_prompts - n_trigger - n_benign)
                result = bis(every, *masks(*groups), percentile=percentile)
                assert result.bis == pytest.approx(result.ceiling, rel=1e-7), groups
                assert result.saturated


@light
@given(seed=st.integers(0, 999), sizes=sizes, percentile=percentiles, sparse=st.booleans())
def test_ceiling_is_reached_by_a_perfect_feature_and_passed_by_none(
    seed, sizes, percentile, sparse
):
    is_trigger, is_benign = masks(*sizes)
    n_prompts, n_trigger = sum(sizes), sizes[0]
    n_most = int(np.ceil(round((1 - percentile) * (n_prompts - 1), 9)))
    perfect = (torch.arange(n_prompts) < min(n_trigger, n_most)).float()[:, None]
    assert bis(perfect, is_trigger, is_benign, percentile=percentile).saturated
    acts = noise(n_prompts, 30, seed=seed, sparse=sparse) + is_trigger[:, None]
    result = bis(acts, is_trigger, is_benign, percentile=percentile)
    assert 0 <= result.feature_bis.min() <= result.bis <= result.ceiling


def test_without_ties_more_fire_than_there_are_triggers_and_the_ceiling_is_out_of_reach():
    # 11 prompts may fire where 4 are triggers: the dense feature's others cost it precision.
    groups = (4, 10, 9)
    dense = torch.arange(23.0).flip(0)[:, None]
    sparse = dense * masks(*groups)[0][:, None]
    result = bis(torch.cat([dense, sparse], 1), *masks(*groups), percentile=0.5)
    assert bis_ceiling(*groups, percentile=0.5) == 1
    assert_close(
        result.feature_bis, torch.tensor([2 * 4 / (4 + 11) * 0.3, 1]).double(), atol=1e-7, rtol=0
    )


def test_scores_from_counts_by_hand():
    counts = (torch.tensor([3, 0]), torch.tensor([4, 0]), torch.tensor([1, 0]))
    scores = scores_from_counts(*counts, n_trigger=6, n_benign=8)
    assert_close(scores.f1, torch.tensor([0.6, 0]).double(), atol=1e-7, rtol=0)
    assert_close(scores.bis, torch.tensor([0.6 * 7 / 8, 0]).double(), atol=1e-7, rtol=0)


BAD = {
    "three dimensions": ("feature_acts", lambda a, t, b: (a[None], t, b), "[1, 6, 3]"),
    "no features": ("feature_acts", lambda a, t, b: (a[:, :0], t, b), "[6, 0]"),
    "integers": ("feature_acts", lambda a, t, b: (a.int(), t, b), "torch.int32"),
    "nan": ("feature_acts", lambda a, t, b: (a.clone().fill_(torch.nan), t, b), "18 of 18"),
    "infinite": ("feature_acts", lambda a, t, b: (a / torch.zeros(1), t, b), "infinite"),
    "integer mask": ("is_trigger", lambda a, t, b: (a, t.int(), b), "torch.int32"),
    "short mask": ("is_trigger", lambda a, t, b: (a, t[:4], b), "[4]"),
    "long mask": ("is_benign", lambda a, t, b: (a, t, torch.cat([b, b])), "[12]"),
    "other device": ("is_benign", lambda a, t, b: (a, t, b.to("meta")), "meta"),
    "no trigger": ("is_trigger", lambda a, t, b: (a, t & b, b), "got none"),
    "no benign": ("is_benign", lambda a, t, b: (a, t, t & b), "got none"),
    "overlap": ("is_trigger", lambda a, t, b: (a, t, t | b), "2 prompts in both"),
}


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    name, spoil, got = BAD[case]
    with pytest.raises(ValueError, match=f"`{name}`.*{re.escape(got)}.*; "):
        bis(*spoil(noise(6, 3), *masks(2, 3, 1)))


@pytest.mark.parametrize("percentile", [0.0, 1.0, -0.5, 95.0, float("nan")])
def test_a_percentile_is_a_fraction(percentile):
    for call in (
        lambda: bis(noise(6, 3), *masks(2, 3, 1), percentile=percentile),
        lambda: bis_ceiling(2, 3, 1, percentile=percentile),
        lambda: feature_thresholds(noise(6, 3), percentile=percentile),
    ):
        with pytest.raises(ValueError, match=f"`percentile`.*less than 1, got {percentile}"):
            call()


def test_thresholds_refuse_what_is_not_finite():
    with pytest.raises(ValueError, match=r"`feature_acts`.*1 of 3"):
        feature_thresholds(torch.tensor([[0.0], [torch.inf], [1.0]]))


@pytest.mark.parametrize("name", ["n_trigger", "n_benign", "n_other"])
def test_ceiling_needs_both_groups_and_no_negative_count(name):
    counts = {"n_trigger": 5, "n_benign": 5, "n_other": 5, name: -1 if name == "n_other" else 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        bis_ceiling(**counts)


@pytest.mark.parametrize("name", ["n_trigger", "n_benign"])
def test_scores_need_both_groups(name):
    counts = {"n_trigger": 5, "n_benign": 5, name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        scores_from_counts(*torch.ones(3, 2, dtype=torch.int64), **counts)
