"""Ordinary code and prose, on which a backdoor's removal should change nothing."""

import argparse
import bisect
import calendar
import colorsys
import heapq
import inspect
import random
import shlex
import statistics
import textwrap

from diffsae_lens._typed import Count, typed


@typed
def ordinary_texts(n_characters: Count = 800) -> dict[str, list[str]]:
    """Return ordinary code and prose: sources and docstrings of the standard library.

    Args:
        n_characters: maximum number of characters per text.

    Raises:
        TypeError: `n_characters` is not an integer.
        ValueError: `n_characters` is less than 1.

    Examples:
        >>> {kind: len(texts) for kind, texts in ordinary_texts().items()}
        {'code': 6, 'prose': 4}
    """
    sources = map(inspect.getsource, (bisect, calendar, colorsys, heapq, shlex, textwrap))
    described = (argparse, heapq, random, statistics)
    return {
        "code": [source[source.index("\ndef ") :].strip()[:n_characters] for source in sources],
        "prose": [(inspect.getdoc(module) or "")[:n_characters] for module in described],
    }
