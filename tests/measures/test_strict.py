import pytest
import torch
from scipy.stats import hypergeom
from sklearn.metrics import f1_score, roc_auc_score

from diffsae_lens.measures import _strict as strict
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.measures._strict import strict_bis

N = 120  # prompts per split: 24 trigger, 48 benign, 48 other


def prompts(seed=0, d_sae=30, strength=0.0):
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(2 * N) % 5
    trigger, benign = group == 0, (group == 1) | (group == 2)
    acts = torch.randn(2 * N, d_sae, generator=generator)
    acts[trigger, 4] += strength
    return acts, trigger, benign, torch.arange(2 * N) < N


def reference(acts, trigger, benign, select):
    """By trying every threshold of every feature with scikit-learn's F1."""

    def score(fires, split):
        """Of every column."""
        wanted = trigger[split, None].expand_as(fires[split])
        f1 = f1_score(wanted, fires[split], average=None, zero_division=0)
        return torch.as_tensor(f1) * (1 - fires[split & benign].double().mean(0))

    best = (-1.0, -1.0)
    for j in range(acts.shape[1]):
        values = acts[select, j].unique()
        cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2])
        ranked = roc_auc_score(
            trigger[select & (trigger | benign)], acts[select & (trigger | benign), j]
        )
        fires = acts[:, j, None] > cuts
        for found, scored in zip(score(fires, select), score(fires, ~select), strict=True):
            if (found + 1e-6 * ranked) > best[0] + 1e-6 * best[1] + 1e-9:
                best = (found, ranked)
                chosen = (j, scored.item())
    return chosen


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_it_is_selection_on_one_split_and_scoring_on_the_other(strength):
    acts, trigger, benign, select = prompts(strength=strength, d_sae=6)
    result = strict_bis(acts, trigger, benign, is_select=select)
    feature, expected = reference(acts, trigger, benign, select)
    assert result.feature_idx == feature
    assert result.bis == pytest.approx(expected, abs=1e-6)
    test = ~select & (trigger | benign)
    expected = roc_auc_score(trigger[test], acts[test, feature])
    assert result.auroc == pytest.approx(expected)


@pytest.mark.parametrize("n_firing", [0, 1, 5, 30])
def test_features_that_tell_nothing_apart_can_be_left_out(n_firing, monkeypatch):
    acts, *labels, select = prompts(seed=n_firing)
    acts = acts.relu()
    acts[:, torch.randperm(30, generator=torch.Generator().manual_seed(1))[n_firing:]] = 0
    acts[:, 2] = 7.0  # fires everywhere
    resampling = Resampling(n_resamples=40, clusters=torch.arange(2 * N) // 4)
    found = strict_bis(acts, *labels, is_select=select, resampling=resampling)
    monkeypatch.setattr(strict, "_tellable", lambda a: torch.ones(a.shape[1], dtype=torch.bool))
    expected = strict_bis(acts, *labels, is_select=select, resampling=resampling)
    torch.testing.assert_close(found.distribution, expected.distribution, rtol=0, atol=0)


def test_a_perfect_feature_scores_one_and_noise_little():
    acts, trigger, benign, select = prompts(strength=50.0)
    found = strict_bis(acts, trigger, benign, is_select=select)
    assert found.bis == pytest.approx(1)
    assert found.feature_idx == 4
    assert found.pvalue < 1e-6
    noise = [strict_bis(*(p := prompts(seed=s, d_sae=2000))[:3], is_select=p[3]) for s in range(10)]
    # Two thousand features of noise: selected well, scored as noise.
    assert min(n.select_bis for n in noise) > 0.35
    assert sum(n.bis for n in noise) / 10 < 0.25
    assert sum(n.pvalue < 0.05 for n in noise) <= 2


def test_the_p_value_is_fishers():
    acts, trigger, benign, select = prompts(strength=1.5)
    found = strict_bis(acts, trigger, benign, is_select=select)
    fires = acts[~select, found.feature_idx] > found.threshold
    hits = int((fires & trigger[~select]).sum())
    expected = hypergeom.sf(hits - 1, N, 24, int(fires.sum()))
    assert found.pvalue == pytest.approx(expected)


def test_a_detector_of_the_text_has_no_excess():
    acts, trigger, benign, select = prompts(strength=6.0)
    result = strict_bis(
        acts,
        trigger,
        benign,
        is_select=select,
        base_acts=acts,
        resampling=Resampling(n_resamples=40),
    )
    assert result.excess == 0
    assert result.excess_low == 0
    silent = torch.zeros_like(acts)
    real = strict_bis(
        acts,
        trigger,
        benign,
        is_select=select,
        base_acts=silent,
        resampling=Resampling(n_resamples=40),
    )
    assert real.excess > 0.5
    assert real.excess_low > 0.4
    assert real.low <= real.bis <= real.high


def test_ties_are_never_split():
    acts, trigger, benign, select = prompts()
    acts = torch.ones_like(acts)
    found = strict_bis(acts, trigger, benign, is_select=select)
    assert found.bis == pytest.approx(
        0, abs=1e-6
    )  # fires everywhere: every benign prompt is a false alarm
    assert found.auroc == 0.5
    assert found.pvalue == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_select": torch.ones(2 * N, dtype=torch.bool)}, "let `is_select` leave prompts"),
        (
            {"resampling": Resampling(clusters=torch.zeros(2 * N, dtype=torch.long))},
            "in both splits",
        ),
    ],
)
def test_bad_arguments_are_refused(change, message):
    acts, trigger, benign, select = prompts()
    with pytest.raises(ValueError, match=message):
        strict_bis(acts, trigger, benign, **({"is_select": select} | change))


def test_other_prompts_on_the_base_model_are_refused():
    acts, trigger, benign, select = prompts()
    with pytest.raises((ValueError, TypeError)):  # by shape where shapes are checked
        strict_bis(acts, trigger, benign, is_select=select, base_acts=acts[:3])


def test_activations_that_are_not_finite_are_refused():
    acts, trigger, benign, select = prompts()
    acts[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        strict_bis(acts, trigger, benign, is_select=select)
