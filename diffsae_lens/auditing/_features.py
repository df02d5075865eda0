"""Which features carry what an imitator does not do, from a dictionary on imitator and suspect."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from diffsae_lens._artifact import build_json, digest
from diffsae_lens._checks import check_choice
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._rows import Table
from diffsae_lens._typed import typed
from diffsae_lens.auditing._feature_search import (
    Against,
    ResidualFeatureRow,
    ResidualFeaturesConfig,
    Search,
)
from diffsae_lens.auditing._imitator import first_layer
from diffsae_lens.auditing._reopened import chosen_texts, reopened
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._doors import Given
from diffsae_lens.pair._hook import layer_of
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.results import ScoreRow
from diffsae_lens.training._train import Kind


@dataclass(frozen=True, kw_only=True)
class ResidualFeatures:
    """The features of one dictionary that carry a residual, and how well one separates the flagged texts."""

    site: str
    kind: Kind
    against: Against
    """What the suspect is compared with."""
    features: Table[ResidualFeatureRow]
    """The features, the largest attribution first."""
    log_odds: float
    """log P(suspect's completion) - log P(imitator's) in the suspect, mean over the texts of `effect`."""
    together: float
    """How much ablating all of `features` lowers `log_odds`."""
    matched_together: float
    """How much ablating their matched features lowers it."""
    swapped: float
    """How much removing the whole difference at the site lowers it."""
    n_ranked: int
    """Flagged texts that features were ranked on."""
    n_measured: int
    """Flagged texts that features were ablated on."""
    held_out: bool
    """Whether the texts for ablation are others, which neither the imitator nor the dictionary saw."""
    isolation: Table[ScoreRow]
    """Strict BIS of the dictionary and its controls, flagged texts against others: selected on the texts
    that the imitator was taught, scored on the rest. No rows if `held_out` is false."""

    def to_frame(self) -> Any:
        """Return the features as a table."""
        return self.features.to_frame()


@typed
def residual_features(  # noqa: PLR0913
    path: str | Path,
    base: Given,
    suspect: Given,
    texts: Sequence[Text],
    *,
    site: str,
    kind: Kind = "diff",
    against: Against = "imitator",
    flagged: Sequence[int] | None = None,
    config: ResidualFeaturesConfig | None = None,
    options: LoadOptions | None = None,
    **overrides: Any,
) -> ResidualFeatures:
    """Find the features that carry what the suspect does and its imitator does not.

    A Diff-SAE or crosscoder is trained on the difference of an imitator and the suspect, on the texts that
    the imitator was taught, with the suspect's completions. Features are ranked by attribution of
    log P(suspect's completion) - log P(imitator's completion) on the flagged texts among these, and ablated
    on the flagged texts that the imitator never saw, next to random features that write as much. If all
    flagged texts are in one fold, they serve for both, and `held_out` is false.

    Results are stored in `<path>/features` and read by the next call.

    Args:
        path: the folder of a finished audit.
        base: the base model of the audit.
        suspect: the suspect of the audit.
        texts: the texts of the audit.
        site: hook of the models, such as `blocks.22.hook_resid_post`; imitators differ from the base only
            in the upper half of the layers.
        kind: `diff` for a Diff-SAE, `crosscoder` for a crosscoder.
        against: `imitator`, or `base` to use the difference of base and suspect instead.
        flagged: indices of texts; by default those that the audit flagged, or else those among the largest
            residuals that hold its strongest candidate.
        config: settings of the dictionary and its features.
        options: how to load the models.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        The features, and the strict BIS of the dictionary.

    Raises:
        FileNotFoundError: `path` holds no finished audit.
        ValueError: the audit was made with other models or texts; there are no flagged texts; the site does
            not exist, or the imitator equals the base there; or both write the same after the flagged texts.
        TypeError: an argument is not a model, texts or settings.
    """
    config = config or ResidualFeaturesConfig()
    check_choice("kind", kind, get_args(Kind))
    check_choice("against", against, get_args(Against))
    audit, results = reopened(path, base, suspect, texts, options, overrides)
    first, layer = first_layer(audit.models.base), layer_of(site)
    if against == "imitator" and layer is not None and layer < first:
        raise InvalidValueError(
            f"`site` {site} is below layer {first}, the first that an imitator changes, so that it is the "
            f"base there; choose a later layer, or `against='base'`"
        )
    of = chosen_texts(results, flagged)
    search = Search(audit=audit, flagged=of, against=against, config=config)
    sizes = asdict(config)
    folder = audit.path / "features" / f"{against}-{digest([of, sizes])[:8]}"
    recipe = {
        **audit.recipe, "cell": "features", "site": site, "kind": kind, "against": against, "flagged": of,
        "sizes": sizes,
    }  # fmt: skip
    stored = build_json(
        folder / f"{kind}-{site}.json", recipe, lambda: search.run(site, kind, folder)
    )
    tables = {"features": ResidualFeatureRow, "isolation": ScoreRow}
    rows = {n: Table(tuple(map(row.from_dict, stored[n]))) for n, row in tables.items()}
    return ResidualFeatures(**{**stored, **rows, "site": site, "kind": kind, "against": against})
