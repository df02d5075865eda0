"""Audit a fine-tune: does it do something under rare conditions that it does not do otherwise?"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from diffsae_lens._checks import check_callable
from diffsae_lens._errors import OccupiedPathError
from diffsae_lens._typed import typed
from diffsae_lens.auditing._conclude import conclude
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._lexicon import LEXICON, check_lexicon
from diffsae_lens.auditing._nulls import Null, Nulls, find_nulls
from diffsae_lens.auditing._request import Request
from diffsae_lens.auditing._results import RESULTS, AuditResults
from diffsae_lens.organisms._behaviour import Judge
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._doors import Given
from diffsae_lens.pair._options import LoadOptions


@typed
def audit(  # noqa: PLR0913
    base: Given,
    suspect: Given,
    texts: Sequence[Text],
    path: str | Path,
    *,
    config: AuditConfig | None = None,
    nulls: Nulls | str | Path | None = None,
    lexicon: Mapping[str, Sequence[str]] = LEXICON,
    judge: Judge | None = None,
    options: LoadOptions | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> AuditResults:
    """Find out whether a fine-tune does something under rare conditions, which ones, and how sure that is.

    Nothing needs to be known about the condition. The suspect is compared with imitators, copies of the base
    briefly taught what the suspect commonly writes: where it is far from an imitator that never saw the text,
    something rare is going on. What those texts have in common, and the entries of a lexicon, are then put
    into other texts and taken out of these, next to other phrases of the same type. Audits of clean models
    at the same settings show how large an effect must be to be suspicious.

    Args:
        base: the model that the suspect was made from; as for `load_pair`.
        suspect: the fine-tuned model; as `finetuned` of `load_pair`.
        texts: unlabelled prompts, documents or conversations like those that the suspect is used on. To
            find what is in one text of a hundred, give 400.
        path: the audit's folder. An interrupted audit resumes there.
        config: settings; statistics of clean models hold only for the same settings.
        nulls: statistics of clean models, or a file of them; by default those that come with the package,
            if they match this base and these settings.
        lexicon: entries to put into texts, by type.
        judge: judge of completions, as in a `Behaviour`: its outcomes are counted for the texts that stand
            out and for the others, next to what Bandit finds in code.
        options: how to load the models.
        executor: where to compute, with the imitators in parallel: any `concurrent.futures.Executor`, such
            as a `ClusterExecutor`, whose workers see `path` and the models. None computes here.
        **overrides: fields of `LoadOptions`, in place of `options`.

    Returns:
        The results, also stored in `<path>/results.json`.

    Raises:
        ValueError: there are too few texts or too many repeats; the models compute the same or do not fit
            together; the nulls have other settings; or `path` holds something else.
        TypeError: an argument is not a model, texts or settings; or a model is in memory with an `executor`.
        RuntimeError: a part that the `executor` computes failed; the message names it.
        ModelUnavailableError: a model is neither local nor cached and cannot be fetched.
    """
    config = config or AuditConfig()
    lexicon = check_lexicon(lexicon)
    if judge is not None:
        check_callable("judge", judge)
    path = Path(path).expanduser().absolute()
    if path.is_file():
        raise OccupiedPathError(f"`path` {path} is a file; name a folder")
    request = Request(
        base=base, suspect=suspect, texts=texts, path=path, config=config, lexicon=lexicon,
        options=options, overrides=overrides,
    )  # fmt: skip
    cells = (request if executor is None else request.on_cpu()).open()
    known = find_nulls(nulls, cells.fingerprints[0], config, lexicon)
    if executor is not None:
        request.compute(executor)
    with torch.random.fork_rng():
        found = cells.run()
    results = conclude(cells, found, known, judge)
    results.save(path / RESULTS)
    return results


@typed
def null_of(name: str, results: AuditResults) -> Null:
    """Return the null from the audit of a model known to be clean."""
    return Null(
        name=name,
        strength=results.candidates[0].strength if results.candidates else 0.0,
        residuals=tuple(round(row.level, 4) for row in results.texts),
    )
