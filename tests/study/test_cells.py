import json
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from diffsae_lens._artifact import MANIFEST, sha256
from diffsae_lens.study._cells import Cell, compute, read_manifest
from diffsae_lens.study._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Number:
    value: float
    fails: bool = False
    log: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Until:
    until: int = 12


def number(config, inputs, folders):
    """Writes the sum of its config's value and its inputs', and that it ran."""
    if config.fails:
        (folders.out / "half").write_text("written")
        raise ArithmeticError("no such number")
    values = [json.loads((path / "value").read_text()) for path in inputs.values()]
    (folders.out / "value").write_text(str(config.value + sum(values)))
    if log := config.log:
        with Path(log).open("a") as file:
            file.write("ran\n")


def slow(config, inputs, folders):
    """Counts to ten with a checkpoint a step, and can be killed anywhere."""
    checkpoint = folders.scratch / "checkpoint"
    count = int(checkpoint.read_text()) if checkpoint.exists() else 0
    (folders.out / "started").write_text("half-written")
    while count < config.until:
        time.sleep(0.02)
        count += 1
        partial = checkpoint.with_name("checkpoint.partial")
        partial.write_text(str(count))
        partial.replace(checkpoint)
        with Path(os.environ["STEP_LOG"]).open("a") as file:
            file.write("step\n")
    (folders.out / "started").unlink()
    (folders.out / "value").write_text(str(count + sum(1 for _ in inputs)))


def cell(name, value, *inputs, **options):
    fields = {k: options.pop(k) for k in ("version", "run") if k in options}
    needed = {f"the {name}": name for name in inputs}
    config = Number(value=value, **options)
    return Cell(name=name, **{"run": number, **fields}, config=config, inputs=needed)


def chain(**options):
    return [cell("sum", 1, "left", "right"), cell("left", 10, **options), cell("right", 100)]


def value(folder):
    return int((folder / "value").read_text())


def test_cells_run_after_what_they_need_and_once(tmp_path):
    log = str(tmp_path / "log")
    folders = Plan(chain(log=log), tmp_path).run()
    assert {name: value(f) for name, f in folders.items()} == {"left": 10, "right": 100, "sum": 111}
    assert list(folders) == ["left", "right", "sum"]
    assert Plan(chain(log=log), tmp_path).run() == folders
    assert Path(log).read_text() == "ran\n"
    manifest = read_manifest(folders["sum"])
    # Where it writes that it ran plays no part.
    assert manifest.recipe["config"] == {"value": 1, "fails": False}
    assert set(manifest.recipe["inputs"]) == {"the left", "the right"}
    assert manifest.files == {"value": sha256(folders["sum"] / "value")}
    assert manifest.facts["gigabytes"] is None or manifest.facts["gigabytes"] > 0
    assert manifest.facts["seconds"] >= 0
    assert not list((tmp_path / "cells").glob("*.partial"))


@pytest.mark.parametrize("change", [{"value": 11}, {"version": 2}])
def test_a_change_reaches_what_depends_on_it_and_nothing_else(tmp_path, change):
    before = Plan(chain(), tmp_path).run()
    cells = {c.name: c for c in chain()}
    cells["left"] = cell("left", change.get("value", 10), version=change.get("version", 1))
    after = Plan(cells.values(), tmp_path).run()
    assert {name for name in before if before[name] != after[name]} == {"left", "sum"}
    assert value(before["left"]) == 10  # what was there is kept


def spoil_value(folder):
    (folder / "value").write_text("12")


def spoil_manifest(folder):
    (folder / MANIFEST).write_text('{"key": ')


def spoil_by_removing(folder):
    (folder / "value").unlink()


def spoil_by_exchange(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["recipe"]["config"]["value"] = 11
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (spoil_value, "value was changed"),
        (spoil_manifest, "artifact.json is not JSON"),
        (spoil_by_removing, "value is missing"),
        (spoil_by_exchange, "of another cell (config.value: 11 there, 10 asked for)"),
    ],
)
def test_what_is_damaged_is_named_set_aside_and_computed_again(tmp_path, caplog, spoil, problem):
    folders = Plan(chain(), tmp_path).run()
    for _ in range(2):
        spoil(folders["left"])
        [row] = [r for r in Plan(chain(), tmp_path).states() if r["state"] == "damaged"]
        assert row["cell"] == "left"
        assert problem in row["problem"]
        assert value(Plan(chain(), tmp_path).run()["left"]) == 10
    assert problem in caplog.text
    assert len(list((tmp_path / "cells").glob("left-*.damaged*"))) == 2


