"""Baselines for an audit's residuals: what other methods would have flagged."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binomtest, mannwhitneyu, norm, rankdata
from torch import Tensor, nn

from diffsae_lens._artifact import build_json
from diffsae_lens._checks import check_indices, check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._rows import Row, Table
from diffsae_lens._typed import Count, typed
from diffsae_lens.auditing._cells import Audit
from diffsae_lens.auditing._reactions import imitator_name
from diffsae_lens.auditing._readings import Cosines, read_states, singular_vectors, width
from diffsae_lens.auditing._reopened import reopened
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._doors import Given
from diffsae_lens.pair._options import LoadOptions


@dataclass(frozen=True, kw_only=True)
class BaselineRow(Row):
    """Scores of one text by each method; larger is more suspicious."""

    index: int
    residual: float
    """The audit's own score: KL(suspect || imitator) over the completion, in nats."""
    kl_to_base: float
    """KL(suspect || base) over the completion, in nats."""
    log_ratio: float
    """Largest log P(suspect) - log P(base) over the tokens of the completion, in nats."""
    mean_difference: float
    """Distance of the mean of suspect - base over the completion from its mean over all texts: the largest
    z over layers, within the suspect."""
    singular_vectors: float | None
    """Largest |z|, over tokens and layers, of the cosine with a singular vector of the weight difference;
    None if no layer that writes to the residual stream differs."""
    random_directions: float
    """The same with as many random directions."""
    imitator_match: float
    """Distance between the means of suspect and imitator over the completion: the largest z over layers,
    within the suspect."""


@dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """How well a method separates the positive texts from the others."""

    method: str
    n_texts: int
    n_positive: int
    auroc: float
    low: float
    """Lower end of its 95% Wilson interval, for as many trials as the smaller group has texts. No
    distribution has a larger variance (Birnbaum and Klose, 1957), so the interval is wide."""
    high: float
    p_value: float
    """Mann-Whitney test of the null hypothesis that positive texts score no higher."""
    recall: float
    """Share of the positive texts among the first `n_positive`."""
    recall_low: float
    """Lower end of its exact 95% interval (Clopper and Pearson)."""
    recall_high: float
    ranks: list[int]
    """Ranks of the positive texts, from 1; tied scores get the last rank."""


@typed
def baseline_scores(  # noqa: PLR0913
    path: str | Path,
    base: Given,
    suspect: Given,
    texts: Sequence[Text],
    *,
    only: Sequence[int] | None = None,
    n_directions: Count = 4,
    options: LoadOptions | None = None,
    **overrides: Any,
) -> Table[BaselineRow]:
    """Score the texts of an audit with other people's methods, to compare with its residuals.

    Suspect, base and imitator read each text once, together with the suspect's completion. The scores are
    stored in the audit's folder.

    Args:
        path: the folder of a finished audit.
        base: the base model of the audit.
        suspect: the suspect of the audit.
        texts: the texts of the audit.
        only: indices of the texts to score; by default all. Scores that are standardised within the
            suspect are standardised over these texts.
        n_directions: number of leading singular vectors per weight.
        options: how to load the models.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        One row per text.

    Raises:
        FileNotFoundError: `path` holds no finished audit.
        ValueError: the audit was made with other models or texts, or `only` has fewer than two texts.
        TypeError: an argument is not a model, texts or settings.

    Source:
        Singular vectors: Zhong and Raghunathan, arXiv 2508.00161, without their calibration.
    """
    audit, results = reopened(path, base, suspect, texts, options, overrides)
    n = len(results.texts)
    which = list(range(n)) if only is None else check_indices("only", only, n)
    if len(which) < 2:
        raise InvalidValueError(
            f"`only` must name two texts or more, to be compared, got {len(which)}"
        )
    recipe = {**audit.recipe, "cell": "baselines", "only": which, "n_directions": n_directions}

    def compute() -> list[dict[str, Any]]:
        columns = _columns(audit, which, n_directions)
        return [
            {"index": i, "residual": results.texts[i].residual}
            | {name: None if c is None else c[j].item() for name, c in columns.items()}
            for j, i in enumerate(which)
        ]

    name = "baselines" if only is None else f"baselines-{len(which)}"
    stored = build_json(audit.path / f"{name}.json", recipe, compute)
    return Table(tuple(map(BaselineRow.from_dict, stored)))


