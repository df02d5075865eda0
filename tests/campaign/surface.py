"""What is public, what of it is called, and what is not and why."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

import torch
from sae_lens import SAEConfig

import diffsae_lens as dl
from diffsae_lens.organisms.sql_injection import YEAR_TRIGGER

NAMESPACES = (
    "pair", "dictionaries", "organisms", "organisms.sql_injection", "training", "measures",
    "reading", "interventions", "effects", "isolation", "auditing", "study", "reporting",
)  # fmt: skip

RESULT = "a result, which nobody makes by hand"
WORDS = "a constant or a type, not called"
HOST = "SAELens makes it from its config, which is called"

NOT_CALLED = {
    "load_ipython_extension": "IPython calls it", "unload_ipython_extension": "IPython calls it",
    "DictionaryRecord": "what `load` reads from a dictionary's metadata",
    "View": WORDS, "VIEWS": WORDS, "BEHAVIOURS": WORDS, "PRESETS": WORDS, "Judge": WORDS,
    "ZOO": WORDS, "Recipe": "taken from `ZOO` and `clean_nulls`",
    "Labeller": WORDS, "Scene": WORDS, "Verdict": WORDS, "LEXICON": WORDS, "YEAR_TRIGGER": WORDS,
} | dict.fromkeys((
    "TokenisedTexts", "Organism", "Judgement", "PairedActivations", "StreamedActivations",
    "BisResult", "BootstrapResult",
    "FactorialEffects", "PermutationResult", "StrictBisResult", "Example", "LatentScaling",
    "Reconstruction", "Recovered", "TokenActivations", "Acted", "ActivationScales", "AttackRate",
    "Effects", "Likelihoods", "MinimalSet", "IsolationTable", "PooledTexts", "Results",
    "DetectionScore", "FeatureEvidence", "NeuronpediaExport", "AlignedDictionaries", "AuditResults",
    "CandidateRow", "TextRow", "WritesRow", "Null", "Nulls", "BaselineRow", "MethodRow",
    "ResidualFeatureRow", "ResidualFeatures", "ZooRow",
), RESULT)  # fmt: skip
"""Public names that are not called, with the reason. Errors and SAELens's classes are not, either."""

BAD_ONLY = {
    "upload": "needs the hub",
    "ClusterExecutor": "needs a cluster",
    "export_to_neuronpedia": "needs the server",
    "run": "a study takes minutes",
    "so_far": "needs a study that was run",
    "audit": "trains imitators",
    "baseline_scores": "needs an audit",
    "residual_features": "needs an audit",
    "audit_zoo": "trains organisms and imitators",
    "make_organism": "trains an organism and measures it",
    "make_from_recipe": "trains an organism and measures it",
}
"""Called with one bad value at a time, never with good ones alone."""


def members() -> dict[str, Any]:
    """Every public name of the namespaces and of the top level, each once.

    Raises:
        ValueError: two namespaces give one name to different things.
    """
    found: dict[str, Any] = {}
    for namespace in NAMESPACES:
        module = importlib.import_module(f"diffsae_lens.{namespace}")
        for name in module.__all__:
            thing = getattr(module, name)
            if found.setdefault(name, thing) is not thing:
                raise ValueError(f"two public things are called {name}")
    top = {name: getattr(dl, name) for name in dl.__all__}
    return found | {name: thing for name, thing in top.items() if not inspect.ismodule(thing)}


def public() -> dict[str, Callable[..., Any]]:
    """Everything public that is called, methods and the opening of an edit included."""
    called: dict[str, Callable[..., Any]] = {
        "Behaviour.make_samples": YEAR_TRIGGER.make_samples,
        "Behaviour.minimal_pairs": YEAR_TRIGGER.minimal_pairs,
        "Edit.__enter__": open_edit,
    }
    for name, thing in members().items():
        is_error = inspect.isclass(thing) and issubclass(thing, dl.DiffSAELensError)
        if (
            name in NOT_CALLED
            or is_error
            or name.endswith("TrainingSAE")
            or name == "CrosscoderSAE"
        ):
            continue
        is_config = inspect.isclass(thing) and issubclass(thing, SAEConfig)
        called[name] = own_settings(thing) if is_config else thing
    return called


def open_edit(*, pair: dl.HookedModelPair, hook: str, change: Any, where: Any) -> torch.Tensor:
    """Make an edit, open it and run the pair: what `change` and `where` return is seen only then."""
    with dl.Edit(pair=pair, hook=hook, change=change, where=where):
        return pair(torch.arange(3, 15)[None])


def own_settings(config: type[SAEConfig]) -> Callable[..., Any]:
    """A dictionary's config as a function of the settings that are ours; SAELens looks after its own."""
    ours, theirs = (
        {
            name
            for cls in config.__mro__
            if cls.__module__.startswith(package)
            for name in inspect.get_annotations(cls)
        }
        for package in ("diffsae_lens", "sae_lens")
    )
    both = {"d_in": 32, "d_sae": 24} | ({"k": 4} if "k" in {f.name for f in fields(config)} else {})
    signature = inspect.signature(config)

    @wraps(config, updated=())
    def made(**given: Any) -> Any:
        return config(**(both | given))

    made.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if name in ours - theirs
        ]
    )
    return made
