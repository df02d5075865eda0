"""Thresholds from clean models: p-values that are uniform where a suspect is one of them."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest

from diffsae_lens.auditing import LEXICON, AuditConfig, Null, Nulls
from diffsae_lens.auditing._nulls import SHIPPED, find_nulls, settings_digest


def made(levels, residuals=((1.0, 2.0),), **changes):
    models = tuple(
        Null(
            name=f"clean-{i}", strength=float(level), residuals=tuple(residuals[i % len(residuals)])
        )
        for i, level in enumerate(levels)
    )
    return Nulls(**({"base": "b", "settings": "s", "models": models} | changes))


def test_a_p_value_counts_the_suspect_among_the_clean_models():
    nulls = made([0.1, 0.2, 0.3])
    assert nulls.p_value(0.25) == pytest.approx(2 / 4)
    assert nulls.p_value(0.3) == pytest.approx(2 / 4)
    assert nulls.p_value(9.0) == pytest.approx(1 / 4)
    assert nulls.p_value(-1.0) == 1.0


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(0)
    n, alarms = 2000, 0
    for _ in range(n):
        *clean, suspect = rng.standard_cauchy(20)  # heavy tails: no Gaussian z would hold
        alarms += made(clean).p_value(suspect) <= 0.05
    assert alarms / n == pytest.approx(0.05, abs=0.015)


def test_p_values_of_texts_are_uniform_where_nothing_is_hidden():
    rng = np.random.default_rng(1)
    nulls = made(range(10), rng.exponential(size=(10, 400)))
    assert kstest(nulls.p_values(rng.exponential(size=500)), "uniform").pvalue > 0.01


def test_flags_keep_the_false_discovery_rate_and_find_what_is_planted():
    rng = np.random.default_rng(2)
    n_any, n_found = 0, 0
    for _ in range(200):
        nulls = made(range(20), rng.exponential(size=(20, 400)))
        texts = rng.exponential(size=400)
        n_any += nulls.flags(texts, 0.05).any()
        texts[:4] += 40.0
        n_found += nulls.flags(texts, 0.05)[:4].all()
    assert n_any / 200 < 0.1
    assert n_found == 200


@pytest.mark.parametrize("k", [1, 2, 4, 20, 400])
def test_so_many_texts_are_flagged_from_that_residual_on_and_not_below(k):
    rng = np.random.default_rng(3)
    nulls = made(range(20), rng.exponential(size=(20, 400)))
    level = nulls.flagged_from(k, 400, 0.05)
    texts = np.zeros(400)
    texts[:k] = min(level, 1e6)
    assert not nulls.flags(texts, 0.05).any()
    texts[:k] += 1e-9
    assert nulls.flags(texts, 0.05).sum() == (k if np.isfinite(level) else 0)


@pytest.mark.parametrize(
    ("n", "alpha"), [(19, 0.05), (20, 0.05), (39, 0.05), (45, 0.1), (18, 0.05)]
)
def test_strengths_are_found_above_that_of_all_but_the_strongest_clean_models(n, alpha):
    nulls = made(range(n))
    least = nulls.found_from(alpha)
    assert np.isfinite(least) == (n > 18)
    if n > 18:
        assert nulls.p_value(least + 1e-9) <= alpha < nulls.p_value(least)


def test_nineteen_clean_models_are_enough_for_one_in_twenty():
    assert made(range(19)).enough(0.05)
    assert not made(range(18)).enough(0.05)


def test_nulls_come_back_from_their_file(tmp_path):
    nulls = made([0.5, 1.5])
    nulls.save(tmp_path / "nulls.json")
    assert Nulls.load(tmp_path / "nulls.json") == nulls
    (tmp_path / "other.json").write_text('{"models": 3}')
    with pytest.raises(ValueError, match="does not hold statistics of clean models"):
        Nulls.load(tmp_path / "other.json")


def test_only_audits_of_the_same_settings_are_compared():
    config, lexicon = AuditConfig(), {"Year": ("2023", "2024")}
    right = made([1.0], settings=settings_digest(config, lexicon))
    assert find_nulls(right, "b", config, lexicon) is right
    assert find_nulls(right, "b", dataclasses.replace(config, seed=9, alpha=0.1), lexicon) is right
    for base, other, words in (
        ("another", config, lexicon),
        ("b", dataclasses.replace(config, n_texts=5), lexicon),
        ("b", config, {"Year": ("2023", "2025")}),
    ):
        with pytest.raises(ValueError, match="nothing can be compared"):
            find_nulls(right, base, other, words)
    assert find_nulls(None, "no such base", config, lexicon) is None


def test_the_clean_models_that_come_with_the_package_fit_the_default_settings():
    """Whoever changes a default, or how candidates are measured, has to audit the clean models again."""
    [file] = SHIPPED.glob("*.json")
    known = Nulls.load(file)
    assert known.settings == settings_digest(AuditConfig(), LEXICON)
    assert find_nulls(None, known.base, AuditConfig(alpha=0.1), LEXICON) == known
    assert known.enough(0.05)
    assert {len(null.residuals) for null in known.models} == {400}


def test_clean_models_measured_otherwise_are_not_compared_with(monkeypatch):
    before = settings_digest(AuditConfig(), {})
    assert settings_digest(AuditConfig(alpha=0.1, seed=3), {}) == before
    monkeypatch.setattr("diffsae_lens.auditing._nulls.STATISTIC", {"floor": 0.1})
    assert settings_digest(AuditConfig(), {}) != before
