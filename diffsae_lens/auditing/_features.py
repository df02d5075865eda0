"""Which features carry what an imitator does not do: a dictionary on imitator -> suspect."""

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
    """The features of one dictionary that carry a residual, and how well one of them tells its texts."""

    site: str
    kind: Kind
    against: Against
    """What the suspect is compared with."""
    features: Table[ResidualFeatureRow]
    """By attribution, the largest first."""
    log_odds: float
    """log P(suspect's completion) - log P(imitator's) in the suspect, mean over the texts of `effect`."""
    together: float
    """What ablating all of `features` takes from it."""
    matched_together: float
    """Likewise with the matched ones."""
    swapped: float
    """Likewise with the whole difference at the site taken out."""
    n_ranked: int
    """Flagged texts that features were ranked on."""
    n_measured: int
    """Flagged texts that they were ablated on."""
    held_out: bool
    """Whether these are others, which neither the imitator nor the dictionary saw."""
    isolation: Table[ScoreRow]
    """Strict BIS of the dictionary and its controls, flagged texts against others; chosen on the texts that
    the imitator was taught, scored on the others. No rows where `held_out` is false."""

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
    the imitator was taught, with what the suspect wrote after them. Features are ranked by attribution of
    log P(suspect's completion) - log P(imitator's completion) on flagged texts among these, and ablated on
    the flagged texts that the imitator never saw, beside random features that write as much. Where flagged
    texts are all of one fold, they serve for both, and `held_out` is false.

    What is made is kept in `<path>/features`, and read by the next call.

    Args:
        path: the folder of a finished audit.
        base: as for the audit.
        suspect: as for the audit.
        texts: as for the audit.
        site: the models' hook, such as `blocks.22.hook_resid_post`; imitators differ from the base in the
            upper half of the layers alone.
        kind: `diff` for a Diff-SAE, `crosscoder` for a crosscoder.
        against: `imitator`, or `base` for the same on the difference of base and suspect.
        flagged: numbers of texts; by default those that the audit flagged, or else those that stand out and
            hold its strongest candidate.
        config: sizes.
        options: how the models are loaded.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        The features, and the strict BIS of the dictionary.

    Raises:
        FileNotFoundError: no audit is finished there.
        ValueError: it was made with other models or texts; no flagged texts; a site that does not exist, or
            where the imitator is the base; or flagged texts on which both write the same.
        TypeError: something else than models, texts and settings.
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
