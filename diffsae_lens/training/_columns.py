"""How a harvest stores hook points in columns, and how they are derived from these.

In float32, a column is a hook point. In half precision, a column is one model's activation or the
difference of the two, never both models side by side: a difference is a few percent of an activation, about
as much as bfloat16 rounds off. It is computed in float32, and stored values are scaled per token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import datasets
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from diffsae_lens.pair._hook import VirtualHook

StoredDtype = Literal["float32", "bfloat16", "float16"]
"""The dtype in which a harvest is stored on disk."""

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def stored_columns(hook_names: Sequence[str], dtype: StoredDtype) -> list[str]:
    """Return the hook points that are stored as columns for the given ones."""
    if dtype == "float32":
        return list(hook_names)
    return list(dict.fromkeys(part for name in hook_names for part in _parts(name)))


def columns_of(hook_names: Sequence[str], *, stored: Sequence[str]) -> list[str]:
    """Return the stored hook points from which the given ones are derived."""
    needed = []
    for name in hook_names:
        concat = VirtualHook.parse(name).with_view("concat").name
        if name in stored:
            needed.append(name)
        else:
            needed += [concat] if concat in stored else _parts(concat)
    return list(dict.fromkeys(needed))


def seen(name: str, columns: Mapping[str, Tensor]) -> Tensor:
    """Return a hook point's value: a column, or a view derived from both models' activations."""
    if name in columns:
        return columns[name]
    hook = VirtualHook.parse(name)
    concat = hook.with_view("concat")
    if concat.name in columns:
        values = columns[concat.name]
        base, finetuned = (concat.spec.writes(values, side) for side in ("base", "finetuned"))
    else:
        base, difference = (columns[part] for part in _parts(concat.name))
        finetuned = base + difference
    return hook.spec.read(base, finetuned)


def _parts(name: str) -> list[str]:
    """Return the hook points that half precision stores for a hook point."""
    hook = VirtualHook.parse(name)
    views = ("base", "diff") if hook.view == "concat" else (hook.view,)
    return [hook.with_view(view).name for view in views]


def features_of(widths: Mapping[str, int], context: int, dtype: StoredDtype) -> datasets.Features:
    """Return the `datasets` features for columns of these widths."""
    features: dict[str, Any] = {}
    bits = "float32" if dtype == "float32" else "int16"
    for name, width in widths.items():
        features[name] = datasets.Array2D(shape=(context, width), dtype=bits)
        if dtype != "float32":
            features[_exponent(name)] = datasets.Sequence(datasets.Value("int16"), length=context)
    features["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=context)
    return datasets.Features(features)


def encoded(values: Mapping[str, Tensor], dtype: StoredDtype) -> dict[str, Tensor]:
    """Return columns as they are stored."""
    if dtype == "float32":
        return dict(values)
    found = {}
    for name, column in values.items():
        found[name], found[_exponent(name)] = halved(column, dtype)
    return found


def halved(
    values: Float[Tensor, "*token d"], dtype: StoredDtype
) -> tuple[Int16[Tensor, "*token d"], Int16[Tensor, "*token"]]:
    """Return the half-precision bits of values, and the exponent of the power of two dividing each token.

    A token's largest value is scaled to between 2**14 and 2**15, so that no value overflows in float16 and
    small ones survive. The error of a value is at most 2**-11 of it in float16 (plus 2**-40 of the largest
    value), and 2**-8 of it in bfloat16.
    """
    exponent = values.abs().amax(-1).frexp().exponent - 15
    # In two steps, since float32 can represent each factor.
    half = -exponent // 2
    scaled = values.ldexp(half[..., None]).ldexp((-exponent - half)[..., None])
    return scaled.to(_HALF[dtype]).view(torch.int16), exponent.to(torch.int16)


def restored(bits: Tensor, exponent: Tensor, dtype: StoredDtype) -> Tensor:
    """Return the float32 values of what `halved` returned."""
    values = bits.view(_HALF[dtype]).float()
    half = exponent.int() // 2
    return values.ldexp(half[..., None]).ldexp((exponent - half)[..., None])


def read_columns(
    dataset: datasets.Dataset, indices: Sequence[int], columns: Sequence[str], dtype: StoredDtype
) -> dict[str, Tensor]:
    """Read some rows of columns and of `token_ids`; the files on disk are memory-mapped."""
    names = [*columns, "token_ids"]
    if dtype != "float32":
        names += map(_exponent, columns)
    table: Any = dataset.select_columns(names).with_format("arrow")[list(indices)]
    found = {}
    for name in names:
        feature, array = dataset.features[name], table[name].combine_chunks()
        if isinstance(feature, datasets.Array2D):
            array, shape = array.storage.flatten(), feature.shape
        else:
            shape = (feature.length,)
        flat = array.flatten().to_numpy(zero_copy_only=False)
        found[name] = torch.tensor(flat).reshape(len(indices), *shape)
    if dtype != "float32":
        for name in columns:
            found[name] = restored(found[name], found.pop(_exponent(name)), dtype)
    return found


def _exponent(column: str) -> str:
    return f"{column}.exponent"
