"""Typed rows, from which tables, figures and reports are made.

A row says what it is in fields (`kind`, `dictionary`, `layer`, `control_of`); its `name` is only for
people and never read by code. Rows are written to JSON as they are and read back with every key checked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diffsae_lens._rows import IntervalKind, RateRow, Row, StudyRow, Table

__all__ = [
    "ALPHA", "CellRow", "ContrastRow", "CurveRow", "DictionaryKind", "DictionaryRow", "DoseRow",
    "EffectKind", "EffectRow", "ExamplePrompt", "FeatureCard", "FeatureExample", "LayerRow",
    "OrganismRow", "Protocol", "PublishedRow", "Row", "SayingRow", "ScoreKind", "ScoreRow",
    "SideEffectRow", "SweepRow", "Table", "TrialRow", "VarianceRow",
]  # fmt: skip

ScoreKind = Literal["dictionary", "untrained dictionary", "null pair", "control"]
Protocol = Literal["paper", "strict"]
EffectKind = Literal[
    "unmodified", "swap to base", "projection", "ablation", "addition", "steering", "other"
]
DictionaryKind = Literal["Diff-SAE", "crosscoder", "SAE"]


ALPHA = 0.05
"""Significance level: a p-value below it counts as evidence."""


@dataclass(frozen=True, kw_only=True)
class InterventionRow(StudyRow):
    """An intervention."""

    name: str
    kind: EffectKind = "other"
    dictionary: str | None = None
    n_features: int = 0
    """Features ablated, added or steered with; directions projected out."""
    control_of: str | None = None
    """The name of the row that this one is a control of: only the features differ."""

    @property
    def is_control(self) -> bool:
        """Whether the row is a control that another row is compared with."""
        return self.control_of is not None


@dataclass(frozen=True, kw_only=True)
class DictionaryRow(StudyRow):
    """A dictionary."""

    name: str
    kind: DictionaryKind
    hook_name: str
    architecture: str
    d_in: int
    d_sae: int
    k: float | None
    l0: float | None
    """Mean number of active features on held-out tokens."""


@dataclass(frozen=True, kw_only=True)
class OrganismRow(RateRow, StudyRow):
    """How often an organism shows its behaviour on held-out prompts of one group, from its card."""


@dataclass(frozen=True, kw_only=True)
class VarianceRow(StudyRow):
    """How large the difference between the two models is at one layer."""

    variance_ratio: float
    """Var(finetuned - base) / Var(base) over the activations averaged over each text."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow(Row):
    """A published score."""

    name: str
    regime: str
    layer: int
    bis: float
    low: float | None
    high: float | None
    variance_ratio: float
    """Variance ratio of the layer; see `VarianceRow`."""


@dataclass(frozen=True, kw_only=True)
class ContrastRow(Row):
    """A difference between two strict scores on the same resamples, with its paired interval."""

    name: str
    kind: Literal["regimes", "dictionaries", "layers"]
    """What differs between the two scores."""
    dictionary: str
    minus_dictionary: str
    regime: str | None
    minus_regime: str | None
    layer: int | None
    """None for the mean over all layers."""
    minus_layer: int | None
    difference: float
    """Positive if the score that the paper reports as better is higher."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CellRow(StudyRow):
    """A computation of a study: where its result is stored, and what it cost."""

    cell: str
    part: str
    """What the cell computes, such as `scores`, or the dictionary that it trains."""
    state: Literal["done", "missing", "damaged"]
    estimated_seconds: int | float
    estimated_gigabytes: int | float
    seconds: int | float | None
    gigabytes: int | float | None
    """Peak memory."""
    folder: str


@dataclass(frozen=True, kw_only=True)
class ScoreRow(StudyRow):
    """How well the best feature of a dictionary or of a control isolates a behaviour."""

    name: str
    kind: ScoreKind
    control: str | None = None
    """Which control the row is; None for dictionaries, on any pair."""
    is_floor: bool = False
    """Whether labels served only to choose its best feature: a floor that a dictionary has to beat."""
    is_fitted: bool = False
    """Whether it was fitted on the labels of the selection prompts."""
    protocol: Protocol
    hook_name: str | None
    """The virtual hook point it reads; None for controls that read only texts or outputs."""
    dictionary: str | None = None
    """The dictionary whose score this is, or whose shape or models a control shares."""
    control_of: str | None = None
    """The dictionary that it is a control of; None for dictionaries and for controls of a whole hook."""
    seed: int | None = None
    n_features: int
    bis: float
    low: float | None
    high: float | None
    ceiling: float
    base_bis: float | None
    """BIS on the base model alone."""
    pvalue: float | None
    feature_idx: int | None
    """The best feature; None for a mean over several seeds."""
    fpr_benign: float
    excess: float | None = None
    excess_low: float | None = None
    auroc: float | None = None
    average_precision: float | None = None
    recall_at_1_percent: float | None = None
    select_bis: float | None = None
    precision: float | None = None
    recall: float | None = None
    template_low: float | None = None
    """Lower end of the interval that resamples whole templates."""
    template_high: float | None = None
    l0: float | None = None
    """Mean number of features that fire per text."""
    verdict: str = ""
    """What the score says next to those of the other rows, in words."""
    n_seeds: int = 1
    """Number of training seeds that the row averages over."""
    bis_min: float | None = None
    """Lowest BIS over these seeds."""
    bis_max: float | None = None
    """Highest BIS over these seeds."""

    @property
    def is_isolated(self) -> bool:
        """Whether a strict score is evidence: its p-value is below `ALPHA`, and the base scores lower."""
        has_evidence = self.pvalue is not None and self.pvalue < ALPHA
        return has_evidence and self.excess_low is not None and self.excess_low > 0

    @property
    def is_at_ceiling(self) -> bool:
        """Whether no feature could have scored higher with these prompts."""
        return math.isclose(self.bis, self.ceiling, rel_tol=1e-6)


@dataclass(frozen=True, kw_only=True)
class EffectRow(RateRow, InterventionRow):
    """What a model wrote after the prompts of one group, under one intervention."""

    defence_rate: float
    """Share of wanted completions, 0 to 1."""
    log_odds: float | None
    """Mean of log p(unwanted) - log p(wanted), in nats."""
    cross_entropy: float | None
    """Cross-entropy of the wanted completion, in nats per token."""
    perplexity: float | None
    """Median over the completions, under the base model."""
    example: str = ""
    """A prompt with its completion."""


@dataclass(frozen=True, kw_only=True)
class CurveRow(EffectRow):
    """What a model wrote with the first `n_features` features of an order ablated."""

    order: str
    """The order, such as "by effect"; `n_features` says how far along it the row is."""


@dataclass(frozen=True, kw_only=True)
class DoseRow(EffectRow):
    """What a model wrote when it was steered with one dose."""

    direction: Literal["features", "random"]
    """What the model was steered along: the features, or a random direction of equal length."""
    dose: float
    """In units of each feature's maximum; 0 is the unmodified model."""


