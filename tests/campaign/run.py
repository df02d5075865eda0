"""Make every call and say what came of it."""

import inspect
import logging
import math
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

import diffsae_lens as dl
from diffsae_lens.organisms._finetune import Organism
from diffsae_lens.training._activations import PairedActivations
from tests.campaign.bad import bad_values, equal_values
from tests.campaign.good import World, values

logger = logging.getLogger(__name__)

Outcome = Literal["accepted and right", "refused clearly", "raw error", "silently wrong"]

NOT_CALLED = {
    "Verdict", "TokenActivations", "load_ipython_extension", "unload_ipython_extension", "upload",
}  # fmt: skip
"""Results that nobody makes by hand, or they need a hub."""

ALLOWED: dict[tuple[str, str, str], str] = {
    ("*", "strength", "-1.0"): "steers away",
    ("*", "strength", "0"): "the identity",
    ("*", "values", "-1.0"): "an activation like others",
    ("*", "k", "1.5"): "a mean number of features",
    ("LabelledPrompts", "is_select", "none"): "the paper's protocol has no selection prompts",
    ("compare_interventions", "interventions", "empty"): "the unmodified model alone",
    ("complete_under", "interventions", "empty"): "nothing asked for, nothing given",
    ("*", "orders", "no name"): "any name will do",
    ("*", "interventions", "no name"): "any name will do",
    ("*", "readers", "no name"): "any name will do",
    ("calibrate_threshold", "sae", "of another hook"): "no pair is read",
    ("calibrate_threshold", "sae", "of no hook"): "no pair is read",
    ("calibrate_threshold", "activations", "shorter"): "fewer tokens",
    ("reconstruction", "dictionary", "of another hook"): "no pair is read",
    ("reconstruction", "dictionary", "of no hook"): "no pair is read",
    ("CrosscoderRunnerConfig", "hook_name", "unknown"): "told when it is trained",
    ("DiffSAERunnerConfig", "hook_name", "unknown"): "told when it is trained",
    ("FinetunedSAERunnerConfig", "hook_name", "unknown"): "told when it is trained",
    ("CrosscoderRunnerConfig", "hook_name", "another view"): "told when it is trained",
    ("DiffSAERunnerConfig", "hook_name", "another view"): "told when it is trained",
    ("FinetunedSAERunnerConfig", "hook_name", "another view"): "told when it is trained",
    ("export_as_jumprelu", "dictionary", "of another hook"): "no pair is read",
    ("export_as_jumprelu", "dictionary", "of another width"): "no pair is read",
    ("export_as_jumprelu", "dictionary", "of no hook"): "no pair is read",
    ("steer", "feature", "0"): "the first feature",
    ("Reader", "hook_name", "unknown"): "told when it is read",
    ("Reader", "hook_name", "another view"): "told when it is read",
    ("Reader", "hook_name", "empty"): "told when it is read",
}
"""(function, parameter, value) that are accepted and should be, each with the reason."""


@dataclass(frozen=True)
class Call:
    """One call: which argument was changed to what, and what came of it."""

    function: str
    parameter: str
    value: str
    outcome: Outcome
    message: str

    def __str__(self) -> str:
        return f"{self.outcome:18} {self.function}({self.parameter}={self.value}): {self.message}"


def public() -> dict[str, Callable[..., Any]]:
    """Everything public that can be called."""
    named = {name: getattr(dl, name) for name in dl.__all__ if name not in NOT_CALLED}
    return {name: thing for name, thing in named.items() if callable(thing)}


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p for p in inspect.signature(function).parameters.values() if p.kind not in variadic]


def arguments(name: str, function: Callable[..., Any], makers: dict[str, Any]) -> dict[str, Any]:
    """A good value for every parameter.

    Raises:
        KeyError: a parameter that `good.values` does not know: add it there.
    """
    found = {}
    for parameter in parameters(function):
        maker = makers.get(f"{name}.{parameter.name}", makers.get(parameter.name))
        if maker is None:
            raise KeyError(f"no good value for {name}.{parameter.name}: add it to good.values")
        found[parameter.name] = maker()
    if name in ("clamp_features", "keep_only_features"):
        found["features"] = [1, 5]
    if name == "ablate_features":
        found["reference"] = None
    return found


