import inspect
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import diffsae_lens
from diffsae_lens._extras import EXTRAS
from diffsae_lens.cli import commands, main
from diffsae_lens.cli.commands import parser
from diffsae_lens.organisms import _bandit as bandit
from diffsae_lens.pair._embedded import embedded_model_path

NAMESPACES = [
    "auditing", "dictionaries", "effects", "interventions", "isolation", "measures", "organisms", "pair",
    "reading", "reporting", "study", "training",
]  # fmt: skip
EVERYDAY = [
    "Behaviour", "DiffSAELensError", "Edit", "HookedModelPair", "LabelledPrompts", "Sample",
    "ablate_features", "attribute_features", "audit", "compare_interventions", "complete",
    "describe_features", "evaluate_isolation", "feature_activations", "get_behaviour", "greedy_order",
    "load", "load_foreign", "load_pair", "steer", "swap_to_base", "token_activations", "train",
]  # fmt: skip
FOR_IPYTHON = ["load_ipython_extension", "unload_ipython_extension"]
PACKAGES = [*NAMESPACES, "organisms.sql_injection"]


def test_the_top_level_is_short_and_everything_else_is_in_a_namespace():
    assert sorted(diffsae_lens.__all__) == sorted([*EVERYDAY, *FOR_IPYTHON, *NAMESPACES])
    assert 15 <= len(EVERYDAY) <= 25
    for name in NAMESPACES:
        assert getattr(diffsae_lens, name).__name__ == f"diffsae_lens.{name}"
    found = {
        name for package in PACKAGES for name in import_module(f"diffsae_lens.{package}").__all__
    }
    assert set(EVERYDAY) - found == {"DiffSAELensError"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_namespace_shows_its_public_names_alone(package):
    module = import_module(f"diffsae_lens.{package}")
    assert dir(module) == sorted(module.__all__)
    assert module.__all__
    assert not [name for name in module.__all__ if name.startswith("_")]
    assert module.__doc__
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_every_public_name_says_what_it_is(package):
    module = import_module(f"diffsae_lens.{package}".rstrip("."))
    silent = []
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, ModuleType) or inspect.isroutine(thing):
            doc = thing.__doc__
        elif inspect.isclass(thing):  # neither inherited nor what a dataclass writes for itself
            doc = vars(thing).get("__doc__")
            doc = None if doc and doc.startswith(f"{name}(") else doc
        else:
            continue  # a constant: its module says what it is
        if not doc or len(doc.strip()) < 10:
            silent.append(name)
    assert not silent


HIDDEN = ("bandit", "gguf", "matplotlib")
# All but `dictionaries`, whose import registers its classes with SAELens.
LIGHT = [package for package in PACKAGES if package != "dictionaries"]
IN_A_FRESH_INTERPRETER = f"""
import importlib, json, logging, random, sys, warnings

sys.modules.update(dict.fromkeys({HIDDEN}))
heavy = {{"torch", "sae_lens", "transformers", "pandas", "diffsae_lens.effects._likelihood"}}
said = {{"registered": []}}

def forget():  # both packages, and not the ones below, which take longest to import
    for name in list(sys.modules):
        if name.partition(".")[0] in ("diffsae_lens", "sae_lens"):
            del sys.modules[name]

def registered():
    from sae_lens.registry import SAE_CLASS_REGISTRY
    import diffsae_lens.dictionaries._topk
    importlib.reload(diffsae_lens.dictionaries._topk)
    said["registered"].append("crosscoder" in SAE_CLASS_REGISTRY)
    forget()

import diffsae_lens
dir(diffsae_lens)
for package in {LIGHT}:
    importlib.import_module("diffsae_lens." + package)
said["after importing"] = sorted(heavy & set(sys.modules))

forget()
import sae_lens, torch
state = lambda: (torch.random.get_rng_state().tolist(), random.getstate(), list(warnings.filters),
    logging.getLogger().handlers[:], torch.get_default_dtype(), torch.is_grad_enabled(),
    warnings.formatwarning)
before = state()
import diffsae_lens
importlib.reload(diffsae_lens)
[getattr(diffsae_lens, name) for name in diffsae_lens.__all__]
said["changed"] = state() != before
registered()

import diffsae_lens, sae_lens
diffsae_lens.load
diffsae_lens.effects.log_odds
said["after using"] = sorted(heavy & set(sys.modules))
registered()

import diffsae_lens.dictionaries._topk
registered()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    """What was seen while a fresh interpreter imported the package in three orders."""
    command = [sys.executable, "-W", "ignore", "-c", IN_A_FRESH_INTERPRETER]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def test_importing_is_light(said):
    assert not said["after importing"]
    assert len(said["after using"]) == 5


def test_importing_needs_no_extra_and_changes_no_global_state(said):
    assert said["changed"] is False


def test_our_classes_are_registered_once_both_packages_are_in_use(said):
    assert said["registered"] == [True, True, True]


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\n"
        "from diffsae_lens.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert (
        "demo"
        in subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    )


def test_bad_settings_end_with_a_message_and_status_2(capsys, tmp_path):
    assert main(["demo", "--out", str(tmp_path / "run"), "--k", "0"]) == 2
    assert "`--k` must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_named_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [m for m in sys.modules if m.startswith("diffsae_lens.reporting")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["demo", "--out", str(tmp_path / "run")]) == 2
    assert "diffsae-lens[plots]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("bandit", lambda cache: bandit._bandit.__wrapped__(("B608",))),
        ("gguf", embedded_model_path),
        ("bandit", lambda cache: main_of("demo", "--out", str(cache / "run"))),
        ("bandit", lambda cache: main_of("make-organism", "--out", str(cache / "organism"))),
        ("bandit", lambda cache: main_of("reproduce", "--out", str(cache / "study"))),
    ],
)
def test_what_organisms_need_is_named_with_its_extra(tmp_path, monkeypatch, capsys, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        use(tmp_path)
    assert caught.value.name == package
    said = str(caught.value)
    assert said.startswith(f"the module {package} is missing (")
    assert said.endswith("pip install 'diffsae-lens[organisms]'")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def main_of(*argv):
    arguments = vars(parser().parse_args(argv))
    arguments.pop("verbose", None)
    return arguments.pop("run")(**arguments)


def test_every_extra_is_one_of_the_package():
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(wanted.startswith(f"{package}>=") for wanted in extras[extra])


def test_every_option_of_the_demo_is_a_setting():
    from dataclasses import fields

    from diffsae_lens.study._presets import PRESETS, DemoOptions

    options = vars(parser().parse_args(["demo"])).keys() - {"run", "out"}
    options -= {"scheduler", "slurm", "plan", "cell"}  # where and what of it is computed
    assert options == {field.name for field in fields(DemoOptions)}
    assert {"demo", *commands.PRESETS} == set(PRESETS)
