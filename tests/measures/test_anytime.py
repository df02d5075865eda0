"""An interval that may be looked at after every trial, beside one that may not."""

import functools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binomtest

from diffsae_lens.measures._anytime import anytime_interval

COUNTS = [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (500, 1000)]


@pytest.mark.parametrize(("n_hits", "n_trials"), COUNTS)
def test_its_ends_are_where_the_mixture_is_as_much_likelier_as_the_error_allows(n_hits, n_trials):
    low, high = anytime_interval(n_hits, n_trials, 0.9)
    assert 0 <= low < high <= 1
    assert low <= n_hits / n_trials <= high
    for end, is_open in ((low, n_hits == 0), (high, n_hits == n_trials)):
        if is_open:
            assert end in (0, 1)
            continue

        def ratio(q, end=end):
            likelier = (q / end) ** n_hits * ((1 - q) / (1 - end)) ** (n_trials - n_hits)
            return likelier * beta.pdf(q, 0.5, 0.5)

        peak = n_hits / n_trials
        mixed = quad(ratio, 0, 1, points=[peak] if 0 < peak < 1 else None, limit=400)[0]
        assert mixed == pytest.approx(10, rel=1e-3)


def test_more_trials_narrow_it_and_less_confidence_too():
    widths = [np.diff(anytime_interval(n // 4, n, 0.95)).item() for n in (4, 16, 64, 256, 4096)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.06
    assert np.diff(anytime_interval(4, 16, 0.5)) < widths[1]
    low, high = anytime_interval(3, 20, 0.95)
    assert anytime_interval(17, 20, 0.95) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_whoever_stops_where_it_suits_still_finds_the_rate_and_with_wilsons_does_not(rate):
    """Stopping at the first look at which the interval misses the rate: the worst of all rules."""

    @functools.cache
    def anytime_holds(n_hits, n_trials):
        low, high = anytime_interval(n_hits, n_trials, 0.95)
        return low <= rate <= high

    @functools.cache
    def wilson_holds(n_hits, n_trials):
        low, high = binomtest(n_hits, n_trials).proportion_ci(0.95, "wilson")
        return low <= rate <= high

    rng = np.random.default_rng(0)
    hits = (rng.random((400, 100)) < rate).cumsum(1)
    missed = {
        holds: np.mean([not all(holds(int(k), n) for n, k in enumerate(run, 1)) for run in hits])
        for holds in (anytime_holds, wilson_holds)
    }
    assert missed[anytime_holds] <= 0.05
    assert missed[wilson_holds] > 0.2