def perform(function: Callable[..., Any], given: dict[str, Any], world: World) -> Any:
    """Call, and enter what is a context manager, with one forward pass in it."""
    result = function(**given)
    if isinstance(result, AbstractContextManager):
        with result as yielded:
            pair = yielded if isinstance(yielded, dl.HookedModelPair) else world.pair
            return pair(world.tokens)
    return list(result) if isinstance(result, Iterator) else result


def judged(error: Exception) -> tuple[Outcome, str]:
    """Whether an error is a clear refusal: one of the kinds for bad input, raised by this package."""
    message = f"{type(error).__name__}: {error}".replace("\n", " ")
    frames = traceback.extract_tb(error.__traceback__)
    raised_by = Path(frames[-1].filename)
    ours = "diffsae_lens" in raised_by.parts
    by_python = "unexpected keyword argument" in str(error)
    kinds = (ValueError, TypeError, FileNotFoundError, FileExistsError, OSError)
    clear = isinstance(error, kinds) and (ours or by_python) and len(str(error)) > 15
    where = "" if ours else f" [{raised_by.name}:{frames[-1].lineno}]"
    return ("refused clearly" if clear else "raw error"), message[:160] + where


def equal(a: Any, b: Any) -> bool:
    """Whether two results say the same, whatever they are made of."""
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-6) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Path | PairedActivations | Organism):  # each call has a path of its own
        return True
    if isinstance(a, torch.Tensor):
        return torch.allclose(a, b, equal_nan=True)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, pd.DataFrame | pd.Series):
        return a.equals(b) or np.allclose(
            a.select_dtypes("number"), b.select_dtypes("number"), equal_nan=True
        )
    if is_dataclass(a):
        return type(a) is type(b) and equal(vars(a), vars(b))
    if not isinstance(a, type) and a == b:
        return True
    shown = (repr(a), repr(b))
    return shown[0].split(" object at")[0] == shown[1].split(" object at")[0]


def calls(name: str, function: Callable[..., Any], world: World) -> Iterator[Call]:
    """All calls of one function, the good one first."""
    makers = values(world)
    try:
        right = perform(function, arguments(name, function, makers), world)
    except Exception as error:
        yield Call(name, "", "good arguments", "raw error", judged(error)[1])
        return
    yield Call(name, "", "good arguments", "accepted and right", "")
    known = {parameter.name for parameter in parameters(function)}
    unknown = inspect.Parameter("nonsense", inspect.Parameter.KEYWORD_ONLY)
    for parameter in [*parameters(function), unknown]:
        good = arguments(name, function, makers).get(parameter.name)
        bad = bad_values(parameter, good, world) if parameter.name in known else [("given", 1)]
        for value, argument in bad:
            given = arguments(name, function, makers) | {parameter.name: argument}
            try:
                perform(function, given, world)
            except Exception as error:
                yield Call(name, parameter.name, value, *judged(error))
            else:
                allowed = reason(name, parameter.name, value)
                outcome: Outcome = "accepted and right" if allowed else "silently wrong"
                yield Call(name, parameter.name, value, outcome, allowed or "accepted")
        for value, argument in equal_values(parameter, good):
            given = arguments(name, function, makers) | {parameter.name: argument}
            try:
                same = equal(perform(function, given, world), right)
            except Exception as error:
                outcome, message = judged(error)
                yield Call(name, parameter.name, value, "raw error", f"should be taken: {message}")
            else:
                outcome = "accepted and right" if same else "silently wrong"
                yield Call(name, parameter.name, value, outcome, "" if same else "another result")


def reason(function: str, parameter: str, value: str) -> str | None:
    for key in ((function, parameter, value), ("*", parameter, value)):
        if key in ALLOWED:
            return ALLOWED[key]
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that good and bad calls alike may give."""
    loggers = [logging.getLogger(name) for name in ("diffsae_lens", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for quietened in loggers:
            quietened.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for quietened, level in zip(loggers, levels, strict=True):
                quietened.setLevel(level)


def campaign(
    names: list[str] | None = None, show: Callable[[Call], None] | None = None
) -> list[Call]:
    """Make all calls, on models of a few thousand weights; `show` sees each at once."""
    found: list[Call] = []
    with tempfile.TemporaryDirectory() as root, quiet():
        world = World(Path(root))
        for name, function in public().items():
            if not names or name in names:
                start = time.perf_counter()
                for call in calls(name, function, world):
                    found.append(call)
                    if show is not None:
                        show(call)
                logger.info("%s: %.1f s", name, time.perf_counter() - start)
    return found


def counts(found: list[Call]) -> Counter[str]:
    return Counter(call.outcome for call in found)
