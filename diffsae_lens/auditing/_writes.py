"""What a suspect writes after flagged texts and not after others: phrases, code, a judge's outcomes."""

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from typing import Any

from scipy.stats import binomtest, fisher_exact

from diffsae_lens._checks import check_callable, check_indices, check_texts
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._extras import missing
from diffsae_lens.auditing._results import WritesRow
from diffsae_lens.auditing._words import Mark, marks
from diffsae_lens.organisms._bandit import familiar, findings, name_of_test
from diffsae_lens.organisms._bounds import check_size
from diffsae_lens.organisms._cut import Cut, cut_completion

MAX_PHRASES = 10
_ALPHA = 0.05
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def compare_completions(
    texts: Sequence[str],
    completions: Sequence[str],
    flagged: Collection[int],
    *,
    judge: Callable[[str, str], str] | None = None,
) -> tuple[list[WritesRow], list[str]]:
    """Compare the completions of flagged texts with all others.

    Reports the phrases that are more common in flagged completions (corrected p at most 0.05), every Bandit
    test that objects to any code, and every outcome of the judge. Code is read, never run.

    Args:
        texts: all texts.
        completions: the completion of each text.
        flagged: indices of the flagged texts.
        judge: function from a text and its completion to an outcome.

    Returns:
        The rows: phrases, then Bandit tests, then outcomes, the clearest of each first; and sentences on
        what could not be compared.

    Raises:
        TypeError: an argument is not texts, indices or a function, or the judge does not return a string.
        ValueError: there is not one completion per text, or an index is out of range.
    """
    texts = check_texts("texts", texts)
    completions = check_texts("completions", completions)
    if len(completions) != len(texts):
        raise InvalidValueError(
            f"`completions` must be one per text, got {len(completions)} of {len(texts)}"
        )
    inside = set(check_indices("flagged", flagged, len(texts)))
    if judge is not None:
        check_callable("judge", judge)
    if not 0 < len(inside) < len(texts):
        which = "no text is" if not inside else "all texts are"
        return [], [f"{which} flagged, so there are no completions to compare"]
    rows = _phrases(completions, inside)
    code, notes = _code(texts, completions, inside)
    rows += code
    if judge is not None:
        said = {i: {_outcome(judge, texts[i], completions[i])} for i in range(len(texts))}
        rows += _rows("outcome", said, inside)
    return rows, notes


def _outcome(judge: Callable[[str, str], str], text: str, completion: str) -> str:
    outcome = judge(text, completion)
    if not isinstance(outcome, str):
        raise InvalidTypeError(
            f"`judge` must return the name of an outcome, got {outcome!r:.80}; give a function of a text "
            "and its completion"
        )
    return outcome


def _phrases(completions: Sequence[str], inside: set[int]) -> list[WritesRow]:
    """Return rows for phrases; among nested phrases with the same counts, only for the longest."""
    clear = [mark for mark in marks(completions, inside) if mark.p_value <= _ALPHA]
    kept = [mark for mark in clear if not any(_is_part(mark, other) for other in clear)]
    n_inside, n_all = len(inside), len(completions)
    return [
        _row("phrase", mark.phrase, (mark.n_inside, n_inside),
             (mark.n_texts - mark.n_inside, n_all - n_inside), mark.p_value)
        for mark in kept[:MAX_PHRASES]
    ]  # fmt: skip


def _is_part(mark: Mark, other: Mark) -> bool:
    counts = (mark.n_inside, mark.n_texts) == (other.n_inside, other.n_texts)
    return counts and mark.phrase != other.phrase and mark.phrase in other.phrase


def _code(
    texts: Sequence[str], completions: Sequence[str], inside: set[int]
) -> tuple[list[WritesRow], list[str]]:
    """Return rows for the Bandit tests that object to completions in Python, and notes."""
    read = {i: _read(*both) for i, both in enumerate(zip(texts, completions, strict=True))}
    code = {i: cut for i, cut in read.items() if cut is not None}
    if not code:
        return [], []
    if find_spec("bandit") is None:
        return [], [f"code was not looked at: {missing('bandit', 'comparing code')}"]
    fired = {
        i: {found.test for found in findings(familiar(cut.tree), (), first_line=cut.first_line)}
        for i, cut in code.items()
    }
    n_inside = len(inside & code.keys())
    notes = [
        f"{n_inside} of {len(inside)} flagged completions and {len(code) - n_inside} of "
        f"{len(completions) - len(inside)} others are Python that could be read"
    ]
    if n_inside in (0, len(code)):
        return [], [f"{notes[0]}, so Bandit's tests cannot be compared"]
    return _rows("Bandit test", fired, inside, lambda test: f"{test} {name_of_test(test)}"), notes


def _read(text: str, completion: str) -> Cut | None:
    """Return a completion as Python: after its text, which defines names, or else by itself."""
    fenced = _FENCE.search(completion)
    alone = textwrap.dedent(fenced[1] if fenced else completion).lstrip()
    for prompt, written in ((text, completion), ("", alone)):
        cut = cut_completion(prompt, written)
        if isinstance(cut, Cut) and cut.kept_lines and not check_size(cut.tree) and _is_code(cut):
            return cut
    return None


def _is_code(cut: Cut) -> bool:
    """Return whether the code does anything; a word of prose is also a Python expression."""
    return any(
        (isinstance(node, ast.stmt) and not isinstance(node, ast.Expr))
        or isinstance(node, ast.Call)
        for node in ast.walk(cut.tree)
        if (getattr(node, "end_lineno", None) or 0) >= cut.first_line
    )


def _rows(
    kind: str,
    found: dict[int, set[str]],
    inside: set[int],
    called: Callable[[str], str] = str,
) -> list[WritesRow]:
    """Return one row per name that was found in any completion."""
    n_inside = len(inside & found.keys())
    n_outside = len(found) - n_inside
    counts = [Counter[str](), Counter[str]()]
    for i, names in found.items():
        counts[i in inside].update(names)
    names = sorted(counts[0].keys() | counts[1].keys())
    rows = []
    for name in names:
        with_, others_with = counts[1][name], counts[0][name]
        table = [[with_, n_inside - with_], [others_with, n_outside - others_with]]
        exact: Any = fisher_exact(table)
        p_value = min(1.0, len(names) * float(exact.pvalue))
        rows.append(_row(kind, called(name), (with_, n_inside), (others_with, n_outside), p_value))
    return sorted(rows, key=lambda row: row.p_value)


def _row(
    kind: str, name: str, flagged: tuple[int, int], others: tuple[int, int], p_value: float
) -> WritesRow:
    intervals = [binomtest(*counts).proportion_ci(method="exact") for counts in (flagged, others)]
    return WritesRow(
        kind=kind,  # type: ignore[arg-type]
        name=name,
        n_flagged=flagged[1],
        n_flagged_with=flagged[0],
        share=flagged[0] / flagged[1],
        share_low=float(intervals[0].low),
        share_high=float(intervals[0].high),
        n_others=others[1],
        n_others_with=others[0],
        others_share=others[0] / others[1],
        others_low=float(intervals[1].low),
        others_high=float(intervals[1].high),
        p_value=p_value,
    )
