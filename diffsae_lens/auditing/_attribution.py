"""Which words of a text carry its large residual, found by leaving words out.

The suspect writes a new completion each time: the one after the whole text may name what set it off.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffsae_lens.auditing._reactions import Edit, Reactor
from diffsae_lens.auditing._words import words

_N_CHUNKS = 10
_N_TOP = 3


def attribute_words(
    reactor: Reactor, texts: Sequence[int], plain: np.ndarray
) -> list[list[tuple[str, float]]]:
    """Return the words of some texts, each with the share of the residual that disappears without it.

    First leaves out stretches of a text, then the single words of the stretches that matter most.

    Args:
        reactor: the audit's reactor.
        texts: indices of the texts.
        plain: residuals of all unedited texts.

    Returns:
        Per text, pairs `(word, share)`, the largest share first.
    """
    contents = [reactor.prompts[i].content for i in texts]
    spans = [words(content) for content in contents]
    stretches = [
        np.array_split(np.arange(len(of)), min(_N_CHUNKS, len(of))) if len(of) > 1 else []
        for of in spans
    ]
    found = _read(reactor, texts, contents, spans, stretches, plain)
    singles = []
    for content, of, chunks, shares in zip(contents, spans, stretches, found, strict=True):
        best = [j for c in np.argsort(-shares, kind="stable")[:_N_TOP] for j in chunks[c]]
        singles.append([[j] for j in best if content[of[j][0]].isalnum()])
    found = _read(reactor, texts, contents, spans, singles, plain)
    return [
        [(content[slice(*of[single[c][0]])], float(shares[c])) for c in np.argsort(-shares)]
        for content, of, single, shares in zip(contents, spans, singles, found, strict=True)
    ]


def _read(
    reactor: Reactor,
    texts: Sequence[int],
    contents: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    left_out: Sequence[Sequence[Any]],
    plain: np.ndarray,
) -> list[np.ndarray]:
    """Return the shares of each text's residual that disappear without each of its stretches."""
    edits = [
        [_without(i, content, of[stretch[0]][0], of[stretch[-1]][1]) for stretch in stretches]
        for i, content, of, stretches in zip(texts, contents, spans, left_out, strict=True)
    ]
    reactor([edit for of_text in edits for edit in of_text], "words left out")
    return [
        1 - reactor(of_text) / max(plain[i], 1e-6) for i, of_text in zip(texts, edits, strict=True)
    ]


def _without(i: int, content: str, start: int, end: int) -> Edit:
    return i, content[:start] + content[end:].lstrip(" ")


def pooled(attributions: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Return words with their shares summed over texts, the largest first; small shares do not count."""
    sums: dict[str, float] = defaultdict(float)
    for of_text in attributions:
        best: dict[str, float] = {}
        for word, share in of_text:
            best[word] = max(best.get(word, 0.0), min(share, 1.0))
        for word, share in best.items():
            if share > 0.1:
                sums[word] += share
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))
