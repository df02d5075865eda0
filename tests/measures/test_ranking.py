import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch.testing import assert_close

from diffsae_lens.measures import _validation as validation
from diffsae_lens.measures._ranking import auroc, average_precision, recall_at_fpr

MEASURES = [auroc, average_precision, recall_at_fpr]
light = settings(max_examples=40, deadline=None, database=None)


def masks(n_positive, n_negative, n_other=0):
    index = torch.arange(n_positive + n_negative + n_other)
    return index < n_positive, (index >= n_positive) & (index < n_positive + n_negative)


def noise(n_prompts, d_sae, *, seed=0, sparse=False):
    acts = torch.randn(n_prompts, d_sae, generator=torch.Generator().manual_seed(seed))
    return (acts - 1).relu().mul(4).round() if sparse else acts


def sklearn_recall(labels, scores, max_fpr):
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return tpr[fpr <= max_fpr + 1e-12].max()


def reference(measure, acts, is_positive, is_negative):
    """The measure by scikit-learn, one feature at a time, without the prompts of no group."""
    named = is_positive | is_negative
    one = {auroc: roc_auc_score, average_precision: average_precision_score}.get(
        measure, lambda labels, scores: sklearn_recall(labels, scores, 0.01)
    )
    columns = acts[named].T.numpy()
    return torch.tensor(np.array([one(is_positive[named].numpy(), column) for column in columns]))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 0), (30, 50, 20), (7, 230, 0)])
def test_agrees_with_scikit_learn(measure, sparse, sizes):
    groups = masks(*sizes)
    acts = noise(sum(sizes), 20, sparse=sparse) + 0.5 * groups[0][:, None]
    assert_close(measure(acts, *groups), reference(measure, acts, *groups), rtol=0, atol=1e-12)


@light
@given(
    seed=st.integers(0, 999),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5)),
    sparse=st.booleans(),
)
def test_agrees_with_scikit_learn_on_few_prompts(seed, sizes, sparse):
    groups = masks(*sizes)
    acts = noise(sum(sizes), 2, seed=seed, sparse=sparse)
    for measure in MEASURES:
        assert_close(measure(acts, *groups), reference(measure, acts, *groups), rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_fpr", [0.0, 0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("sparse", [False, True])
def test_recall_at_other_rates_agrees_with_scikit_learn(max_fpr, sparse):
    is_positive, is_negative = masks(40, 100)
    acts = noise(140, 20, sparse=sparse) + 0.5 * is_positive[:, None]
    expected = [sklearn_recall(is_positive.numpy(), c, max_fpr) for c in acts.T.numpy()]
    got = recall_at_fpr(acts, is_positive, is_negative, max_fpr=max_fpr)
    assert_close(got, torch.tensor(np.array(expected)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_chunks_order_of_prompts_and_other_prompts_change_nothing(measure, monkeypatch):
    groups = masks(30, 50, 20)
    acts = noise(100, 11, sparse=True)
    expected = measure(acts, *groups)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert_close(measure(acts[order], *(g[order] for g in groups)), expected)
    moved = acts.clone()
    moved[80:] = 99
    assert_close(measure(moved, *groups), expected, rtol=0, atol=0)
    monkeypatch.setattr(validation, "CHUNK_ELEMENTS", 250)
    assert_close(measure(acts, *groups), expected, rtol=0, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("transform", [torch.exp, torch.atan, lambda a: 3 * a - 5])
def test_increasing_transforms_of_a_feature_change_nothing(measure, transform):
    groups = masks(30, 50)
    acts = noise(80, 11, sparse=True).double()
    assert_close(measure(transform(acts), *groups), measure(acts, *groups), rtol=0, atol=0)


def test_auroc_of_the_negated_feature_and_of_swapped_groups_is_the_complement():
    is_positive, is_negative = masks(30, 50)
    acts = noise(80, 11, sparse=True)
    area = auroc(acts, is_positive, is_negative)
    assert_close(auroc(-acts, is_positive, is_negative), 1 - area)
    assert_close(auroc(acts, is_negative, is_positive), 1 - area)


@pytest.mark.parametrize("measure", MEASURES)
def test_finds_a_planted_feature_and_nothing_after_shuffling_the_labels(measure):
    groups = masks(60, 200)
    acts = noise(260, 30)
    acts[:, 17] += 9.0 * groups[0]
    scores = measure(acts, *groups)
    assert scores.argmax() == 17
    assert scores[17] == 1
    order = torch.randperm(260, generator=torch.Generator().manual_seed(1))
    chance = {auroc: 0.5, average_precision: 60 / 260, recall_at_fpr: 0.01}[measure]
    null = measure(acts, *(g[order] for g in groups))
    assert null.mean() == pytest.approx(chance, abs=0.04)
    assert null.max() < chance + 0.2


def test_a_constant_feature_is_chance():
    groups = masks(30, 90)
    acts = torch.full((120, 2), 3.0)
    assert auroc(acts, *groups).tolist() == [0.5, 0.5]
    assert average_precision(acts, *groups).tolist() == [0.25, 0.25]
    assert recall_at_fpr(acts, *groups, max_fpr=0.5).tolist() == [0, 0]


@pytest.mark.parametrize("measure", MEASURES)
def test_half_precision_and_positive_and_negative_zero(measure):
    groups = masks(30, 50)
    acts = noise(80, 11, sparse=True)
    assert_close(measure(acts.bfloat16(), *groups), measure(acts, *groups), rtol=0, atol=0)
    signs = torch.where(torch.arange(80) % 2 == 0, 1.0, -1.0)[:, None]
    signed_zeros = torch.where(acts == 0, acts * signs, acts)
    assert_close(measure(signed_zeros, *groups), measure(acts, *groups), rtol=0, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_bad_arguments_are_named(measure):
    acts, (is_positive, is_negative) = noise(6, 3), masks(2, 4)
    none = torch.zeros(6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`feature_acts`.*NaN or infinite.*; "):
        measure(acts * torch.nan, is_positive, is_negative)
    with pytest.raises(ValueError, match=r"`is_positive`.*got none; "):
        measure(acts, none, is_negative)
    with pytest.raises(ValueError, match=r"`is_negative`.*got none; "):
        measure(acts, is_positive, none)
    with pytest.raises(ValueError, match=r"`is_positive` and `is_negative`.*2 prompts in both; "):
        measure(acts, is_positive, is_negative | is_positive)


@pytest.mark.parametrize("max_fpr", [-0.1, 1.0, 5.0, float("nan")])
def test_a_false_positive_rate_is_a_fraction(max_fpr):
    with pytest.raises(ValueError, match=f"`max_fpr`.*at least 0.*{max_fpr}"):
        recall_at_fpr(noise(6, 3), *masks(2, 4), max_fpr=max_fpr)