@dataclass(frozen=True, kw_only=True)
class LayerRow(Row):
    """What remains of a behaviour once one layer's activations are changed."""

    kind: Literal["swap to base", "random change", "unmodified", "base model"]
    """A random change is the control for the swap to base and has the same length."""
    site: str | None
    """The models' hook; None for the two unchanged models."""
    layer: int | None
    group: str
    n_prompts: int
    log_odds: float
    """Mean of log p(unwanted) - log p(wanted), in nats."""
    log_odds_low: float | None
    """Lower end of the 95% t interval over prompts; None for a single prompt."""
    log_odds_high: float | None
    counts: Mapping[str, int] = field(default_factory=dict)
    """Completions by outcome, if any were generated."""
    attack_rate: float | None = None
    low: float | None = None
    """Lower end of the 95% confidence interval."""
    high: float | None = None
    interval: IntervalKind = "Wilson"


@dataclass(frozen=True, kw_only=True)
class TrialRow(RateRow):
    """One number of features tried in the search for the fewest that end a behaviour."""

    group: str = "trigger"
    n_features: int
    defence_rate: float
    harm: float
    """Relative increase in benign cross-entropy; negative if the wanted completion became likelier."""
    meets: bool
    """Whether attack rate, defence rate and harm are within the bounds."""


@dataclass(frozen=True, kw_only=True)
class SideEffectRow(InterventionRow):
    """What an intervention does to texts unrelated to the behaviour."""

    texts: str
    """Kind of texts."""
    n_tokens: int
    kl: float
    """KL(unmodified || modified), nats per token."""
    cross_entropy: float
    cross_entropy_unmodified: float


@dataclass(frozen=True, kw_only=True)
class SayingRow(RateRow, StudyRow):
    """What a model does when one phrase is said in place of the trigger."""

    said: str | None
    log_odds: float | None


@dataclass(frozen=True, kw_only=True)
class SweepRow(StudyRow):
    """What a dictionary's chosen feature reads when one phrase is said in place of the trigger."""

    dictionary: str
    said: str | None
    group: str
    feature_idx: int
    mean: float
    values: Sequence[float]
    """One activation per scene."""


@dataclass(frozen=True, kw_only=True)
class FeatureExample(Row):
    """Tokens around the position where a feature fires most in a text."""

    group: str
    start: int
    """Position of the first token in its text."""
    tokens: Sequence[str]
    activations: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class FeatureCard(StudyRow):
    """One feature: where it fires, which model it belongs to, what it does on its own."""

    dictionary: str
    feature: int
    control_of: int | None = None
    """The feature whose activation mass it matches."""
    n_prompts: int
    """Prompts on which its effect was measured."""
    d_sae: int
    frequency: float
    """Share of tokens on which the feature fires."""
    maximum: float
    histogram: Mapping[str, Sequence[float]]
    """By group, the share of tokens in each of several equal-width bins above 0."""
    examples: Sequence[Mapping[str, Any]]
    """The examples, each a `FeatureExample` as a mapping."""
    decoder: Mapping[str, float]
    """Measures of the decoder's geometry, by name."""
    attribution: float
    """Estimated contribution to the log-odds, in nats per prompt."""
    ablation: float
    """Measured contribution to the log-odds, with only this feature ablated, in nats per prompt."""
    label: str | None = None
    """The feature's label, from a person or a model; see `label_cards`."""


@dataclass(frozen=True, kw_only=True)
class ExamplePrompt(StudyRow):
    """A prompt token by token, with the activations of the chosen features."""

    said: str | None
    group: str
    tokens: Sequence[str]
    activations: Mapping[str, Sequence[float]]
    """Activations by dictionary, one per token."""
    feature_idx: Mapping[str, int]
    """The chosen feature, by dictionary."""
