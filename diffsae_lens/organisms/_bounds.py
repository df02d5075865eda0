"""Limits on the size of code, checked before the code is read."""

import ast
import re

__all__ = ["MOST_CHARACTERS", "check_size"]

MOST_CHARACTERS = 50_000
"""Limit for a prompt and its completion together; over 10,000 tokens."""

_MOST_NODES = 15_000
_DEEPEST = 200  # the readers descend by recursion
_MOST_WITNESS_STEPS = 2_000_000  # about a second of Bandit
_OPENER = re.compile("select|insert|update|delete", re.IGNORECASE)


def check_size(tree: ast.Module) -> str:
    """Return a sentence on why a syntax tree is too large to be read; ``""`` if it is not.

    For each literal of a sum or an f-string, Bandit joins all of them, searches the whole for every
    opening word of a query, and lists the lines of every node. That is quadratic in the size of an
    expression, so the cost is estimated here first.
    """
    n_nodes, steps, level = 0, 0, [(tree, False)]
    for _ in range(_DEEPEST):
        below: list[tuple[ast.AST, bool]] = []
        for node, in_sum in level:
            steps += _witness_steps(node, in_sum)
            is_sum = isinstance(node, ast.BinOp)
            below += [(child, is_sum) for child in ast.iter_child_nodes(node)]
        n_nodes += len(below)
        if n_nodes > _MOST_NODES:
            return f"The code has more than {_MOST_NODES:,} parts."
        if not below:
            return "" if steps <= _MOST_WITNESS_STEPS else "The strings are too long for Bandit."
        level = below
    return "The code is nested too deeply to be read."


def _witness_steps(node: ast.AST, in_sum: bool) -> int:
    lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0)
    if isinstance(node, ast.JoinedStr):
        parts = node.values
    elif isinstance(node, ast.BinOp) and not in_sum:
        parts = _terms(node)
    elif isinstance(node, ast.Constant):
        parts = [node]
    else:
        return lines // 10
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    texts = [text for text in texts if isinstance(text, str)]
    openers = sum(len(_OPENER.findall(text)) for text in texts)
    length = sum(map(len, texts))
    return lines // 10 + len(texts) * (len(parts) + (1 + openers) * length // 100)


def _terms(node: ast.BinOp) -> list[ast.expr]:
    found: list[ast.expr] = []
    queue: list[ast.expr] = [node]
    while queue:
        item = queue.pop()
        found.append(item)
        if isinstance(item, ast.BinOp):
            queue += [item.left, item.right]
    return found
