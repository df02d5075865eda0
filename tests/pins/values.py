"""Results as plain JSON, and where two of them differ."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

REL_TOL, ABS_TOL = 1e-6, 1e-7
"""Of numbers; integers, booleans and texts are compared exactly."""
N_SHOWN = 8
"""Values of a tensor that are kept one by one."""


def plain(value: Any) -> Any:
    """Nested dicts and lists of numbers (nine significant digits), texts, booleans and None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if value is None or value is pd.NA or isinstance(value, bool | np.bool_):
        return None if value is None or value is pd.NA else bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.9g}") if math.isfinite(value) else str(float(value))
    return str(value)


def summary(values: Tensor) -> dict[str, Any]:
    """Shape, moments and some evenly spaced values of a tensor; its NaN are counted and left out."""
    flat = values.detach().double().flatten()
    known = flat[~flat.isnan()]
    picked = flat[torch.linspace(0, len(flat) - 1, min(N_SHOWN, len(flat))).round().long()]
    return plain(
        {
            "shape": list(values.shape),
            "mean": known.mean().item(),
            "rms": known.square().mean().sqrt().item(),
            "max": known.max().item(),
            "n_not_zero": int((known != 0).sum()),
            "n_nan": len(flat) - len(known),
            "some": picked,
        }
    )


def rows(table: pd.DataFrame | Iterable[Mapping[str, Any]], *keys: str) -> dict[str, Any]:
    """The rows of a table by what identifies them, in order; a name that comes again is numbered."""
    records = table.to_dict("records") if isinstance(table, pd.DataFrame) else table
    found: dict[str, Any] = {}
    for record in records:
        name = first = " | ".join(str(record.get(key, "-")) for key in keys)
        n = 1
        while name in found:
            n += 1
            name = f"{first} #{n}"
        found[name] = {k: plain(v) for k, v in record.items() if k not in keys}
    return {"order": list(found), "rows": found}


def digest(text: str) -> str:
    """The beginning of a text's SHA-256: texts that are long to store and are compared exactly."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(expected: Any, found: Any) -> list[str]:
    """One line for each value that is missing, new or another one."""
    was, now = dict(_leaves(expected)), dict(_leaves(found))
    lines = [f"missing: {path} (was {was[path]!r})" for path in was if path not in now]
    lines += [f"new: {path} = {now[path]!r}" for path in now if path not in was]
    return lines + [
        f"changed: {path}: {was[path]!r} -> {now[path]!r}"
        for path in was
        if path in now and not _equal(was[path], now[path])
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from _leaves(part, f"{path} > {key}" if path else str(key))
    else:
        yield path, value


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, float) and type(two) in (int, float):
        return math.isclose(one, two, rel_tol=REL_TOL, abs_tol=ABS_TOL)
    return type(one) is type(two) and one == two
