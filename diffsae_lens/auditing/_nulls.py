"""Clean fine-tunes as sharp as a suspect: what an audit finds where there is nothing to find.

A null is the audit of a model known to be clean. Many nulls determine what counts as suspicious: a conformal
p-value is the share of clean models, the suspect counted as one, that look as suspicious.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from diffsae_lens._artifact import digest, read_json, write_json
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._experiment import STATISTIC

SHIPPED = Path(__file__).parent / "nulls"
"""Statistics of clean fine-tunes of the embedded model."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """Measurements from the audit of one clean model."""

    name: str
    strength: float
    """Strength of its strongest candidate; see `CandidateRow.strength`."""
    residuals: tuple[float, ...]
    """Residuals of its texts, in units of its own scale."""


@dataclass(frozen=True, kw_only=True)
class Nulls:
    """Measurements from audits of clean models with the same base, at the same settings."""

    base: str
    """The base's fingerprint."""
    settings: str
    """See `settings_digest`."""
    models: tuple[Null, ...]

    def p_value(self, strength: float) -> float:
        """Return the share of clean models, the suspect counted as one, with as strong a candidate."""
        n = sum(null.strength >= strength for null in self.models)
        return (1 + n) / (len(self.models) + 1)

    def p_values(self, residuals: Sequence[float]) -> np.ndarray:
        """Return, for each text, the share of clean models' texts with as large a residual."""
        known = np.sort(np.concatenate([null.residuals for null in self.models]))
        n_as_large = len(known) - np.searchsorted(known, np.asarray(residuals), side="left")
        return (1 + n_as_large) / (len(known) + 1)

    def flags(self, residuals: Sequence[float], alpha: float) -> np.ndarray:
        """Return which texts stand out, at a false discovery rate of `alpha` (Benjamini and Hochberg)."""
        return false_discovery_control(self.p_values(residuals)) <= alpha

    def flagged_from(self, k: int, n_texts: int, alpha: float) -> float:
        """Return the residual from which `k` of `n_texts` texts are flagged together, in units of the scale.

        They are if their p-values reach `k * alpha / n_texts`. Infinite if the nulls are too few texts.
        """
        known = np.sort(np.concatenate([null.residuals for null in self.models]))
        n_above = int(np.floor(k * alpha / n_texts * (len(known) + 1) - 1 + 1e-9))
        return float(known[max(0, len(known) - n_above - 1)]) if n_above >= 0 else float("inf")

    def found_from(self, alpha: float) -> float:
        """Return the strength above which a candidate's p-value is at most `alpha`; infinite if none is."""
        strengths = sorted(null.strength for null in self.models)
        n_above = int(np.floor(alpha * (len(strengths) + 1) - 1 + 1e-9))
        return strengths[max(0, len(strengths) - n_above - 1)] if n_above >= 0 else float("inf")

    def enough(self, alpha: float) -> bool:
        """Return whether there are enough clean models for a p-value as small as `alpha`."""
        return bool(np.isfinite(self.found_from(alpha)))

    def save(self, path: str | Path) -> None:
        """Write the nulls as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Nulls":
        """Read nulls from a JSON file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file holds something else.
        """
        stored = read_json(path)
        try:
            models = tuple(
                Null(
                    name=str(m["name"]),
                    strength=float(m["strength"]),
                    residuals=tuple(m["residuals"]),
                )
                for m in stored["models"]
            )
            return cls(base=stored["base"], settings=stored["settings"], models=models)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidValueError(
                f"{path} does not hold statistics of clean models ({error!r}); make them with "
                "`diffsae-lens zoo --nulls`"
            ) from error


def settings_digest(config: AuditConfig, lexicon: Mapping[str, Sequence[str]]) -> str:
    """Return a digest of what two audits must share to be comparable."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("alpha", "seed")}
    return digest(
        [settings | STATISTIC, {kind: list(entries) for kind, entries in lexicon.items()}]
    )


def find_nulls(
    nulls: "Nulls | str | Path | None", base: str, config: AuditConfig, lexicon: Mapping[str, Any]
) -> Nulls | None:
    """Return the statistics that an audit is compared with; None if there are none.

    Args:
        nulls: the statistics, a file of them, or None for those shipped with the package.
        base: the base's fingerprint.
        config: settings of the audit.
        lexicon: lexicon of the audit.

    Raises:
        ValueError: the given statistics are for another base or other settings.
    """
    settings = settings_digest(config, lexicon)
    if nulls is None:
        for file in sorted(SHIPPED.glob("*.json")):
            found = Nulls.load(file)
            if (found.base, found.settings) == (base, settings):
                return found
        return None
    found = nulls if isinstance(nulls, Nulls) else Nulls.load(nulls)
    for what, ours, theirs in (("base", base, found.base), ("settings", settings, found.settings)):
        if ours != theirs:
            raise InvalidValueError(
                f"`nulls` are audits with another {what}, so nothing can be compared with them; make them "
                "anew with `diffsae-lens zoo --nulls`, or give the audit the same"
            )
    return found
