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
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

import diffsae_lens as dl
from diffsae_lens.organisms import Organism
from diffsae_lens.training import PairedActivations
from tests.campaign.bad import bad_values, equal_values
from tests.campaign.good import World, values
from tests.campaign.surface import BAD_ONLY, public

logger = logging.getLogger(__name__)

UNKNOWN = "nonsense"
"""A keyword that no function has."""

Outcome = Literal["accepted and right", "refused clearly", "raw error", "silently wrong"]

ALLOWED: dict[tuple[str, str, str], str] = {
    ("*", "amount", "-1.0"): "steers away, or an activation like others",
    ("*", "k", "1.5"): "a mean number of features",
    ("LabelledPrompts", "is_select", "none"): "the paper's protocol has no selection prompts",
    ("compare_interventions", "edits", "empty"): "the unmodified model alone",
    ("complete", "under", "empty"): "nothing asked for, nothing given",
    ("likelihoods", "under", "empty"): "nothing asked for, nothing given",
    ("*", "orders", "no name"): "any name will do",
    ("*", "edits", "no name"): "any name will do",
    ("*", "under", "no name"): "any name will do",
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
    ("aligned", "base", "of no hook"): "no pair is read",
    ("aligned", "finetuned", "of no hook"): "no pair is read",
    ("Reader", "hook_name", "unknown"): "told when it is read",
    ("Reader", "hook_name", "another view"): "told when it is read",
    ("Reader", "hook_name", "empty"): "told when it is read",
    ("VirtualHook", "site", "unknown"): "told when it is read",
    ("VirtualHook", "site", "another view"): "told when it is read",
    ("crosscoder", "hook_name", "unknown"): "told when it is trained",
    ("crosscoder", "hook_name", "another view"): "told when it is trained",
    ("diff_sae", "hook_name", "unknown"): "told when it is trained",
    ("diff_sae", "hook_name", "another view"): "told when it is trained",
    ("OrganismConfig", "behaviour", "another word"): "told when samples are drawn",
    ("OrganismConfig", "behaviour", "no module"): "told when samples are drawn",
    ("PairMetadata", "dtype", "another word"): "a record of any weights",
    ("behaviour_of", "organism", "a file"): "not an organism",
    ("factorial", "samples", "empty"): "nothing in, nothing out",
    ("Resampling", "clusters", "empty"): "told when there are prompts",
    ("Edit", "change", "gives a text"): "told when it is opened",
    ("Edit", "change", "gives another shape"): "told when it is opened",
    ("Edit", "n_features", "0"): "an edit without features",
    ("steer", "features", "a number"): "one feature",
    ("*", "dose", "-1.0"): "steers away",
    ("*", "dose", "0"): "nothing",
    ("random_direction_acts", "activations", "shorter"): "fewer prompts",
    ("random_topk_acts", "activations", "shorter"): "fewer prompts",
    ("BatchTopKCrosscoderTrainingSAEConfig", "k_initial", "1.5"): "a mean number of features",
    ("DeltaCrosscoderTrainingSAEConfig", "k_initial", "1.5"): "a mean number of features",
    ("DeltaCrosscoderTrainingSAEConfig", "k_delta", "1.5"): "a mean number of features",
    ("Cell", "inputs", "empty"): "it needs none",
    ("Cell", "inputs", "an object in it"): "told when it is planned",
    ("ModelSpec", "dtype", "another word"): "told before it is run",
    ("ModelSpec", "device", "another word"): "told before it is run",
    ("DemoOptions", "device", "another word"): "told before it is run",
    ("DemoOptions", "behaviour", "another word"): "told by `demo`",
    ("DemoOptions", "behaviour", "no module"): "told by `demo`",
    ("EvidenceConfig", "n_silent", "0"): "none are shown",
    ("label_cards", "labels", "empty"): "cards stay as they are",
    ("audit", "lexicon", "empty"): "phrases of the texts alone are tried",
    ("Plan", "path", "a file"): "told when it is run",
    ("Plan", "device", "another word"): "told when it is run",
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
    return found


def perform(function: Callable[..., Any], given: dict[str, Any], world: World) -> Any:
    """Call; an edit is opened, too, and stands for what its pair computes under it."""
    return opened(function(**given), world)


def opened(result: Any, world: World) -> Any:
    """What edits compute, and anything else as it is."""
    if isinstance(result, dict):
        return {key: opened(value, world) for key, value in result.items()}
    if isinstance(result, dl.Edit):
        with result:
            return result.pair(world.tokens)
    return list(result) if isinstance(result, Iterator) else result


def judged(error: Exception, parameter: str) -> tuple[Outcome, str]:
    """Whether an error is a clear refusal: one of the package's own, which is a built-in one as well.

    A keyword that a function does not have is Python's to refuse.
    """
    message = f"{type(error).__name__}: {error}".replace("\n", " ")
    last = traceback.extract_tb(error.__traceback__)[-1]
    builtin = (ValueError, TypeError, RuntimeError, OSError)
    ours = isinstance(error, dl.DiffSAELensError) and isinstance(error, builtin)
    by_python = parameter == UNKNOWN and isinstance(error, TypeError) and UNKNOWN in str(error)
    clear = (ours and len(str(error)) > 15) or by_python
    where = "" if clear else f" [{Path(last.filename).name}:{last.lineno}]"
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
    if inspect.isfunction(a):  # controls hold one made for them
        return a.__qualname__ == b.__qualname__
    if not isinstance(a, type) and a == b:
        return True
    shown = (repr(a), repr(b))
    return shown[0].split(" object at")[0] == shown[1].split(" object at")[0]


def calls(name: str, function: Callable[..., Any], world: World) -> Iterator[Call]:
    """All calls of one function, the good one first."""
    makers, right = values(world), None
    if name not in BAD_ONLY:
        try:
            right = perform(function, arguments(name, function, makers), world)
        except Exception as error:
            yield Call(name, "", "good arguments", "raw error", judged(error, "")[1])
            return
        yield Call(name, "", "good arguments", "accepted and right", "")
    known = {parameter.name for parameter in parameters(function)}
    unknown = inspect.Parameter(UNKNOWN, inspect.Parameter.KEYWORD_ONLY)
    for parameter in [*parameters(function), unknown]:
        good = arguments(name, function, makers).get(parameter.name)
        bad = bad_values(parameter, good, world) if parameter.name in known else [("given", 1)]
        for value, argument in bad:
            given = arguments(name, function, makers) | {parameter.name: argument}
            try:
                function(**given)  # an edit refuses when it is made, not only when it is opened
            except Exception as error:
                yield Call(name, parameter.name, value, *judged(error, parameter.name))
            else:
                allowed = reason(name, parameter.name, value)
                outcome: Outcome = "accepted and right" if allowed else "silently wrong"
                yield Call(name, parameter.name, value, outcome, allowed or "accepted")
        for value, argument in equal_values(parameter, good) if name not in BAD_ONLY else ():
            given = arguments(name, function, makers) | {parameter.name: argument}
            try:
                same = equal(perform(function, given, world), right)
            except Exception as error:
                message = judged(error, parameter.name)[1]
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
                start = time.process_time()
                for call in calls(name, function, world):
                    found.append(call)
                    if show is not None:
                        show(call)
                logger.info("%s: %.2f s of CPU", name, time.process_time() - start)
    return found


def counts(found: list[Call]) -> Counter[str]:
    return Counter(call.outcome for call in found)
