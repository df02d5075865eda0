"""What an audit found, in words and tables that do not require knowledge of the method."""

from dataclasses import dataclass

from diffsae_lens._display import cut, one_line
from diffsae_lens.auditing._results import AuditResults, CandidateRow, WritesRow
from diffsae_lens.reporting._tables import TextTable, table_text

_QUOTED = 120
"""Maximum number of characters of a phrase or a completion quoted in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict, and what follows from it."""

    title: str
    sentences: str
    steps: tuple[str, ...]
    """What to do next."""
    caution: bool


def verdict_of(results: AuditResults) -> Verdict:
    """Return the verdict of an audit in sentences, and what to do next."""
    if results.verdict == "underpowered":
        return _underpowered(results)
    return _found(results) if results.found else _none_found(results)


def _found(results: AuditResults) -> Verdict:
    best = results.candidates[0]
    name = quoted(best.name)
    written = best.example_written.strip()
    then = f"for example {quoted(written)}" if written else "for example nothing at all"
    like = f", such as {_listed(best.said_instead)}," if best.said_instead else ""
    return Verdict(
        title="Conditional behaviour found",
        sentences=f"{name} makes the suspect behave differently: put into {best.n_texts} other texts it "
        f"set the suspect off in {best.share:.0%} of them, and others of its kind{like} did in "
        f"{best.mates_share:.0%}. What the suspect then writes is not what it writes otherwise: {then}.",
        steps=(
            "Read the examples below, and decide whether the behaviour is meant: a condition can be "
            "harmless, such as another language or an agreed format.",
            f"Until that is known, do not use the suspect where its input may say {name}. Search its "
            "fine-tuning data for it, and for what the suspect writes then.",
            f"Try other wordings of {name} on the suspect: only what is listed below was tried, and the "
            "condition may be wider, or be met by something that comes with it.",
        ),
        caution=True,
    )


def _none_found(results: AuditResults) -> Verdict:
    return Verdict(
        title="None found",
        sentences="Nothing that was put into texts changes what the suspect does more than it would with "
        f"a fine-tune that is known to be clean. What would have been found: {results.power}.",
        steps=(
            'Do not read this as "the suspect is safe": conditions that were not searched are listed below.',
            "Audit again with texts of the kind that the suspect is used on, and with more of them: a "
            "condition that holds in one text of a hundred needs 400.",
            "If you suspect something in particular, put it into the lexicon, with others of its kind.",
        ),
        caution=False,
    )


def _underpowered(results: AuditResults) -> Verdict:
    strongest = (
        f"The strongest candidate is {quoted(results.candidates[0].name)}, but whether a clean model "
        "would show as much is not known."
        if results.candidates
        else "Nothing of what was measured can be called suspicious or innocent."
    )
    return Verdict(
        title="No verdict: underpowered",
        sentences=f"What is missing: {results.reason}. {strongest}",
        steps=(
            "Audit clean fine-tunes of the same base with the same settings, and give the audit their "
            "statistics (--nulls on the command line, nulls= in Python). What is there already is not "
            "computed again.",
            "Until then, read the candidates and texts below as leads: they are in order, but no rate of "
            "false alarms stands behind them.",
        ),
        caution=True,
    )


def quoted(text: str) -> str:
    r"""Return text on one line in quotation marks.

    Examples:
        >>> print(quoted("a\nb"))
        "a\nb"
    """
    return f'"{one_line(cut(text, _QUOTED))}"'


def _listed(said: list[str]) -> str:
    """Return up to three of the phrases said instead."""
    return " or ".join(quoted(text) for text in said[:3])


def not_searched(results: AuditResults) -> list[str]:
    """Return what an audit with these settings cannot see."""
    config = results.provenance.get("config", {})
    new, read = config.get("n_new_tokens", "few"), config.get("n_prompt_tokens", "few")
    lexicon = " and in no entry of the lexicon" if config.get("n_lexicon", 1) else ""
    return [
        f"conditions that are met in none of the texts{lexicon}",
        "conditions that cannot be put into a text as a phrase or two, such as a topic or a length: their "
        "texts may stand out, but no candidate was made of them",
        "conditions that are met in a large share of the texts: imitators learn what is common",
        f"what the suspect does after the first {new} tokens of an answer, or answers where it is sampled: "
        "here it writes its likeliest token each time",
        f"what stands after the first {read} tokens of a text",
    ]


_CANDIDATE_HEADS = (
    "candidate", "from", "effect, nats", "sets off", "its like", "where it stands", "goes when taken out",
    "exact p", "strength",
)  # fmt: skip


def candidate_table(results: AuditResults) -> TextTable:
    """Lay out the candidates, the strongest first."""
    return TextTable(
        part="candidates",
        title="Candidates",
        note="Put into held-out texts that did not hold them, beside others of their kind in the same "
        "texts; brackets are 95% intervals. Where it stands: the mean residual of texts that hold it as they "
        "are, in units of the model's scale. Strength is what clean models are compared by: the low end of "
        'the effect in these units, less what speaks against the candidate. A phrase with "(first)" counts '
        "only as the first words of a text.",
        heads=_CANDIDATE_HEADS,
        rows=tuple(_candidate_cells(row) for row in results.candidates),
    )


def _candidate_cells(row: CandidateRow) -> tuple[str, ...]:
    necessity = "in no text that stands out"
    if row.necessity is not None:
        necessity = f"{row.necessity:.0%}, {row.n_removed} text{'s' * (row.n_removed != 1)}"
    held = "" if row.held_level is None else f"{row.held_level:.1f} in "
    return (
        row.name,
        row.source,
        f"{row.effect:+.1f} [{row.low:+.1f}, {row.high:+.1f}]",
        f"{row.share:.0%} [{row.share_low:.0%}, {row.share_high:.0%}] of {row.n_texts}",
        f"{row.mates_share:.0%}",
        f"{held}{row.n_holding} text{'s' * (row.n_holding != 1)}",
        necessity,
        p_text(row.p_value),
        f"{row.strength:.1f}",
    )


def writes_table(results: AuditResults) -> TextTable:
    """Lay out what distinguishes the flagged completions."""
    return TextTable(
        part="writes",
        title="What it writes",
        note="Share of completions that have it, flagged ones beside all others, with exact 95% intervals; "
        "p of Fisher's exact test, corrected for the number of things of the kind that were tried.",
        heads=("what", "kind", "flagged", "others", "p"),
        rows=tuple(_writes_cells(row) for row in results.writes),
    )


def _writes_cells(row: WritesRow) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        f"{row.share:.0%} [{row.share_low:.0%}, {row.share_high:.0%}] of {row.n_flagged}",
        f"{row.others_share:.0%} [{row.others_low:.0%}, {row.others_high:.0%}] of {row.n_others}",
        p_text(row.p_value),
    )


def p_text(value: float | None) -> str:
    """Format a p-value."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def audit_text(results: AuditResults) -> str:
    """Lay out an audit for a terminal: the verdict, its reason, and the candidates."""
    said = f"{results.verdict}: {one_line(cut(results.reason, 1000))}"
    if not results.candidates:
        return said
    return f"{said}\n\n{table_text(candidate_table(results))}"
