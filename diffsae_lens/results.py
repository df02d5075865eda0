"""Typed rows: what tables, figures and reports are made of.

A row says what it is in fields (`kind`, `dictionary`, `layer`, `control_of`); its `name` is for people
alone and never read by code. Rows are written to JSON as they are and read back with every key checked.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Generic, Literal, TypeVar

import pandas as pd

from diffsae_lens._errors import InvalidValueError

ScoreKind = Literal["dictionary", "untrained dictionary", "null pair", "control"]
Protocol = Literal["paper", "strict"]
EffectKind = Literal[
    "unmodified", "swap to base", "projection", "ablation", "addition", "steering", "other"
]
DictionaryKind = Literal["Diff-SAE", "crosscoder", "SAE"]


ALPHA = 0.05
"""Below it a p-value is taken for evidence."""

R = TypeVar("R", bound="Row")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    @classmethod
    def from_dict(cls: type[R], row: Mapping[str, Any]) -> R:
        """Read a row back from JSON.

        Raises:
            ValueError: it is not a mapping, lacks a key or has one that is not known.
        """
        if not isinstance(row, Mapping):
            raise InvalidValueError(f"a {cls.__name__} must be a mapping, got {type(row).__name__}")
        known = {field.name for field in fields(cls)}
        required = {
            field.name
            for field in fields(cls)
            if field.default is MISSING and field.default_factory is MISSING
        }
        missing, unknown = sorted(required - set(row)), sorted(set(row) - known)
        if missing or unknown:
            raise InvalidValueError(
                f"a {cls.__name__} lacks {missing} and has {unknown}, which is not known; it was made "
                "by another version of this package"
            )
        return cls(**row)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it: None for what could not be measured."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class DictionaryRow(Row):
    """What a dictionary is."""

    name: str
    kind: DictionaryKind
    hook_name: str
    layer: int | None
    architecture: str
    d_in: int
    d_sae: int
    k: float | None
    l0: float | None
    """Mean number of active features on held-out tokens."""
    regime: str | None = None
    """Of the organism, in a study of several."""


@dataclass(frozen=True, kw_only=True)
class OrganismRow(Row):
    """How often an organism shows its behaviour on held-out prompts of one group, as its card says."""

    regime: str | None = None
    group: str
    n_prompts: int
    counts: Mapping[str, int]
    """Completions by outcome, the unwanted one first, the wanted one second."""
    attack_rate: float
    low: float
    """Of its 95% Wilson interval."""
    high: float


@dataclass(frozen=True, kw_only=True)
class VarianceRow(Row):
    """How large the difference of the two models is at one layer."""

    regime: str | None = None
    layer: int
    variance_ratio: float
    """Var(finetuned - base) / Var(base) over the activations averaged over each text."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow(Row):
    """A score that was published."""

    name: str
    regime: str
    layer: int
    bis: float
    low: float | None
    high: float | None
    variance_ratio: float
    """Of the layer; see `VarianceRow`."""


