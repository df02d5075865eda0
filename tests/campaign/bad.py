"""Bad values for a parameter, by its kind: the kind is read off the annotation, the name and a good value."""

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import torch
from sae_lens import SAE

from diffsae_lens.results import Table, VarianceRow
from tests.campaign.good import D_SAE, World, dictionary
from tests.reporting.rows import make

Bad = tuple[str, Any]
"""What it is, and the value."""

FEATURES = {"features", "ablated", "order"}
TEXTS = {"prompts", "texts", "reference", "completions"}


class Thing:
    """An object of no use."""

    def __repr__(self) -> str:
        return "Thing()"


def bad_values(parameter: inspect.Parameter, good: Any, world: World) -> Iterator[Bad]:
    """Values that must be refused."""
    annotation = str(parameter.annotation).replace("Optional[", "None | [")
    yield "an object", Thing()
    if (
        not {"None", "Optional"} & set(re.findall(r"\w+", annotation))
        and parameter.default is not None
    ):
        yield "None", None
    yield from _by_name(parameter.name, good, world)
    if isinstance(good, bool | int | float | torch.Tensor):
        yield from _quantities(parameter.name, good)
    else:
        yield from _things(good, world)
    if "Literal" in annotation and isinstance(good, str):
        yield from [("another word", "nonsense"), ("empty", "")]


def _quantities(name: str, good: Any) -> Iterator[Bad]:
    if isinstance(good, bool):
        yield from [("a text", "no"), ("2", 2)]
    elif isinstance(good, int):
        yield from _counts(name)
    elif isinstance(good, float):
        yield from _numbers(name)
    else:
        yield from _tensors(name, good)


def _things(good: Any, world: World) -> Iterator[Bad]:
    if isinstance(good, Path):
        yield from [("a number", 3), ("a file", _file(world))]
    elif isinstance(good, dict):
        yield from [("a list", list(good)), ("a text", "abc"), ("empty", {})]
        yield from [("an object in it", {"a": Thing()})]
    elif isinstance(good, Table):
        yield from [("no rows", Table(())), ("a list", list(good.rows))]
        yield ("rows of another kind", Table((make(VarianceRow),)))
    elif is_dataclass(good):
        yield from [("a text", "abc"), ("its fields", vars(good))]
    elif isinstance(good, str):
        yield from [("a number", 3), ("bytes", good.encode())]
    elif callable(good) and not isinstance(good, type | SAE | torch.nn.Module):
        yield from [("a number", 3), ("a text", "abc")]


def equal_values(parameter: inspect.Parameter, good: Any) -> Iterator[Bad]:
    """Values that must be taken for the good one."""
    if parameter.name in FEATURES and isinstance(good, list):
        yield "a tensor", torch.tensor(good)
        yield "an array", np.array(good)
        yield "a tuple", tuple(good)
    elif parameter.name == "feature":
        yield from [("an array's number", np.int64(good)), ("a 0-d tensor", torch.tensor(good))]
        yield "a list of one", [good]
    elif isinstance(good, int) and not isinstance(good, bool):
        yield "an array's number", np.int64(good)
    elif isinstance(good, float) and not math.isnan(good):
        yield "an array's number", np.float64(good)
    elif isinstance(good, list) and good and all(isinstance(x, str) for x in good):
        yield "a tuple", tuple(good)


def _by_name(name: str, good: Any, world: World) -> Iterator[Bad]:
    if name in FEATURES:
        return _features()
    if name in TEXTS and isinstance(good, list | tuple):
        return _texts(name, good)
    if name == "tokens" and isinstance(good, torch.Tensor):
        return _tokens(good)
    if isinstance(good, SAE):
        return _dictionaries()
    if name in ("hook_name", "hook_names", "hook", "site"):
        return _hooks(good)
    if name in ("edits", "under", "readers", "dictionaries", "configs", "orders") and isinstance(
        good, dict
    ):
        return iter([("no name", {3: next(iter(good.values()))})])
    return iter(_listed(good, world).get(name, []))


def _listed(good: Any, world: World) -> dict[str, list[Bad]]:
    """Bad values of parameters that have no kind of their own."""
    amounts: list[Bad] = [
        ("NaN", math.nan), ("infinity", math.inf), ("another length", [1.0, 2.0, 3.0]),
        ("a text", "2"), ("empty", []),
    ]  # fmt: skip
    several: list[Bad] = [
        ("empty", []), ("a text", "12"), ("a number", 3), ("NaN", [math.nan]),
    ]  # fmt: skip
    return {
        "feature": [
            ("True", True), ("1.5", 1.5), ("-1", -1), ("too large", D_SAE), ("a text", "1"),
        ],
        "samples": [
            ("a text", "abc"), ("empty", []), ("texts", ["abc"]), ("a number", 5),
            ("one sample", good[0] if isinstance(good, list) else good),
        ],
        "pair": [
            ("a text", "pair"), ("one model", world.pair.finetuned), ("a function", _no_pair),
        ],
        "amount": amounts, "counts": several, "doses": several,
        "said": [("a text", "2024"), ("a number", 3), ("numbers", [2024]), ("empty", [])]
        if isinstance(good, list) else [],
        "scenes": [("samples", world.samples), ("empty", []), ("no sample", [[]])],
        "outcomes": [("one", ("a",)), ("repeated", ("a", "a")), ("a text", "ab"), ("a number", 3)],
        "split": [("another word", "nonsense")], "group": [("another word", "nonsense")],
        "device": [("another word", "nonsense")], "dtype": [("another word", "nonsense")],
        "behaviour": [("another word", "nonsense"), ("no module", "no.such.module:A")],
        "change": [
            ("gives a text", lambda value, _: "abc"),
            ("gives another shape", lambda value, _: value[..., :1]),
        ],
    }  # fmt: skip


