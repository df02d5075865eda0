"""Flagged texts, grouped by what the suspect writes after them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components

from diffsae_lens.auditing._words import phrases

_ALIKE = 0.2
"""Weighted share of common phrases above which two completions belong to one group."""


def group_by_completion(completions: Sequence[str], which: Sequence[int]) -> list[list[int]]:
    """Group texts whose completions share phrases that other completions lack.

    Args:
        completions: completions of all texts.
        which: indices of the texts to group.

    Returns:
        Groups of these indices, the largest first.
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
