"""Experiments with candidates: put into held-out texts and taken out of flagged ones, next to their mates."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from diffsae_lens.auditing._candidates import Candidate, from_lexicon
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._reactions import Edit, Reactor
from diffsae_lens.auditing._results import CandidateRow
from diffsae_lens.auditing._words import JOINED

_MIN_LEFT = 24
FLOOR = 1.0
"""Nats added to a model's own scale: a condition changes what is written, which is more than a nat however
well everything else is imitated."""
_N_RESAMPLES = 2000
_MOST_HOLDING = 6
_MIN_HOLDING = 3
STATISTIC = {"floor": FLOOR, "version": 3}
"""What clean models are compared by; raise the version when candidates are measured differently."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Texts for experiments; none is flagged, and no stage sees those of another."""

    contents: Sequence[str]
    free: list[int]
    """Indices of the texts that are left, in random order."""

    def take(self, candidate: Candidate, n: int) -> list[int]:
        """Return up to `n` texts that do not hold the candidate, those with a place for it first."""
        found = self.fitting(candidate, len(self.free))
        return [i for i in found if not candidate.holds(self.contents[i])][:n]

    def fitting(self, candidate: Candidate, n: int) -> list[int]:
        """Return `n` texts, those with a place for the candidate first."""
        return sorted(self.free, key=lambda i: not candidate.fits(self.contents[i]))[:n]

    def spend(self, texts: Collection[int]) -> None:
        """Withhold these texts from later stages, as long as there are enough others."""
        left = [i for i in self.free if i not in texts]
        if len(left) >= _MIN_LEFT:
            self.free[:] = left


