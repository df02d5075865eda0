"""Intervals and p-values of the BIS that account for the choice of the feature.

A score is the best of thousands of features, so its interval and its null must choose the best again
each time. Here both do, at the cost of counting: which prompts a feature fires on depends only on its
few highest activations, which are found once.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from diffsae_lens._checks import INTEGERS
from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, Count, Fraction, Natural, typed
from diffsae_lens.measures._bis import bis, bis_parts, feature_thresholds
from diffsae_lens.measures._validation import feature_chunks
from diffsae_lens.measures._weighted import WORK, weighted_bis


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampling(Checked):
    """How prompts are resampled or relabelled."""

    n_resamples: Count = 1000
    """Bootstrap resamples, or permutations."""
    clusters: Int[Tensor, "prompt"] | None = None
    """The unit each prompt belongs to, such as its template; None for one unit per prompt. The bootstrap
    draws whole units, since prompts of one template are not independent; permutations move labels only
    within units, such as scenes of minimal pairs."""
    confidence_level: Fraction = 0.95
    """Confidence of percentile intervals."""
    seed: Natural = 0
    """Seed of the random draws."""

    def __post_init__(self) -> None:
        """Refuse clusters that are not one integer per prompt."""
        super().__post_init__()
        if self.clusters is not None and (
            self.clusters.ndim != 1 or self.clusters.dtype not in INTEGERS
        ):
            raise InvalidValueError(
                "`clusters` must be integers, one per prompt, got "
                f"{self.clusters.dtype} {list(self.clusters.shape)}; number the units"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class BootstrapResult(Record):
    """A score with its percentile interval, in the manner of `scipy.stats.bootstrap`."""

    estimate: float
    """The score on the original prompts."""
    low: float
    high: float
    distribution: Float[Tensor, "resample"] = field(repr=False)
    """The score on every resample."""
    resampling: Resampling = field(repr=False)
    """How the resamples were drawn."""

    @property
    def standard_error(self) -> float:
        """Standard deviation of the distribution."""
        return self.distribution.std().item()


@dataclass(frozen=True, kw_only=True, eq=False)
class PermutationResult(Record):
    """A score and its null under relabelling, in the manner of `scipy.stats.permutation_test`."""

    statistic: float
    """The score with the true labels."""
    pvalue: float
    """(1 + permutations that reach the statistic) / (1 + permutations)."""
    null_distribution: Float[Tensor, "permutation"] = field(repr=False)
    """The score of the best feature under each relabelling."""


@typed
def bootstrap_bis(
    feature_acts: Float[Tensor, "prompt d_sae"],
    is_trigger: Bool[Tensor, "prompt"],
    is_benign: Bool[Tensor, "prompt"],
    *,
    percentile: float = 0.95,
    reselect: bool = True,
    resampling: Resampling | None = None,
) -> BootstrapResult:
    """Bootstrap the BIS of a dictionary over prompts, choosing thresholds and best feature each time.

    Args:
        feature_acts: one activation per prompt and feature.
        is_trigger: the prompts with the trigger.
        is_benign: their benign counterparts.
        percentile: as for `bis`.
        reselect: False keeps the feature that is best on all prompts, as the published bootstrap
            does; the interval then ignores the choice.
        resampling: number of resamples, and their units.

    Returns:
        The BIS with its interval and distribution. A resample without trigger or benign prompts
        scores 0.

    Raises:
        ValueError: as for `bis`, or clusters that are not one per prompt.

    Source:
        Cluster bootstrap: Davison and Hinkley (1997), section 3.8. The published procedure:
        `compute_bis` of the paper's code, which is this with `reselect=False` and no clusters.
    """
    observed = bis(feature_acts, is_trigger, is_benign, percentile=percentile)
    feature_acts, is_trigger, is_benign = (t.cpu() for t in (feature_acts, is_trigger, is_benign))
    resampling = resampling or Resampling()
    best = slice(observed.feature_idx, observed.feature_idx + 1)
    distribution = weighted_bis(
        feature_acts if reselect else feature_acts[:, best],
        is_trigger,
        is_benign,
        resample_weights(len(feature_acts), resampling),
        percentile=percentile,
    )
    return bootstrap_result(observed.bis, distribution, resampling)


@typed
def paired_bootstrap_bis(
    feature_acts: Float[Tensor, "prompt d_sae"],
    other_acts: Float[Tensor, "prompt other_d_sae"],
    is_trigger: Bool[Tensor, "prompt"],
    is_benign: Bool[Tensor, "prompt"],
    *,
    percentile: float = 0.95,
    resampling: Resampling | None = None,
) -> BootstrapResult:
    """Bootstrap the difference between two dictionaries' BIS on the same prompts (first minus second).

    Both are scored on the same resamples, so what is hard for both does not widen the interval.
    (Permuting features between the dictionaries, as published, tests nothing about either.) Arguments
    and errors are those of `bootstrap_bis`; `other_acts` are the second dictionary's.
    """
    both = [
        bis(acts, is_trigger, is_benign, percentile=percentile).bis
        for acts in (feature_acts, other_acts)
    ]
    resampling = resampling or Resampling()
    weights = resample_weights(len(feature_acts), resampling)
    first, second = (
        weighted_bis(acts, is_trigger, is_benign, weights, percentile=percentile)
        for acts in (feature_acts, other_acts)
    )
    return bootstrap_result(both[0] - both[1], first - second, resampling)


@typed
def permutation_test_bis(
    feature_acts: Float[Tensor, "prompt d_sae"],
    is_trigger: Bool[Tensor, "prompt"],
    is_benign: Bool[Tensor, "prompt"],
    *,
    percentile: float = 0.95,
    resampling: Resampling | None = None,
) -> PermutationResult:
    """Test whether the best feature isolates the trigger better than chance among all features.

    Null hypothesis: the labels (trigger, benign, other) are exchangeable among prompts (within each
    cluster, if there are clusters). The statistic is the BIS of the best feature, chosen again under
    every relabelling, so the number of features is accounted for. A small p-value says that some
    feature follows the labels, not that fine-tuning made it: the text alone may suffice.

    Args:
        feature_acts: one activation per prompt and feature.
        is_trigger: the prompts with the trigger.
        is_benign: their benign counterparts.
        percentile: as for `bis`.
        resampling: number of relabellings, and the units within which labels move.

    Returns:
        The statistic, its p-value and the null distribution.

    Raises:
        ValueError: as for `bis`, or clusters that are not one per prompt.

    Source:
        Max-statistic permutation test: Westfall and Young (1993); the count of one is Phipson and
        Smyth (2010).
    """
    observed = bis(feature_acts, is_trigger, is_benign, percentile=percentile)
    feature_acts, is_trigger, is_benign = (t.cpu() for t in (feature_acts, is_trigger, is_benign))
    resampling = resampling or Resampling()
    orders = _permutations(len(feature_acts), resampling)
    best = torch.zeros(len(orders), dtype=torch.double)
    thresholds = feature_thresholds(feature_acts, percentile=percentile)
    n_labelled = int(is_trigger.sum()), int(is_benign.sum())
    offset = 0
    for chunk in feature_chunks(feature_acts):  # [features, prompt]
        fires = chunk > thresholds[offset : offset + len(chunk), None]
        offset += len(chunk)
        fires = fires.unique(dim=0)  # features that fire alike score alike
        n_fired = fires.sum(1)
        where, begin = fires.nonzero()[:, 1], n_fired.cumsum(0) - n_fired
        for part in torch.arange(len(orders)).split(max(1, WORK // (4 * len(fires)))):
            hit, false_alarm = (
                embedding_bag(where, mask[orders[part]].T.float().contiguous(), begin, mode="sum")
                for mask in (is_trigger, is_benign)
            )
            counts = hit.double(), n_fired[:, None].double(), false_alarm.double()
            scores = bis_parts(*counts, *n_labelled)["bis"]
            best[part] = torch.maximum(best[part], scores.amax(0))
    reached = int((best >= observed.bis - 1e-9).sum())
    return PermutationResult(
        statistic=observed.bis,
        pvalue=(1 + reached) / (1 + len(best)),
        null_distribution=best,
    )


def resample_weights(n_prompts: int, resampling: Resampling) -> Int[Tensor, "resample prompt"]:
    """Return how often each prompt is drawn in each resample."""
    index = cluster_index(n_prompts, resampling.clusters)
    n_clusters = int(index.max()) + 1
    rng = np.random.default_rng(resampling.seed)
    even = np.full(n_clusters, 1 / n_clusters)
    drawn = rng.multinomial(n_clusters, even, size=resampling.n_resamples)
    return torch.from_numpy(drawn).int()[:, index]


def cluster_index(n_prompts: int, clusters: Tensor | None) -> Int[Tensor, "prompt"]:
    """Number the clusters from 0; without clusters, every prompt is its own.

    Raises:
        ValueError: `clusters` does not have one entry per prompt.
    """
    if clusters is None:
        return torch.arange(n_prompts)
    if clusters.shape != (n_prompts,):
        raise InvalidValueError(
            f"`clusters` must have one entry for each of the {n_prompts} prompts, got "
            f"{list(clusters.shape)}"
        )
    return clusters.unique(return_inverse=True)[1]


def _permutations(n_prompts: int, resampling: Resampling) -> Int[Tensor, "resample prompt"]:
    """Orders of the prompts, each cluster shuffled within its own positions."""
    index = torch.zeros(n_prompts, dtype=torch.long)
    if resampling.clusters is not None:
        index = cluster_index(n_prompts, resampling.clusters)
    rng = np.random.default_rng(resampling.seed)
    noise = torch.from_numpy(rng.random((resampling.n_resamples, n_prompts)))
    orders = torch.empty(noise.shape, dtype=torch.long)
    # Sort noise within clusters: by the cluster's number first, then by the noise.
    orders[:, index.argsort(stable=True)] = (index + noise).argsort(1)
    return orders


def bootstrap_result(
    estimate: float, distribution: Float[Tensor, "resample"], resampling: Resampling
) -> BootstrapResult:
    """Return the score with the percentile interval of its distribution."""
    low, high = percentile_interval(distribution, resampling)
    return BootstrapResult(
        estimate=estimate, low=low, high=high, distribution=distribution, resampling=resampling
    )


def percentile_interval(distribution: Tensor, resampling: Resampling) -> tuple[float, float]:
    """Return the ends of the percentile interval."""
    tail = (1 - resampling.confidence_level) / 2
    low, high = distribution.quantile(torch.tensor([tail, 1 - tail], dtype=torch.double)).tolist()
    return low, high