def test_a_folder_that_is_not_a_result_is_refused_and_left_alone(tmp_path):
    folder = Plan(chain(), tmp_path).tasks["left"].path
    folder.mkdir(parents=True)
    (folder / "mine").write_text("precious")
    [row] = [r for r in Plan(chain(), tmp_path).states() if r["state"] == "damaged"]
    assert row["cell"] == "left"
    with pytest.raises(RuntimeError, match=r"'left' failed: .*is not an artifact of this package"):
        Plan(chain(), tmp_path).run()
    assert (folder / "mine").read_text() == "precious"


def test_what_was_made_from_a_result_that_came_out_differently_is_made_again(tmp_path):
    folders = Plan(chain(), tmp_path).run()
    manifest = json.loads((folders["left"] / MANIFEST).read_text())
    # As if the cell had been computed again on another device, with another rounding.
    (folders["left"] / "value").write_text("20")
    manifest["files"]["value"] = sha256(folders["left"] / "value")
    (folders["left"] / MANIFEST).write_text(json.dumps(manifest))
    states = {r["cell"]: (r["state"], r["problem"]) for r in Plan(chain(), tmp_path).states()}
    assert states["sum"] == ("damaged", "it was made from another result of 'the left'")
    assert value(Plan(chain(), tmp_path).run()["sum"]) == 121


def test_a_manifest_inside_a_result_says_how_long_it_took_and_nothing_more(tmp_path):
    def nested(seconds):
        folders = Plan(chain(), tmp_path / seconds).run()
        (folders["left"] / "inner").mkdir()
        (folders["left"] / "inner" / MANIFEST).write_text(seconds)
        manifest = json.loads((folders["left"] / MANIFEST).read_text())
        inner = sha256(folders["left"] / "inner" / MANIFEST)
        manifest["files"][f"inner/{MANIFEST}"] = inner
        (folders["left"] / MANIFEST).write_text(json.dumps(manifest))
        return Plan(chain(), tmp_path / seconds).tasks["sum"].input_digests()

    assert nested("1.5") == nested("2.5")


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_failure_names_its_cell_and_keeps_the_others(tmp_path, n_workers):
    cells = [*chain()[1:], cell("sum", 1, "left", "right", fails=True)]
    context = ThreadPoolExecutor(n_workers) if n_workers else nullcontext()
    with (
        context as executor,
        pytest.raises(RuntimeError, match=r"'sum' failed: no such number") as caught,
    ):
        Plan(cells, tmp_path).run(executor=executor)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    states = {r["cell"]: r["state"] for r in Plan(chain(), tmp_path).states()}
    assert states == {"left": "done", "right": "done", "sum": "missing"}


def test_several_processes_compute_each_cell_once(tmp_path):
    log = str(tmp_path / "log")
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as executor:
        folders = Plan(chain(log=log), tmp_path).run(executor=executor)
        assert value(folders["sum"]) == 111
        task = Plan([cell("left", 5, log=log)], tmp_path).tasks["left"]
        for future in [executor.submit(compute, task) for _ in range(4)]:
            future.result()
    assert Path(log).read_text() == "ran\n" * 2


def count_slowly(folder, log):
    os.environ["STEP_LOG"] = str(log)
    needed = (("a", ""), ("b", "a"), ("c", "ab"))
    cells = [
        Cell(name=n, run=slow, config=Until(), inputs={i: i for i in ins}) for n, ins in needed
    ]
    Plan(cells, folder).run()


def test_killed_twice_it_resumes_to_the_same_result(tmp_path):
    log = tmp_path / "log"

    def start(folder, log):
        process = get_context("fork").Process(target=count_slowly, args=(tmp_path / folder, log))
        process.start()
        return process

    def n_steps():
        return log.read_text().count("step") if log.exists() else 0

    start("whole", tmp_path / "other").join()
    for at in (5, 21):
        process = start("killed", log)
        while n_steps() < at:
            assert process.is_alive()
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = start("killed", log)
    last.join()
    assert last.exitcode == 0

    def results(folder):
        return {
            p.relative_to(tmp_path / folder): p.read_text()
            for p in sorted((tmp_path / folder).rglob("value"))
        }

    assert results("killed") == results("whole")
    assert len(results("whole")) == 3
    assert n_steps() < 36 + 4  # at most one step is done again for each kill


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([cell("a", 1), cell("a", 2)], "two cells are called 'a'"),
        ([cell("a", 1, "b")], r"'a' needs \['b'\], which no cell makes"),
        ([cell("a", 1, "b"), cell("b", 1, "a")], "in a circle"),
    ],
)
def test_bad_plans_are_refused(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        Plan(cells, tmp_path)


def test_a_config_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Plan([cell("a", float("nan"))], tmp_path).run()
