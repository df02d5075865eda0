"""An interval for a rate that stays valid when checked after every trial."""

import math

from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

PRIOR = 0.5
"""Both parameters of the mixing beta distribution: Jeffreys', narrowest near 0 and 1."""


def anytime_interval(n_hits: int, n_trials: int, confidence: float) -> tuple[float, float]:
    """Return the confidence sequence of a rate after some trials.

    It holds the rates p for which B(k + a, n - k + a) / (B(a, a) p^k (1 - p)^(n - k)) is less than
    1 / (1 - confidence), with k hits in n trials. At the true p, this ratio of a beta mixture's likelihood
    to that of the trials is a martingale that starts at 1, and by Ville's inequality it ever reaches
    1 / alpha with probability at most alpha. So the intervals after every number of trials *jointly* hold
    the true rate with that confidence, whatever the stopping rule. (Robbins, Ann. Math. Stat. 41 (1970)
    1397; the beta-binomial mixture of Howard et al., Ann. Stat. 49 (2021) 1055, arXiv 1810.08240.)

    Args:
        n_hits: number of hits.
        n_trials: number of independent trials at one rate, in an order independent of their outcomes.
        confidence: joint confidence of all intervals, between 0 and 1.

    Returns:
        The interval's ends, from 0 to 1.

    Examples:
        >>> low, high = anytime_interval(5, 20, 0.95)
        >>> round(low, 2), round(high, 2)
        (0.05, 0.59)
    """
    n_missed = n_trials - n_hits
    mixture = betaln(n_hits + PRIOR, n_missed + PRIOR) - betaln(PRIOR, PRIOR)
    limit = -math.log1p(-confidence)

    def excess(rate: float) -> float:
        return float(mixture - xlogy(n_hits, rate) - xlog1py(n_missed, -rate) - limit)

    # Convex in the rate, with its minimum at the share of hits.
    share = n_hits / n_trials
    low = 0.0 if n_hits == 0 else brentq(excess, 1e-300, share)
    high = 1.0 if n_missed == 0 else brentq(excess, share, 1 - 1e-16)
    return float(low), float(high)  # type: ignore[arg-type]
