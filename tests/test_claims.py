"""Artifacts on a disk whose locks are not trusted."""

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffsae_lens import _artifact, _claims, _disk
from diffsae_lens._artifact import build, build_json, locked, write_json
from diffsae_lens._claims import is_sharing, sharing
from tests.test_artifact import RECIPE, names, never

LEASE = 0.4


def shared(path, write, lease=LEASE):
    """Builds as a process of its own would: contexts are per thread."""
    with sharing(lease):
        return build(path, RECIPE, write)


def writer(text, begun=None, go_on=None):
    def write(job):
        (job.out / "value").write_text(text)
        if begun is not None:
            begun.set()
        if go_on is not None:
            assert go_on.wait(20)

    return write


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as executor:
        yield executor


def test_locks_are_not_taken_where_other_machines_write_too(tmp_path):
    with locked(tmp_path / "a"):  # held by a machine that was cut off, for ever
        with sharing(LEASE):
            made = build(tmp_path / "a", RECIPE, writer("here"))
            assert build_json(tmp_path / "b", RECIPE, lambda: 3) == 3
            assert is_sharing()
        assert not is_sharing()
    assert build(tmp_path / "a", RECIPE, never) == made
    assert names(tmp_path) == ["a", "b"]


def test_two_that_make_the_same_end_with_the_result_of_the_first(tmp_path, pool, monkeypatch):
    # Neither sees the other, as when both begin at once.
    monkeypatch.setattr(_claims, "work_folders", lambda path: [])
    begun, go_on = [threading.Event(), threading.Event()], threading.Event()
    slow, quick = writer("slow", begun[0], go_on), writer("quick", begun[1])
    first = pool.submit(shared, tmp_path / "a", slow)
    assert begun[0].wait(20)
    of_quick = pool.submit(shared, tmp_path / "a", quick).result()
    go_on.set()
    assert first.result() == of_quick
    assert (tmp_path / "a/value").read_text() == "quick"
    assert names(tmp_path) == ["a"]


def test_one_whose_work_folder_another_removed_takes_the_others_result(tmp_path, pool):
    begun, go_on = threading.Event(), threading.Event()

    def fails_without_its_folder(job):
        writer("slow", begun, go_on)(job)
        (job.scratch / "more").write_text("there is no such folder any more")

    first = pool.submit(shared, tmp_path / "a", fails_without_its_folder)
    assert begun.wait(20)
    # One on a machine that does hold the lock, such as a run at the same time.
    made = build(tmp_path / "a", RECIPE, writer("quick"))
    assert names(tmp_path) == ["a"]
    go_on.set()
    assert first.result() == made


def test_an_attempt_that_lives_is_waited_for_however_long_it_takes(tmp_path, pool, caplog):
    begun, go_on = threading.Event(), threading.Event()
    first = pool.submit(shared, tmp_path / "a", writer("first", begun, go_on))
    assert begun.wait(20)
    second = pool.submit(shared, tmp_path / "a", never)
    time.sleep(3 * LEASE)
    assert not second.done()
    go_on.set()
    assert first.result() == second.result()
    assert f"waiting for another process that is making {tmp_path / 'a'}" in caplog.text


def left_by_a_killed_process(path: Path, rested: float = 0) -> Path:
    work = path.with_name(f"{path.name}.0123abcd.partial")
    (work / "scratch").mkdir(parents=True)
    (work / "scratch/done").write_text("half")
    write_json(work / "recipe.json", {"format": _artifact.FORMAT, "recipe": _disk.plain(RECIPE)})
    os.utime(work / "recipe.json", (time.time() - rested,) * 2)
    return work


def test_what_a_killed_process_left_is_gone_on_with_after_the_lease(tmp_path):
    work = left_by_a_killed_process(tmp_path / "a")

    def go_on(job):
        assert not work.exists()  # had its owner lived, it would fail now
        assert (job.scratch / "done").read_text() == "half"
        (job.out / "value").write_text("whole")

    start = time.monotonic()
    shared(tmp_path / "a", go_on)
    assert time.monotonic() - start >= LEASE
    assert names(tmp_path) == ["a"]


def test_an_attempt_that_failed_is_gone_on_with_at_once(tmp_path):
    def fails(job):
        (job.scratch / "done").write_text("half")
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        shared(tmp_path / "a", fails, lease=1e6)
    [work] = tmp_path.iterdir()
    assert work.name.endswith(".partial")

    def go_on(job):
        assert (job.scratch / "done").read_text() == "half"

    shared(tmp_path / "a", go_on, lease=1e6)
    assert names(tmp_path) == ["a"]


def test_work_folders_of_others_go_when_the_result_is_there(tmp_path):
    for name in ("a", "b"):
        left_by_a_killed_process(tmp_path / name)
    (tmp_path / "a.mine.partial").mkdir()
    build(tmp_path / "a", RECIPE, writer("here"))
    assert names(tmp_path) == ["a", "a.mine.partial", "b.0123abcd.partial"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, caplog, code):
    def acquire(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_disk.FileLock, "acquire", acquire)
    build(tmp_path / "a", RECIPE, writer("here"))
    assert "cannot be locked" in caplog.text
    assert json.loads((tmp_path / "a/artifact.json").read_text())["files"].keys() == {"value"}
    assert not is_sharing()
    assert names(tmp_path) == ["a"]


def test_many_at_once_end_with_one_whole_result(tmp_path):
    with ThreadPoolExecutor(8) as executor:

        def write(job):
            (job.out / "value").write_text(threading.current_thread().name)

        found = list(executor.map(lambda _: shared(tmp_path / "a", write), range(24)))
    assert all(manifest == found[0] for manifest in found)
    assert names(tmp_path) == ["a"]