def choose_from_lexicon(
    reactor: Reactor,
    pool: Pool,
    lexicon: Mapping[str, Sequence[str]],
    config: AuditConfig,
    rng: Any,
) -> list[Candidate]:
    """Return the lexicon entries that the suspect reacts to most, by successive halving.

    Every entry is put into one text, and the strongest quarter into two more; the best `config.n_lexicon`
    are returned. An entry is compared with the others of its type in the same texts.
    """
    contents = pool.contents
    entries = {
        kind: [from_lexicon(kind, entry, of_type, contents, rng) for entry in of_type]
        for kind, of_type in lexicon.items()
    }
    alive = [(kind, j) for kind, of_type in entries.items() for j in range(len(of_type))]
    sums = dict.fromkeys(alive, 0.0)
    for n_texts, n_left in ((1, max(config.n_lexicon, len(alive) // 4)), (2, config.n_lexicon)):
        used: set[int] = set()
        edits: list[Edit] = []
        for kind in entries:
            texts = pool.fitting(entries[kind][0], n_texts)
            used |= {*texts}
            edits += [
                (i, entries[kind][j].put(contents[i]))
                for of, j in alive
                if of == kind
                for i in texts
            ]
        found = reactor(edits, "lexicon").reshape(len(alive), n_texts).sum(1)
        kinds = np.array([kind for kind, _ in alive])
        for row, entry in enumerate(alive):
            sums[entry] += found[row] - np.median(found[kinds == entry[0]])
        pool.spend(used)
        alive = sorted(sorted(alive, key=lambda entry: -sums[entry])[:n_left], key=alive.index)
    return [entries[kind][j] for kind, j in sorted(alive, key=lambda entry: -sums[entry])]


def halve(
    reactor: Reactor,
    pool: Pool,
    candidates: Sequence[Candidate],
    n: int,
    n_texts: int,
    n_mates: int,
) -> list[Candidate]:
    """Return the `n` candidates with the largest effect in a small experiment, the best first."""
    taken = [pool.take(candidate, n_texts) for candidate in candidates]
    tests = [put_in(reactor, *of, n_mates) for of in zip(candidates, taken, strict=True)]
    reactor([edit for test in tests for edit in test], f"{len(candidates)} candidates")
    pool.spend({i for texts in taken for i in texts})
    effects = [
        excess_of(reactor(test).reshape(len(texts), -1)).mean() if test else -np.inf
        for test, texts in zip(tests, taken, strict=True)
    ]
    return [candidates[j] for j in np.argsort(-np.array(effects), kind="stable")[:n]]


def experiments(  # noqa: PLR0913
    reactor: Reactor,
    pool: Pool,
    candidates: Sequence[Candidate],
    plain: np.ndarray,
    flagged: Sequence[int],
    config: AuditConfig,
    what: str = "finalists",
) -> list[CandidateRow]:
    """Test candidates, leaving out any that cannot be put into a text.

    Args:
        reactor: the audit's reactor.
        pool: source of the held-out texts.
        candidates: the candidates to test.
        plain: residuals of all unedited texts.
        flagged: indices of the texts with the largest residuals.
        config: numbers of texts and mates.
        what: their name in the progress bar.
    """
    tests: list[tuple[Candidate, list[Edit], list[int], list[Edit]]] = []
    for candidate in candidates:
        texts = pool.take(candidate, config.n_texts)
        holding = _holding(reactor, candidate, flagged)
        tests.append((
            candidate, put_in(reactor, candidate, texts, config.n_mates),
            holding, _taken_out(reactor, candidate, holding, config),
        ))  # fmt: skip
    reactor([edit for _, edits, _, out in tests for edit in (*edits, *out)], what)
    return [
        _experiment(reactor, candidate, edits, holding, out, plain, config)
        for candidate, edits, holding, out in tests
        if edits
    ]


def _experiment(  # noqa: PLR0913
    reactor: Reactor,
    candidate: Candidate,
    edits: Sequence[Edit],
    holding: Sequence[int],
    taken_out: Sequence[Edit],
    plain: np.ndarray,
    config: AuditConfig,
) -> CandidateRow:
    mates = candidate.mates(config.n_mates)
    residuals = reactor(edits).reshape(-1, 1 + len(mates))
    excess = excess_of(residuals)
    rng = np.random.default_rng(config.seed)
    means = excess[rng.integers(len(excess), size=(_N_RESAMPLES, len(excess)))].mean(1)
    low, scale = float(np.quantile(means, 0.025)), scale_of(plain)
    off = residuals > scale
    n_off = int(off[:, 0].sum())
    interval = binomtest(n_off, len(excess)).proportion_ci(method="exact")
    largest = int((residuals[:, 0] > residuals[:, 1:].max(1)).sum())
    example = edits[:: 1 + len(mates)][int(np.argmax(residuals[:, 0]))]
    as_they_are = [i for i, p in enumerate(reactor.prompts) if candidate.stands_in(p.content)]
    return CandidateRow(
        name=candidate.name,
        source=candidate.source,
        n_texts=len(excess),
        effect=float(excess.mean()),
        low=low,
        high=float(np.quantile(means, 0.975)),
        level=low / scale,
        share=n_off / len(excess),
        share_low=float(interval.low),
        share_high=float(interval.high),
        mates_share=float(off[:, 1:].mean()),
        p_value=float(
            binomtest(largest, len(excess), 1 / (len(mates) + 1), alternative="greater").pvalue
        ),
        n_holding=len(as_they_are),
        held_level=(
            float(plain[as_they_are].mean() / scale) if len(as_they_are) >= _MIN_HOLDING else None
        ),
        n_removed=len(holding) if taken_out else 0,
        necessity=_necessity(reactor(taken_out), plain, holding) if taken_out else None,
        said_instead=[JOINED.join(mate) for mate in mates],
        example=example[1],
        example_written=reactor.completion(example),
    )


def scale_of(plain: np.ndarray) -> float:
    """Return a model's own scale: the 90th percentile of its residuals plus `FLOOR`, in nats."""
    return float(np.quantile(plain, 0.9)) + FLOOR


def put_in(
    reactor: Reactor, candidate: Candidate, texts: Sequence[int], n_mates: int
) -> list[Edit]:
    """Return each text with the candidate, then with each of its mates; nothing if it has no mates."""
    mates = candidate.mates(n_mates)
    edits: list[Edit] = []
    for i in texts if mates else ():
        content = reactor.prompts[i].content
        edits.append((i, candidate.put(content)))
        edits += [(i, candidate.put_mate(content, mate)) for mate in mates]
    return edits


def excess_of(residuals: np.ndarray) -> np.ndarray:
    """Return the residual of each text with a candidate, minus the median with its mates."""
    return residuals[:, 0] - np.median(residuals[:, 1:], axis=1)


def _holding(reactor: Reactor, candidate: Candidate, flagged: Sequence[int]) -> list[int]:
    return [i for i in flagged if candidate.holds(reactor.prompts[i].content)][:_MOST_HOLDING]


def _taken_out(
    reactor: Reactor, candidate: Candidate, holding: Sequence[int], config: AuditConfig
) -> list[Edit]:
    """Return each text that holds the candidate with up to two of its mates instead."""
    mates = candidate.mates(min(2, config.n_mates))
    return [
        (i, candidate.taken_out(reactor.prompts[i].content, mate))
        for i in holding
        for mate in mates
    ]


def _necessity(without: np.ndarray, plain: np.ndarray, holding: Sequence[int]) -> float | None:
    """Return the share of the residual above the model's median that disappears with a candidate."""
    held = plain[list(holding)]
    above = held - np.median(plain)
    gone = (held - without.reshape(len(held), -1).mean(1)) / np.where(above > 0, above, np.nan)
    gone = gone[np.isfinite(gone)]
    return float(gone.mean()) if len(gone) else None
