"""Weighted counting against the published procedure written out; intervals and p-values as such."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsae_lens.measures._bis import bis
from diffsae_lens.measures._resampling import (
    Resampling,
    bootstrap_bis,
    paired_bootstrap_bis,
    permutation_test_bis,
)
from diffsae_lens.measures._weighted import weighted_bis


def draws(n_resamples, seed=0, clusters=None):
    return Resampling(n_resamples=n_resamples, seed=seed, clusters=clusters)


def groups(n_trigger, n_benign, n_other):
    names = torch.tensor([0] * n_trigger + [1] * n_benign + [2] * n_other)
    return names == 0, names == 1


def published(acts, trigger, benign, percentile):
    """`compute_bis` of the paper's code, in float64: torch.quantile, >, and the formula."""
    fires = acts > torch.quantile(acts, percentile, dim=0)
    if not trigger.any() or not benign.any():
        return 0.0
    tp = (fires & trigger[:, None]).sum(0).double()
    fp = (fires & benign[:, None]).sum(0).double()
    precision, recall = tp / (fires.sum(0) + 1e-8), tp / (trigger.sum() + 1e-8)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    return (f1 * (1 - fp / (benign.sum() + 1e-8))).max().item()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sparsity=st.sampled_from([0.0, 0.5, 0.97]),
    levels=st.sampled_from([3, 1000]),
    percentile=st.sampled_from([0.5, 0.9, 0.95]),
)
def test_weighted_counting_is_the_published_procedure_on_repeated_prompts(
    seed, sparsity, levels, percentile
):
    generator = torch.Generator().manual_seed(seed)
    trigger, benign = groups(12, 20, 21)
    acts = torch.randint(1, levels + 1, (53, 9), generator=generator).double()
    acts *= torch.rand(53, 9, generator=generator) >= sparsity
    weights = torch.randint(0, 4, (6, 53), generator=generator)
    found = weighted_bis(acts, trigger, benign, weights, percentile=percentile)
    for w, score in zip(weights, found, strict=True):
        rows = torch.arange(53).repeat_interleave(w)
        expected = published(acts[rows], trigger[rows], benign[rows], percentile)
        assert score.item() == pytest.approx(expected, abs=1e-9)


def test_weights_that_pile_up_far_down_are_counted_too():
    acts = torch.arange(400.0)[:, None]
    trigger, benign = groups(100, 150, 150)
    weights = torch.zeros(2, 400, dtype=torch.long)
    weights[:, :200] = torch.tensor([[1], [3]])  # nothing of the top half
    for w, score in zip(weights, weighted_bis(acts, trigger, benign, weights), strict=True):
        rows = torch.arange(400).repeat_interleave(w)
        expected = published(acts[rows].double(), trigger[rows], benign[rows], 0.95)
        assert score.item() == pytest.approx(expected, abs=1e-9)


def planted(strength, seed=0, d_sae=50, n=(20, 40, 40)):
    trigger, benign = groups(*n)
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(sum(n), d_sae, generator=generator)
    acts[trigger, 7] += strength
    return acts, trigger, benign


def test_the_published_bootstrap_is_reproduced_draw_by_draw():
    acts, trigger, benign = planted(1.5)
    result = bootstrap_bis(acts, trigger, benign, reselect=False, resampling=draws(50, 3))
    best = bis(acts, trigger, benign).feature_idx
    drawn = np.random.default_rng(3).multinomial(100, np.full(100, 0.01), size=50)
    for w, score in zip(drawn, result.distribution, strict=True):
        rows = torch.arange(100).repeat_interleave(torch.from_numpy(w))
        feature = acts[rows][:, best : best + 1].double()
        assert score.item() == pytest.approx(published(feature, trigger[rows], benign[rows], 0.95))
    assert result.low <= result.distribution.median() <= result.high
    assert result.estimate == bis(acts, trigger, benign).bis