@dataclass(frozen=True, kw_only=True)
class ContrastRow(Row):
    """A difference of two strict scores on the same resamples, with its paired interval."""

    name: str
    kind: Literal["regimes", "dictionaries", "layers"]
    """What differs between the two."""
    dictionary: str
    minus_dictionary: str
    regime: str | None
    minus_regime: str | None
    layer: int | None
    """None for the mean over all layers."""
    minus_layer: int | None
    difference: float
    """Positive for what the paper says is better."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CellRow(Row):
    """A computation of a study: where its result lies, and what it took."""

    cell: str
    part: str
    """What it computes, such as `scores`, or the dictionary that it trains."""
    regime: str | None
    layer: int | None
    state: Literal["done", "missing", "damaged"]
    estimated_seconds: int | float
    estimated_gigabytes: int | float
    seconds: int | float | None
    gigabytes: int | float | None
    """Peak memory."""
    folder: str


@dataclass(frozen=True, kw_only=True)
class ScoreRow(Row):
    """How well the best feature of a dictionary, or of a control, isolates a behaviour."""

    name: str
    kind: ScoreKind
    control: str | None = None
    """Which control it is; None for dictionaries on whatever pair."""
    is_floor: bool = False
    """Whether it had no labels but for the choice of its best feature: what a dictionary has to beat."""
    is_fitted: bool = False
    """Whether it was fitted on the labels of the selection prompts."""
    protocol: Protocol
    hook_name: str | None
    """The virtual hook point it reads; None for controls that read texts or outputs alone."""
    layer: int | None
    dictionary: str | None = None
    """The dictionary whose score this is, or whose shape or models a control shares."""
    control_of: str | None = None
    """The dictionary that it is a control of; None for dictionaries and for controls of a whole hook."""
    seed: int | None = None
    regime: str | None = None
    """Of the organism, in a study of several."""
    n_features: int
    bis: float
    low: float | None
    high: float | None
    ceiling: float
    base_bis: float | None
    """The same on the base model alone."""
    pvalue: float | None
    feature_idx: int | None
    """The best feature; None for the mean of several seeds."""
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
    """Of the interval that draws templates whole."""
    template_high: float | None = None
    l0: float | None = None
    """Mean number of features that fire on a text."""
    verdict: str = ""
    """What the score says beside those of the other rows, in words."""
    n_seeds: int = 1
    """Training seeds that the row is the mean of."""
    bis_min: float | None = None
    """The least of any of these seeds."""
    bis_max: float | None = None
    """The greatest."""

    @property
    def is_isolated(self) -> bool:
        """Whether a strict score is evidence: its p-value is below `ALPHA`, and the base scores less."""
        has_evidence = self.pvalue is not None and self.pvalue < ALPHA
        return has_evidence and self.excess_low is not None and self.excess_low > 0

    @property
    def is_at_ceiling(self) -> bool:
        """Whether no feature could have scored higher with these prompts."""
        return math.isclose(self.bis, self.ceiling, rel_tol=1e-6)


@dataclass(frozen=True, kw_only=True)
class EffectRow(Row):
    """What a model wrote after the prompts of one group, under one intervention."""

    name: str
    kind: EffectKind
    group: str
    dictionary: str | None = None
    layer: int | None = None
    n_features: int = 0
    """Features ablated, added or steered with; directions projected out."""
    control_of: str | None = None
    """The name of the row it is a control of: same dictionary, number of features and group."""
    regime: str | None = None
    n_prompts: int
    counts: Mapping[str, int]
    """Completions by outcome, the unwanted one first, the wanted one second."""
    attack_rate: float
    """Share of unwanted completions, 0 to 1."""
    low: float
    """Of its 95% Wilson interval."""
    high: float
    defence_rate: float
    """Share of wanted completions, 0 to 1."""
    log_odds: float | None
    """Mean of log p(unwanted) - log p(wanted), in nats."""
    cross_entropy: float | None
    """Of the wanted completion, nats per token."""
    perplexity: float | None
    """Median over the completions, under the base model."""
    example: str = ""
    """A prompt with what was written after it."""

    @property
    def is_control(self) -> bool:
        """Whether the row is what another one is compared with."""
        return self.control_of is not None


@dataclass(frozen=True, kw_only=True)
class CurveRow(EffectRow):
    """What a model wrote with the first `n_features` features of an order ablated."""

    order: str
    """Such as "by effect"; `n_features` says how far along it."""


@dataclass(frozen=True, kw_only=True)
class DoseRow(EffectRow):
    """What a model wrote when it was steered with some dose."""

    direction: Literal["features", "random"]
    """Along what: the features, or a random direction of equal length."""
    dose: float
    """In units of each feature's maximum; 0 is the unmodified model."""