@typed
def compare_scores(scores: Table, labels: Sequence[bool]) -> Table[MethodRow]:
    """Compare methods by how well they separate the texts known to be affected from the others.

    Args:
        scores: scores from `baseline_scores`.
        labels: whether each text of the audit is affected.

    Returns:
        One row per method, the best first.

    Raises:
        TypeError: `scores` are not scores, or `labels` not booleans.
        ValueError: there are too few labels, or all scored texts have the same label.
    """
    rows = check_items("scores", scores.rows, BaselineRow)
    labels = check_items("labels", labels, bool)
    if max(row.index for row in rows) >= len(labels):
        raise InvalidValueError(f"`labels` must be one per text of the audit, got {len(labels)}")
    positive = torch.tensor([labels[row.index] for row in rows])
    if positive.all() or not positive.any():
        raise InvalidValueError(
            "`labels` must be true of some of the texts that were scored, and false of others"
        )
    methods = [f.name for f in fields(BaselineRow) if f.name != "index"]
    columns = {name: [getattr(row, name) for row in rows] for name in methods}
    found = [_method(n, torch.tensor(c), positive) for n, c in columns.items() if None not in c]
    return Table(tuple(sorted(found, key=lambda row: -row.auroc)))


def _method(name: str, values: Tensor, positive: Tensor) -> MethodRow:
    n = int(positive.sum())
    of_positive, others = values[positive].double(), values[~positive].double()
    test = mannwhitneyu(of_positive.numpy(), others.numpy(), alternative="greater")
    auroc = float(test.statistic) / (n * len(others))
    low, high = _wilson(auroc, min(n, len(others)))
    ranks = rankdata(-values.double().numpy(), "max")[positive.numpy()]
    n_first = int((ranks <= n).sum())
    interval = binomtest(n_first, n).proportion_ci(method="exact")
    return MethodRow(
        method=name, n_texts=len(values), n_positive=n, auroc=auroc, low=low, high=high,
        p_value=float(test.pvalue), recall=n_first / n, recall_low=float(interval.low),
        recall_high=float(interval.high), ranks=sorted(map(int, ranks)),
    )  # fmt: skip


def _wilson(share: float, n: int) -> tuple[float, float]:
    z2 = float(norm.ppf(0.975)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n**2))) ** 0.5 / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def _columns(audit: Audit, which: Sequence[int], n_directions: int) -> dict[str, Tensor | None]:
    """Return the scores of some texts, by method."""
    written = audit.written()
    rows = [written[i] for i in which]
    models = audit.models
    directions = singular_vectors(models.base, models.finetuned, n_directions)
    generator = torch.Generator().manual_seed(audit.config.seed)
    at_random = {
        layer: nn.functional.normalize(
            torch.randn(len(of), of.shape[1], generator=generator), dim=1
        )
        for layer, of in (directions or {0: torch.empty(n_directions, width(models.base))}).items()
    }
    cosines = Cosines(directions), Cosines(at_random)
    ours = read_states(models.finetuned, rows, cosines)
    base = read_states(models.base, rows)
    imitators, _ = audit.imitators(written)
    theirs = torch.empty_like(base.means)
    for fold in range(audit.config.n_folds):
        of_fold = [j for j, i in enumerate(which) if audit.folds[i] == fold]
        if of_fold:
            imitators.set_adapter(imitator_name(fold))
            theirs[of_fold] = read_states(imitators, [rows[j] for j in of_fold]).means
    difference = ours.means - base.means
    return {
        "kl_to_base": base.divergence,
        "log_ratio": base.log_ratio,
        "mean_difference": _largest_z((difference - difference.mean(0)).norm(dim=-1)),
        "singular_vectors": cosines[0].largest(len(rows)) if directions else None,
        "random_directions": cosines[1].largest(len(rows)),
        "imitator_match": _largest_z((ours.means - theirs).norm(dim=-1)),
    }


def _largest_z(values: Float[Tensor, "text layer"]) -> Float[Tensor, " text"]:
    """Return how many standard deviations each text is above the mean, at the layer where it is most."""
    return ((values - values.mean(0)) / values.std(0).clamp_min(1e-9)).amax(1)
