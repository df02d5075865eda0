"""The policy for results on disk, on artifacts of a few bytes."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffsae_lens import _artifact, _disk
from diffsae_lens._artifact import (
    build,
    build_json,
    differences,
    find,
    locked,
    naming,
    open_artifact,
    read_json,
    write_bytes,
    write_json,
)

RECIPE = {"lr": 0.1, "seed": 0, "model": {"name": "a", "layers": [1, 2]}}


def write(job):
    (job.out / "sub").mkdir()
    (job.out / "sub/weights").write_bytes(b"weights")
    (job.out / "config").write_text("config")
    return {"folder": "runs/a"}


def never(job):
    raise AssertionError("it was made again")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# --- made once -----------------------------------------------------------------------------------


def test_an_artifact_is_made_once_and_says_what_it_is(tmp_path):
    made = build(tmp_path / "a", RECIPE, write)
    again = build(tmp_path / "a", RECIPE, never)
    assert again == made
    assert made.recipe == RECIPE
    assert made.facts == {"folder": "runs/a"}
    stored = json.loads((tmp_path / "a/artifact.json").read_text())
    assert stored["files"] == {
        "config": hashlib.sha256(b"config").hexdigest(),
        "sub/weights": hashlib.sha256(b"weights").hexdigest(),
    }
    assert stored["made"]["versions"]["torch"] == version("torch")
    assert names(tmp_path) == ["a"]


def test_files_that_the_manifest_does_not_have_are_tolerated(tmp_path):
    build(tmp_path / "a", RECIPE, write)
    (tmp_path / "a/README.md").write_text("a note")
    build(tmp_path / "a", RECIPE, never)
    assert (tmp_path / "a/README.md").exists()


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    build(tmp_path / "a", RECIPE, write)
    assert (tmp_path / "a/config").exists()


@pytest.mark.parametrize("damage", ["changed", "removed", "cut short", "no manifest"])
def test_a_damaged_artifact_is_named_set_aside_and_made_anew(tmp_path, caplog, damage):
    build(tmp_path / "a", RECIPE, write)
    for expected in (["a", "a.damaged"], ["a", "a.damaged", "a.damaged-2"]):
        file = tmp_path / "a/sub/weights"
        if damage == "changed":
            flip(file)
        elif damage == "removed":
            file.unlink()
        elif damage == "cut short":
            file.write_bytes(file.read_bytes()[:3])
        else:
            file = tmp_path / "a/artifact.json"
            file.write_text(file.read_text()[:50])
        with pytest.raises(ValueError, match=f"{file.name}.*(remove it|made anew)"):
            open_artifact(tmp_path / "a")
        assert find(tmp_path / "a", RECIPE) is None
        caplog.clear()
        build(tmp_path / "a", RECIPE, write)
        assert file.name in caplog.text
        assert "set aside as a.damaged" in caplog.text
        assert names(tmp_path) == expected
    build(tmp_path / "a", RECIPE, never)


def test_another_recipe_is_refused_with_the_difference_and_nothing_is_touched(tmp_path):
    build(tmp_path / "a", RECIPE, write)
    other = RECIPE | {"lr": 0.2, "model": {"name": "b", "layers": [1, 2]}}
    expected = r"lr: 0.1 there, 0.2 asked for; model.name: 'a' there, 'b' asked for.*another path"
    with pytest.raises(ValueError, match=expected):
        build(tmp_path / "a", other, never)
    build(tmp_path / "a", RECIPE, never)
    assert names(tmp_path) == ["a"]


def test_differences_have_dotted_names_and_an_end():
    assert differences({"a": 1}, {"a": 1, "b": None}) == "b: nothing there, None asked for"
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a[1].b: 2 there, 3 asked for"
    assert differences({"a": [1]}, {"a": [1, 2]}) == "a: [1] there, [1, 2] asked for"
    many = differences({str(i): 0 for i in range(20)}, {str(i): 1 for i in range(20)})
    assert many.endswith("and 8 more")
    assert len(differences({"a": "x" * 500}, {"a": "y" * 500})) < 250


# --- what is not ours ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a.partial"])
@pytest.mark.parametrize("file", ["thesis.tex", "artifact.json", "recipe.json"])
def test_a_folder_of_the_user_is_refused_and_never_touched(tmp_path, name, file):
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text('{"mine": true}')
    with pytest.raises(ValueError, match="is not touched"):
        build(tmp_path / "a", RECIPE, write)
    assert names(tmp_path) == [name]
    assert (tmp_path / name / file).read_text() == '{"mine": true}'


def test_a_path_that_is_a_file_or_has_no_name_is_refused(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="is not touched"):
        build(tmp_path / "a", RECIPE, write)
    for path in ("", ".", "..", tmp_path / ".."):
        with pytest.raises(ValueError, match="`path` must end in a name"):
            build(path, RECIPE, write)


# --- interrupted ---------------------------------------------------------------------------------


def interrupted(job):
    (job.out / "half").write_text("half")
    (job.scratch / "done").write_text("done")
    raise KeyboardInterrupt


def test_what_an_interrupted_attempt_did_is_gone_on_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "a", RECIPE, interrupted)
    assert not (tmp_path / "a").exists()

    def go_on(job):
        assert (job.scratch / "done").read_text() == "done"
        assert not list(job.out.iterdir())
        (job.out / "whole").write_text("whole")

    with pytest.raises(ValueError, match=r"unfinished run.*seed: 0 there, 1 asked for.*remove it"):
        build(tmp_path / "a", RECIPE | {"seed": 1}, never)
    build(tmp_path / "a", RECIPE, go_on)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["artifact.json", "whole"]


def test_a_refused_attempt_leaves_nothing_in_the_way_of_the_next(tmp_path):
    def refused(job):
        raise ValueError("`layers` must be below 30")

    with pytest.raises(ValueError, match="below 30"):
        build(tmp_path / "a", RECIPE, refused)
    assert names(tmp_path) == []
    build(tmp_path / "a", RECIPE | {"seed": 1}, write)


@pytest.mark.parametrize("left", ["everything", "the mark", "an empty folder"])
def test_what_a_kill_after_the_rename_left_is_cleaned_up(tmp_path, left):
    build(tmp_path / "a", RECIPE, write)
    work = tmp_path / "a.partial"
    work.mkdir()
    if left != "an empty folder":
        write_json(work / "recipe.json", {"format": _artifact.FORMAT, "recipe": RECIPE})
    if left == "everything":
        (work / "scratch").mkdir()
        (work / "scratch/shard").write_text("done")
    build(tmp_path / "a", RECIPE, never)
    assert names(tmp_path) == ["a"]


def test_a_finished_artifact_on_a_read_only_disk_is_opened(tmp_path, monkeypatch):
    build(tmp_path / "a", RECIPE, write)
    (tmp_path / "a.partial").mkdir()

    def read_only(*_):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(_artifact, "locked", read_only)
    build(tmp_path / "a", RECIPE, never)


def test_a_second_process_waits_and_says_so_then_opens(tmp_path, caplog):
    code = (
        "import sys, time\n"
        "from diffsae_lens._artifact import build\n"
        "def write(job):\n"
        "    (job.out / 'f').write_text('first')\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(1)\n"
        "build(sys.argv[1], {'x': 1}, write)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        build(tmp_path / "a", {"x": 1}, never)
    assert f"waiting for another process that is making {tmp_path / 'a'}" in caplog.text
    assert (tmp_path / "a/f").read_text() == "first"


# --- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mount, check=False).returncode
    ):
        pytest.skip("a small disk can only be mounted by root, on Linux")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_by_bytes(job):
    (job.out / "weights").write_bytes(bytes(2**22))


def full_by_safetensors(job):
    save_file({"w": torch.zeros(2**20)}, job.out / "weights")


def full_by_torch(job):
    torch.save(torch.zeros(2**20), job.out / "weights")


@pytest.mark.parametrize("fill", [full_by_bytes, full_by_safetensors, full_by_torch])
def test_a_full_disk_names_the_path_and_leaves_nothing_half_written(small_disk, fill):
    (small_disk / "kept").write_text("kept")
    with pytest.raises(
        OSError, match=r"No space left.*small/a was not written; free some space"
    ) as e:
        build(small_disk / "a", RECIPE, fill)
    assert e.value.errno == errno.ENOSPC
    assert names(small_disk) == ["kept"]
    with pytest.raises(OSError, match="f.bin was not written"):
        write_bytes(small_disk / "f.bin", bytes(2**22))
    assert names(small_disk) == ["kept"]


def test_a_full_disk_keeps_what_is_done(small_disk):
    def fill(job):
        (job.scratch / "done").write_text("done")
        full_by_bytes(job)

    with pytest.raises(OSError, match="it goes on with what .*a.partial keeps"):
        build(small_disk / "a", RECIPE, fill)

    def go_on(job):
        (job.out / "n").write_text((job.scratch / "done").read_text())

    build(small_disk / "a", RECIPE, go_on)
    assert (small_disk / "a/n").read_text() == "done"


def test_a_write_that_fails_half_way_leaves_the_old_content(tmp_path, monkeypatch):
    write_json(tmp_path / "f.json", [1])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_disk.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*f.json was not written; free some space"):
        write_json(tmp_path / "f.json", [2])
    assert names(tmp_path) == ["f.json"]
    assert read_json(tmp_path / "f.json") == [1]


def test_a_forbidden_path_says_to_choose_another(tmp_path):
    with (
        pytest.raises(PermissionError, match="x was not written; choose a path"),
        naming(tmp_path / "x"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_other_errors_of_the_writer_pass_unchanged():
    for error in (
        FileNotFoundError(errno.ENOENT, "no such model"),
        OSError("no hub"),
        RuntimeError(),
    ):
        with pytest.raises(type(error)) as caught, naming(Path("x")):
            raise error
        assert caught.value is error


def test_temporary_files_of_killed_writes_are_swept(tmp_path):
    old, new = (tmp_path / f".f.json.{name}.writing" for name in ("old", "new"))
    for file in (old, new):
        file.write_text("half")
    os.utime(old, (time.time() - 1e5,) * 2)
    write_json(tmp_path / "f.json", [1])
    assert not old.exists()
    assert new.exists()  # perhaps another process is writing it


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"nonsense"])
def test_json_that_cannot_be_read_names_the_file_and_the_remedy(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is not JSON.*remove it"):
        read_json(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="other.json"):
        read_json(tmp_path / "other.json")


def test_json_does_not_hold_nan(tmp_path):
    with pytest.raises(ValueError, match="f.json cannot be written as JSON"):
        write_json(tmp_path / "f.json", [float("nan")])
    assert names(tmp_path) == []


def never_computed():
    raise AssertionError("it was computed again")


def test_a_json_value_is_computed_once(tmp_path):
    path = tmp_path / "cells/scores.json"
    assert build_json(path, RECIPE, lambda: {"rows": (1, 2.5)}) == {"rows": [1, 2.5]}
    assert build_json(path, RECIPE, never_computed) == {"rows": [1, 2.5]}
    with pytest.raises(ValueError, match=r"scores.json.*seed: 0 there, 1 asked for"):
        build_json(path, RECIPE | {"seed": 1}, never_computed)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda text: text.replace("2.5", "9.5"), "its value was edited"),
        (lambda text: text[:40], "is not JSON"),
        (lambda _: "[]", "does not have"),
    ],
)
def test_a_json_value_that_was_edited_is_set_aside_and_computed_again(
    tmp_path, caplog, edit, expected
):
    path = tmp_path / "scores.json"
    build_json(path, RECIPE, lambda: [2.5])
    path.write_text(edit(path.read_text()))
    assert build_json(path, RECIPE, lambda: [2.5]) == [2.5]
    assert expected in caplog.text
    assert names(tmp_path) == ["scores.json", "scores.json.damaged"]
    assert build_json(path, RECIPE, never_computed) == [2.5]


def test_locks_may_be_taken_in_a_folder_that_is_not_there(tmp_path):
    with locked(tmp_path / "runs/a"):
        assert (tmp_path / "runs").is_dir()


# --- kills ---------------------------------------------------------------------------------------


def kill(subjects: str, folder: Path, n_rounds: int) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.kills"]
    command += [subjects, str(folder), str(n_rounds), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    for name, found in reports.items():
        assert found["n_files"] > 0, name
        assert found["changed"] == [], name
        assert found["left"] == [], name
    assert sum(found["n_killed"] for found in reports.values()) > 0


def test_killed_at_random_moments_the_next_run_ends_in_the_same_bytes(tmp_path):
    kill("artifact", tmp_path / "k", 2)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["artifact", "harvest", "training", "finetune"])
def test_killed_many_times_the_next_run_ends_in_the_same_bytes(tmp_path, subject):
    kill(subject, tmp_path / "k", 12)