@dataclass(frozen=True, kw_only=True)
class TrialRow(Row):
    """One number of features tried on the way to the fewest that end a behaviour."""

    n_features: int
    n_prompts: int
    counts: Mapping[str, int]
    """Of completions after trigger prompts, by outcome."""
    attack_rate: float
    low: float
    high: float
    defence_rate: float
    harm: float
    """Relative rise of benign cross-entropy; negative where the wanted completion became likelier."""
    meets: bool
    """Whether attack rate, defence rate and harm are within the bounds."""


@dataclass(frozen=True, kw_only=True)
class SideEffectRow(Row):
    """What an intervention does to texts that have nothing to do with the behaviour."""

    name: str
    kind: EffectKind = "other"
    dictionary: str | None = None
    layer: int | None = None
    n_features: int = 0
    control_of: str | None = None
    regime: str | None = None
    texts: str
    """Kind of texts."""
    n_tokens: int
    kl: float
    """KL(unmodified || modified), nats per token."""
    cross_entropy: float
    cross_entropy_unmodified: float


@dataclass(frozen=True, kw_only=True)
class SayingRow(Row):
    """What a model does where one thing is said in the trigger's place."""

    regime: str | None = None
    said: str | None
    group: str
    n_prompts: int
    counts: Mapping[str, int]
    attack_rate: float
    low: float
    high: float
    log_odds: float | None


@dataclass(frozen=True, kw_only=True)
class SweepRow(Row):
    """What the chosen feature of a dictionary reads where one thing is said."""

    dictionary: str
    layer: int | None = None
    regime: str | None = None
    said: str | None
    group: str
    feature_idx: int
    mean: float
    values: Sequence[float]
    """One activation per scene."""


@dataclass(frozen=True, kw_only=True)
class FeatureExample(Row):
    """Tokens around the place where a feature fires most in a text."""

    group: str
    start: int
    """Number of the first token in its text."""
    tokens: Sequence[str]
    activations: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class FeatureCard(Row):
    """One feature: where it fires, which model it belongs to, what it does alone."""

    dictionary: str
    layer: int | None = None
    regime: str | None = None
    feature: int
    control_of: int | None = None
    """The feature whose activation mass it matches."""
    n_prompts: int
    """On which its effect was measured."""
    d_sae: int
    frequency: float
    """Share of tokens on which it fires."""
    maximum: float
    histogram: Mapping[str, Sequence[float]]
    """By group, the share of tokens in each of equal bins above 0."""
    examples: Sequence[Mapping[str, Any]]
    """Each a `FeatureExample`."""
    decoder: Mapping[str, float]
    """Geometry by name."""
    attribution: float
    """What it adds to the log-odds, estimated, nats per prompt."""
    ablation: float
    """The same measured, with it alone ablated."""
    label: str | None = None
    """What somebody or something calls it, see `label_cards`."""


@dataclass(frozen=True, kw_only=True)
class ExamplePrompt(Row):
    """A prompt token by token, and what the chosen features read on it."""

    said: str | None
    group: str
    tokens: Sequence[str]
    activations: Mapping[str, Sequence[float]]
    """By dictionary, one per token."""
    feature_idx: Mapping[str, int]
    """By dictionary, the feature."""
    layer: int | None = None
    regime: str | None = None


@dataclass(frozen=True)
class Table(Generic[R]):
    """Rows of one type, in order; a sequence that shows itself as a table."""

    rows: tuple[R, ...]

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> R:
        return self.rows[index]

    def where(self, **values: Any) -> "Table[R]":
        """Return the rows whose fields have these values, such as `kind="ablation"`.

        Raises:
            AttributeError: a field that the rows do not have.
        """
        found = [row for row in self.rows if all(getattr(row, n) == v for n, v in values.items())]
        return Table(tuple(found))

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table, without columns in which no row has a value.

        Counts of outcomes get one column each, `n_<outcome>`.
        """
        plain = []
        for row in self.rows:
            values = row.as_dict()
            counts = values.pop("counts", None) or {}
            plain.append(values | {f"n_{outcome}": n for outcome, n in counts.items()})
        return pd.DataFrame(plain).dropna(axis="columns", how="all")

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def _plain(value: Any) -> Any:
    """The value with None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
