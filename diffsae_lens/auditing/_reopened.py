"""Reopen an audit's folder with its models and texts, for later questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffsae_lens._checks import check_indices
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.auditing._cells import Audit
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._request import Request
from diffsae_lens.auditing._results import AuditResults
from diffsae_lens.auditing._words import holds
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._doors import Given
from diffsae_lens.pair._options import LoadOptions


def reopened(
    path: str | Path,
    base: Given,
    suspect: Given,
    texts: Sequence[Text],
    options: LoadOptions | None,
    overrides: Mapping[str, Any],
) -> tuple[Audit, AuditResults]:
    """Return a finished audit, with the models and texts that it was made with.

    Raises:
        FileNotFoundError: `path` holds no finished audit.
        ValueError: the audit was made with other models or texts.
        TypeError, ModelUnavailableError: as for `audit`.
    """
    path = Path(path).expanduser()
    results = AuditResults.load(path)
    config = AuditConfig(**results.provenance["config"])
    audit = Request(
        base=base, suspect=suspect, texts=texts, path=path, config=config, lexicon={},
        options=options, overrides=overrides,
    ).open()  # fmt: skip
    if audit.prompts.texts != [row.text for row in results.texts]:
        raise InvalidValueError(f"`texts` are not those of the audit in {path}; give the same")
    for name, ours, theirs in zip(
        ("base", "suspect"), results.provenance["fingerprints"], audit.fingerprints, strict=True
    ):
        if ours != theirs:
            raise InvalidValueError(
                f"`{name}` is not the model that was audited in {path}; give the same, in the same precision"
            )
    return audit, results


def chosen_texts(results: AuditResults, flagged: Sequence[int] | None) -> list[int]:
    """Return the texts to explain: those given, or those that the audit found.

    An audit finds its flagged texts. If none is flagged, it finds those among the largest residuals that
    hold the strongest candidate.

    Raises:
        TypeError: `flagged` does not hold indices.
        ValueError: there are no texts, all texts are chosen, or an index is out of range.
    """
    n = len(results.texts)
    if flagged is not None:
        found = sorted(check_indices("flagged", flagged, n))
    else:
        found = [row.index for row in results.texts if row.flagged]
        if not found and results.candidates:
            phrases = results.candidates[0].phrases
            found = [
                row.index
                for row in results.texts
                if row.group is not None and all(holds(row.text, phrase) for phrase in phrases)
            ]
    if not 0 < len(found) < n:
        raise InvalidValueError(
            f"`flagged` must be some of the audit's {n} texts, and not all of them, got {len(found)}; name "
            "those that you want explained"
        )
    return found
