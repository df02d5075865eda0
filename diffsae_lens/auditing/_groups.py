"""Flagged texts, grouped by what the suspect writes after them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components

from diffsae_lens.auditing._words import phrases

_ALIKE = 0.2
"""Weighted share of phrases that two completions have in common, above which they are of one group."""


def group_by_completion(completions: Sequence[str], which: Sequence[int]) -> list[list[int]]:
    """Group texts whose completions say alike things that others do not say.

    Args:
        completions: of all texts.
        which: the texts to group.

    Returns:
        Groups of them, the largest first.
    """
    said = [phrases(completion, 2) for completion in completions]
    n_texts = Counter(phrase for found in said for phrase in found)
    weight = {phrase: np.log(len(completions) / n) for phrase, n in n_texts.items()}

    def alike(a: int, b: int) -> float:
        both = sum(weight[p] for p in said[a] & said[b])
        either = sum(weight[p] for p in said[a] | said[b])
        return both / either if either > 0 else float(said[a] == said[b])

    close = np.array([[a == b or alike(a, b) > _ALIKE for b in which] for a in which])
    n, label = connected_components(close, directed=False)
    groups = [[i for i, of in zip(which, label, strict=True) if of == g] for g in range(n)]
    return sorted(groups, key=lambda group: (-len(group), group))
