"""Which words of a flagged text its residual hangs on, found by leaving them out."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from diffsae_lens.auditing._reactions import Reactor
from diffsae_lens.auditing._words import words
from diffsae_lens.auditing._written import Written

_N_CHUNKS = 10
_N_TOP = 3


def attribute_words(reactor: Reactor, i: int, written: Written) -> list[tuple[str, float]]:
    """Return the words of one text by how much of the residual goes when each is left out.

    First stretches of the text are left out, then the single words of the stretches that matter most.

    Args:
        reactor: of the audit.
        i: the text's number.
        written: what the suspect wrote after it.

    Returns:
        `(word, share)`, the largest share first: of log P(suspect) - log P(imitator) for the completion.
    """
    content = reactor.prompts[i].content
    spans = words(content)
    chunks = [part for part in np.array_split(np.arange(len(spans)), min(_N_CHUNKS, len(spans)))]
    kept = [c for c in chunks if len(c)]

    def without(left_out: np.ndarray) -> str:
        start, end = spans[left_out[0]][0], spans[left_out[-1]][1]
        return content[:start] + content[end:].lstrip(" ")

    found = reactor.advantage(i, [content, *map(without, kept)], written)
    drops = found[0] - found[1:]
    top = [kept[j] for j in np.argsort(-drops)[:_N_TOP]]
    singles = [np.array([j]) for chunk in top for j in chunk]
    single = [s for s in singles if content[slice(*spans[s[0]])][0].isalnum()]
    if not single or found[0] <= 0:
        return []
    shares = (found[0] - reactor.advantage(i, [without(s) for s in single], written)) / found[0]
    order = np.argsort(-shares)
    return [(content[slice(*spans[single[j][0]])], float(shares[j])) for j in order]


def pooled(attributions: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Return words by their shares, summed over texts, the largest first; small shares do not count."""
    sums: dict[str, float] = defaultdict(float)
    for of_text in attributions:
        best: dict[str, float] = {}
        for word, share in of_text:
            best[word] = max(best.get(word, 0.0), min(share, 1.0))
        for word, share in best.items():
            if share > 0.1:
                sums[word] += share
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))