def test_choosing_again_costs_and_never_scores_lower():
    acts, trigger, benign = planted(1.0)
    fixed = bootstrap_bis(acts, trigger, benign, reselect=False, resampling=draws(200))
    again = bootstrap_bis(acts, trigger, benign, resampling=draws(200))
    assert (again.distribution >= fixed.distribution - 1e-12).all()
    assert again.distribution.mean() > fixed.distribution.mean()


def test_clusters_are_drawn_whole():
    acts, trigger, benign = planted(1.5)
    clusters = torch.arange(100) // 10
    result = bootstrap_bis(acts, trigger, benign, resampling=draws(300, clusters=clusters))
    assert result.low < result.high
    # Copies of one prompt are one piece of evidence: the interval must not narrow.
    copied = [t.repeat_interleave(5, 0) for t in (acts, trigger, benign)]
    alone = bootstrap_bis(*copied, resampling=draws(300))
    whole = bootstrap_bis(*copied, resampling=draws(300, clusters=torch.arange(500) // 5))
    assert whole.standard_error > 1.5 * alone.standard_error


def test_a_dictionary_beside_itself_differs_by_nothing_and_beside_noise_by_something():
    acts, trigger, benign = planted(4.0)
    same = paired_bootstrap_bis(acts, acts, trigger, benign, resampling=draws(50))
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    noise, *_ = planted(0.0, seed=5)
    better = paired_bootstrap_bis(
        acts, noise, trigger, benign, percentile=0.8, resampling=draws(200)
    )
    assert better.low > 0


def test_the_permutation_distribution_is_that_of_relabelling():
    acts, trigger, benign = planted(0.5, d_sae=8)
    result = permutation_test_bis(acts, trigger, benign, resampling=draws(400))
    rng = np.random.default_rng(1)
    by_hand = []
    for _ in range(400):
        order = torch.from_numpy(rng.permutation(100))
        by_hand.append(bis(acts, trigger[order], benign[order]).bis)
    mine, theirs = result.null_distribution.numpy(), np.array(by_hand)
    assert abs(mine.mean() - theirs.mean()) < 0.02
    assert abs(np.quantile(mine, 0.95) - np.quantile(theirs, 0.95)) < 0.04


def test_p_values_are_uniform_under_the_null_and_small_for_a_planted_feature():
    null = [
        permutation_test_bis(*planted(0.0, seed=s), percentile=0.8, resampling=draws(99, s)).pvalue
        for s in range(100)
    ]
    assert np.mean(np.array(null) <= 0.05) <= 0.12
    assert 0.4 < np.mean(null) < 0.65  # ties make it conservative
    planted_p = [
        permutation_test_bis(*planted(4.0, seed=s), percentile=0.8, resampling=draws(199, s)).pvalue
        for s in range(5)
    ]
    assert max(planted_p) <= 0.01


def test_labels_move_within_clusters_only():
    acts, trigger, benign = planted(3.0)
    clusters = torch.arange(100)  # nothing may move
    result = permutation_test_bis(acts, trigger, benign, resampling=draws(20, clusters=clusters))
    assert result.pvalue == 1
    assert result.null_distribution.tolist() == pytest.approx([result.statistic] * 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resampling": {"n_resamples": 0}}, "n_resamples"),
        ({"resampling": {"confidence_level": 1.0}}, "confidence_level"),
        (
            {"resampling": {"clusters": torch.zeros(3, dtype=torch.long)}},
            "one entry for each of the 100",
        ),
        ({"percentile": 1.0}, "percentile"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        if "resampling" in options:
            options = {"resampling": Resampling(**options["resampling"])}
        bootstrap_bis(*planted(1.0), **options)


def test_features_that_are_the_same_on_all_prompts_score_nothing():
    feature_acts, is_trigger = torch.ones(12, 3), torch.arange(12) < 4
    resampling = Resampling(n_resamples=20, seed=0)
    found = bootstrap_bis(feature_acts, is_trigger, ~is_trigger, resampling=resampling)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    test = permutation_test_bis(feature_acts, is_trigger, ~is_trigger, resampling=resampling)
    assert test.pvalue == 1
