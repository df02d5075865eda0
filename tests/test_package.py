import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import diffsae_lens
from diffsae_lens._extras import EXTRAS
from diffsae_lens.cli import commands, main
from diffsae_lens.cli.commands import parser
from diffsae_lens.organisms import _bandit as bandit
from diffsae_lens.pair._embedded import embedded_model_path

PUBLIC = [
    "Contrast", "CrosscoderRunnerConfig", "DiffSAERunnerConfig", "FinetunedSAERunnerConfig",
    "HookedModelPair", "LabelledPrompts", "Normalization", "OrganismConfig", "Positions",
    "Reader", "TokenActivations", "TrainingRun", "Verdict", "ablate_features",
    "ablation_curve", "ablation_effects", "activation_scales", "add_direction",
    "attack_rate", "attack_rates", "attribute_features", "auroc", "average_precision",
    "bis", "calibrate_threshold", "clamp_features", "compare_interventions", "complete",
    "complete_under", "control_directions", "curve_area", "describe_features",
    "dose_response", "evaluate_isolation", "export_as_jumprelu", "feature_activations",
    "finetune", "greedy_order", "harvest", "induce_features", "judge_completion",
    "keep_only_features", "latent_scaling", "load", "load_ipython_extension", "load_pair",
    "log_odds", "make_samples", "matched_features", "max_activating_examples",
    "minimal_feature_set", "minimal_pairs", "ordinary_texts", "project_out", "read_prompts",
    "reconstruction", "recovered", "side_effects", "steer", "strict_bis", "swap_to_base",
    "sweep_years", "token_activations", "train_dictionaries", "unload_ipython_extension",
    "upload",
]  # fmt: skip


def test_the_public_names_are_these_and_exist():
    assert sorted(diffsae_lens.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(diffsae_lens, name).__doc__


HIDDEN = ("bandit", "gguf", "matplotlib")


def test_importing_needs_no_extra_and_changes_no_global_state():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HIDDEN}))\n"
        "import sae_lens, torch, random, warnings, logging\n"
        "state = lambda: (torch.random.get_rng_state().tolist(), random.getstate(),"
        " list(warnings.filters), logging.getLogger().handlers[:], torch.get_default_dtype(),"
        " torch.is_grad_enabled(), warnings.formatwarning)\n"
        "before = state()\n"
        "import diffsae_lens, importlib\n"
        "importlib.reload(diffsae_lens)\n"
        "[getattr(diffsae_lens, name) for name in diffsae_lens.__all__]\n"
        "assert state() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_our_classes_are_registered_once_both_packages_are_in_use():
    check = "from sae_lens.registry import SAE_CLASS_REGISTRY; assert 'crosscoder' in SAE_CLASS_REGISTRY"
    again = "import importlib; importlib.reload(diffsae_lens.dictionaries._topk)"
    forget = (  # both packages, and not the ones below, which take longest to import
        "import sys; [sys.modules.pop(name) for name in list(sys.modules)"
        " if name.partition('.')[0] in ('diffsae_lens', 'sae_lens')]"
    )
    code = "".join(
        f"{forget}; {order}; {check}; import diffsae_lens.dictionaries._topk; {again}\n"
        for order in (
            "import diffsae_lens, sae_lens; diffsae_lens.load",
            "import sae_lens, diffsae_lens",
            "import diffsae_lens.dictionaries._topk",
        )
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


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
    assert "`k` must be at least 1" in capsys.readouterr().err
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
    assert options == {field.name for field in fields(DemoOptions)}
    assert {"demo", *commands.PRESETS} == set(PRESETS)
