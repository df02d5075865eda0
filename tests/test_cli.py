import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from diffsae_lens import __version__, cli
from diffsae_lens.cli import commands
from diffsae_lens.pair._embedded import ModelUnavailableError
from diffsae_lens.study import _organisms as organisms
from diffsae_lens.study import _run as study
from diffsae_lens.study._plan import Plan
from tests.conftest import plant, tiny_llama, write_tiny_model
from tests.reporting.synthetic import synthetic_results


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(max_position_embeddings=1024)
    write_tiny_model(folder / "base", base, tokenizer)
    write_tiny_model(folder / "finetuned", plant(base), tokenizer)
    return [
        "--base",
        str(folder / "base"),
        "--finetuned",
        str(folder / "finetuned"),
        "--layers",
        "1",
        "--behaviour",
        "year-trigger",
    ]


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Runs a command; returns its status and the one line of its error."""

    def run(*argv):
        monkeypatch.chdir(tmp_path)
        status = cli.main([str(a) for a in argv])
        [line] = capsys.readouterr().err.strip().splitlines() or [""]
        return status, line

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", 999], "`--k` must be at most 32, got 999"),
        (["--k", 0], "`--k` must be at least 1, got 0"),
        (["--n-likelihood-prompts", 0], "`--n-likelihood-prompts` must be at least 1"),
        (["--n-scenes", 100_000], "`--n-scenes` is 100000, but the 'test' split has no more"),
        (["--expansion", 10**8], "GB available; ask for fewer features or layers"),
        (["--n-training-samples", 1], "`--n-training-samples` must be at least 10, got 1"),
        (["--layers", 99], "`--layers` must lie in 0 to 2, the model's layers, got 99"),
        (["--feature-counts", 999], "`--feature-counts` must be at most 32, got 999"),
        (["--device", "nowhere"], "`--device` 'nowhere' cannot be used here"),
        (["--expansion", 10**8], "`--expansion` asks for"),
        (["--base", "a-typo"], "unknown model 'a-typo': give one of smollm2-135m"),
        (["--base", "./a-typo"], "there is no model folder"),
    ],
)
def test_a_demo_that_cannot_be_is_refused_in_one_line_before_models_are_loaded(
    command, models, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(Plan, "run", None)
    status, line = command("demo", *models, "--k", 4, *options)
    assert (status, message in line) == (2, True), line
    assert line.startswith("diffsae-lens: ")
    assert not [*tmp_path.iterdir()]


def test_the_same_folder_serves_a_command_that_can_be(command, models, tmp_path, monkeypatch):
    assert command("demo", "--out", "run", *models, "--k", 4, "--layers", 99)[0] == 2

    def reached(*args, **kwargs):
        raise ValueError("reached")

    monkeypatch.setattr(Plan, "run", reached)
    assert command("demo", "--out", "run", *models, "--k", 4) == (2, "diffsae-lens: reached")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("make-organism", "--out", "file"), "`--out` must be a folder"),
        (("make-organism", "--out", "o", "--n-prompts", 0), "`--n-prompts` must be at least 1"),
        (("make-organism", "--out", "o", "--learning-rate", "inf"), "`--learning-rate` must be"),
        (("make-organism", "--out", "o", "--base", "a-typo"), "unknown model 'a-typo'"),
        (("zoo", "--only", "heron"), "`--only` must name organisms of the zoo"),
        (("zoo", "--nulls", -1), "`--nulls` must be at least 0, got -1"),
        (("zoo", "--out", "file"), "`--out` must be a folder"),
        (("zoo", "--base", "a-typo"), "unknown model 'a-typo'"),
        (("reproduce", "--out", "file"), "`--out` must be a folder"),
        (("reproduce", "--workers", 0), "`--workers` must be at least 1, got 0"),
        (("reproduce", "--device", "nowhere"), "`--device` 'nowhere' cannot be used here"),
        (("reproduce", "--so-far"), "no layer of the study in runs/quick is finished"),
        (("reproduce", "--scheduler", "nonsense"), "`--scheduler` 'nonsense' cannot be reached"),
        (
            ("reproduce", "--slurm", "jobs"),
            "`--slurm` must be KEY=VALUE, such as jobs=4, got 'jobs'",
        ),
        (("demo", "--slurm", "=4"), "`--slurm` must be KEY=VALUE, such as jobs=4, got '=4'"),
        (("zoo", "--scheduler", "nonsense"), "`--scheduler` 'nonsense' cannot be reached"),
        (("demo", "--out", "file"), "`--out` must be a folder"),
        (("demo", "--behaviour", "a-typo"), "`--behaviour` must be one of 'year-trigger', "),
        (("make-organism", "--out", "o", "--behaviour", "a-typo"), "`--behaviour` must be one of"),
    ],
)
def test_other_commands_that_cannot_be_are_refused_in_one_line(command, tmp_path, argv, message):
    (tmp_path / "file").write_text("mine")
    status, line = command(*argv)
    assert (status, message in line) == (2, True), line
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def failed_cell(cause):
    error = RuntimeError(f"the cell 'lora/organism' failed: {cause}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("`k` is wrong"), "`--k` is wrong"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x.png"),
            "runs/x.png: No space left on device; free some space and give the same command again",
        ),
        (OSError(errno.ENOSPC, "full: x was not written; free"), "full: x was not written; free"),
        (
            failed_cell(OSError(errno.ENOSPC, "full: x was not written; free")),
            "the cell 'lora/organism' failed: full: x was not written; free",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x: Permission denied; choose a folder with --out that can be written to",
        ),
        (ModelUnavailableError("'a/b' is not\nhere"), "'a/b' is not here"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory (CUDA out of memory.)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory (Default"),
        (
            ModuleNotFoundError("No", name="jinja2"),
            "jinja2 is missing; pip install 'diffsae-lens[plots]'",
        ),
        (failed_cell(ModelUnavailableError("offline")), "the cell 'lora/organism' failed: offline"),
        (failed_cell(MemoryError()), "out of memory (the cell 'lora/organism' failed"),
        (
            SafetensorError("invalid header"),
            "SafetensorError: invalid header; --verbose shows where",
        ),
        (KeyError("x"), "KeyError: 'x'; --verbose shows where"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_goes_wrong_is_one_line_and_a_traceback_on_demand(
    capsys, monkeypatch, tmp_path, error, said
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(study, "run", fail)
    argv = ["demo", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffsae-lens: {said}") or f" {said}" in line
    assert cli.main([*argv, "--verbose"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") or any(x.startswith("Traceback") for x in lines)
    assert lines[-1] == line


def test_an_interruption_ends_with_status_130_and_the_handler_is_put_back(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    def turned_into_another_error(*args, **kwargs):
        try:
            interrupted()
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'x' from partially initialized module") from None

    outside = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in a background job
    try:
        for fail in (interrupted, turned_into_another_error):
            monkeypatch.setattr(organisms, "make_organism", fail)
            assert cli.main(["make-organism", "--out", "o"]) == 130
            assert capsys.readouterr().err == "interrupted; the same command goes on where it was\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


@pytest.mark.parametrize("seconds", [0.4, pytest.param(0.8, marks=pytest.mark.slow)])
def test_an_interrupted_start_says_so(tmp_path, seconds):
    marker = tmp_path / "started"
    code = (
        "import pathlib, sys\n"
        "from diffsae_lens import cli\n"
        f"pathlib.Path({str(marker)!r}).touch()\n"
        f"sys.exit(cli.main(['demo', '--out', {str(tmp_path / 'run')!r}, '--k', '0']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background job
    )  # fmt: skip
    while not marker.exists():
        time.sleep(0.01)
    time.sleep(seconds)  # the imports take longer
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted; the same command goes on where it was\n"
    assert not (tmp_path / "run").exists()


def test_the_version_is_said_without_waiting_for_torch():
    code = (
        "import sys\nfrom diffsae_lens.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as end:\n"
        "    sys.exit(end.code or 'torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == f"diffsae-lens {__version__}\n"


def test_the_demos_command_gives_its_options_back(tmp_path, monkeypatch):
    """The report says how to run it again."""
    said = []
    monkeypatch.setattr(study, "run", lambda config, path, executor: config)
    monkeypatch.setattr(commands, "_report", lambda *args: said.append(args) or 0)
    argv = ["demo", "--out", "a b", "--layers", "14", "18", "--k", "8"]
    assert cli.main(argv) == 0
    [(config, out, command)] = said
    assert config.layers == (14, 18)
    assert config.tokens is not None
    assert config.tokens.k == 8
    assert out == Path("a b")
    assert shlex.split(command) == ["diffsae-lens", *argv]


def test_a_report_is_written_and_the_tables_are_printed(tmp_path, capsys):
    results = replace(synthetic_results(), example=(), sweep=(), effects=())
    assert commands._report(results, tmp_path, "diffsae-lens demo") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Strict BIS\n")
    for name in ("report.html", "tables.md", "figures/sayings.png"):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).exists()
    assert "diffsae-lens demo</code>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_plan_says_how_each_cell_is_computed(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo = ["demo", "--out", "a run", *models, "--k", "4", "--n-training-samples", "10"]
    assert cli.main([*demo, "--plan"]) == 0
    rows = {row["cell"]: row for row in json.loads(capsys.readouterr().out)}
    assert {row["state"] for row in rows.values()} == {"missing"}
    assert set(rows["1/dictionaries"]["needs"]) == {"tokens"}
    assert rows["tokens"]["resources"]["memory"] > 1e9
    command = shlex.split(rows["tokens"]["command"])
    assert command[0] == "diffsae-lens"
    assert command[-2:] == ["--cell", "tokens"]
    assert cli.main(command[1:]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "a run/cells" / rows["tokens"]["folder"]
    assert (folder / "artifact.json").exists()
    assert not [*(tmp_path / "a run").rglob("*.lock")]
    assert cli.main([*demo, "--plan"]) == 0
    rows = {row["cell"]: row for row in json.loads(capsys.readouterr().out)}
    assert [row["cell"] for row in rows.values() if row["state"] == "done"] == ["tokens"]
    assert cli.main([*demo, "--cell", "token"]) == 2
    assert "`--cell` must be one of " in capsys.readouterr().err