def _texts(name: str, good: Any) -> Iterator[Bad]:
    yield from [("a text", "abc"), ("empty", []), ("numbers", [1, 2]), ("a number", 5)]
    yield from [("None in it", [None]), ("bytes", [b"ab"])]
    if isinstance(good, list) and name != "completions":
        yield "longer than the context", ["x" * 5000]


def _no_pair() -> None:
    """Stands for a pair."""


def _features() -> Iterator[Bad]:
    yield from [("bools", [True, False]), ("1.5", [1.5]), ("-1", [-1]), ("too large", [D_SAE])]
    yield from [("repeated", [1, 1]), ("a text", "12"), ("None in it", [None]), ("texts", ["1"])]
    yield from [("a number", 3), ("a float tensor", torch.tensor([1.0]))]
    yield "a mask", torch.zeros(D_SAE, dtype=torch.bool)


def _tokens(good: torch.Tensor) -> Iterator[Bad]:
    pad = torch.full((len(good), 2), 2)
    yield from [("floats", good.float()), ("one row", good[0]), ("empty", good[:0])]
    yield from [("lists", good.tolist()), ("bools", good > 9), ("a text", "abc")]
    yield from [("beyond the vocabulary", good + 259), ("negative", -good)]
    yield "padded on the left", torch.cat([pad, good], 1)
    yield "beyond the context", good.repeat(1, 100)


def _dictionaries() -> Iterator[Bad]:
    from sae_lens import SAE

    nan, other, nameless = dictionary(), dictionary(), dictionary()
    nan.W_enc.data[0, 0] = math.nan
    other.cfg.metadata.hook_name = "blocks.9.hook_resid_post.diff"
    nameless.cfg.metadata.hook_name = None
    wide = SAE.from_dict({
        "architecture": "jumprelu", "d_in": 40, "d_sae": 8, "dtype": "float32", "device": "cpu",
        "metadata": {"hook_name": "blocks.1.hook_resid_post.diff"},
    })  # fmt: skip
    yield from [("of another hook", other), ("of another width", wide), ("of no hook", nameless)]
    yield from [("with NaN", nan), ("a path", "diff-sae"), ("a module", torch.nn.Linear(16, 24))]


def _hooks(good: Any) -> Iterator[Bad]:
    if isinstance(good, str):
        yield from [("unknown", "blocks.9.hook_resid_post"), ("empty", "")]
        yield from [("a list", [good]), ("another view", f"{good}.nonsense")]
    else:
        yield from [("a text", good[0]), ("empty", []), ("unknown", ["blocks.9.hook_resid_post"])]
        yield from [("twice", [good[0], good[0]]), ("numbers", [3])]


def _counts(name: str) -> Iterator[Bad]:
    yield from [("-1", -1), ("1.5", 1.5), ("True", True), ("a text", "3"), ("NaN", math.nan)]
    if name not in CAN_BE_ZERO:
        yield "0", 0


CAN_BE_ZERO = {
    "seed", "context", "n_examples", "skip_positions", "n_trigger", "n_benign", "n_other", "n_likelihood",
    "k_annealing_steps", "n_base_only", "n_finetuned_only", "n_shared_features", "n_delta_features",
    "n_lexicon", "n_read_ahead",
}  # fmt: skip
"""Counts of which none is a sensible number."""


def _numbers(name: str) -> Iterator[Bad]:
    yield from [("NaN", math.nan), ("infinity", math.inf), ("a text", "0.5"), ("True", True)]
    yield from [("-1.0", -1.0)]
    if name in ("percentile", "calibration_fraction"):
        yield from [("1.0", 1.0), ("95", 95.0)]


def _tensors(name: str, good: torch.Tensor) -> Iterator[Bad]:
    yield from [("a list", good.tolist()), ("another shape", good[..., None]), ("empty", good[:0])]
    if good.is_floating_point():
        broken = good.clone()
        broken.view(-1)[0] = math.nan
        yield from [("NaN", broken), ("infinity", broken.nan_to_num(nan=math.inf))]
        yield from [("shorter", good[:-1]), ("bools", good > 0)]
    elif good.dtype == torch.bool:
        yield from [("shorter", good[:-1]), ("floats", good.float())]
        yield ("none", torch.zeros_like(good))


def _file(world: World) -> Path:
    file = world.root / "a-file"
    file.write_text("not a folder")
    return file


def is_optional(parameter: inspect.Parameter) -> bool:
    """Whether None is among the types of a parameter."""
    return type(None) in get_args(parameter.annotation) or get_origin(parameter.annotation) is None
