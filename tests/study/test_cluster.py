"""Cells on Dask's workers: in threads here; in processes and on cut networks where marked slow."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster

from diffsae_lens._artifact import write_text
from diffsae_lens.study import _cells as cells
from diffsae_lens.study._cells import Cell, Cost, read_manifest
from diffsae_lens.study._cluster import ClusterExecutor, slurm_settings
from diffsae_lens.study._plan import Plan
from tests.benchmarks import cut_off
from tests.study.test_cells import cell, chain, value

QUIET = {"dashboard_address": None, "silence_logs": logging.ERROR}


@pytest.fixture(scope="module")
def client():
    """Two workers, threads of this process: one has a GPU and little memory, one much memory."""
    with (
        LocalCluster(n_workers=0, processes=False, **QUIET) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        spec = dict(cluster.new_worker_spec()[0])
        offers = {"small": {"GPU": 1, "memory": 1e9}, "large": {"memory": 8e9}}
        for name, offer in offers.items():
            options = spec["options"] | {"nthreads": 1, "resources": offer, "name": name}
            cluster.worker_spec[name] = {**spec, "options": options}
        cluster.sync(cluster._correct_state)
        client.wait_for_workers(2)
        yield client


@pytest.fixture
def executor(client):
    with ClusterExecutor(client, n_threads=1) as executor:
        yield executor


def files(folders):
    return {name: read_manifest(folder).files for name, folder in folders.items()}


def test_cells_end_as_in_a_serial_run(tmp_path, executor, caplog):
    caplog.set_level(logging.INFO, "diffsae_lens")
    found = Plan(chain(), tmp_path / "cluster").run(executor=executor)
    assert files(found) == files(Plan(chain(), tmp_path / "serial").run())
    assert value(found["sum"]) == 111
    assert "sum: finished" in caplog.text
    assert not list((tmp_path / "cluster").rglob("*.partial"))
    # No lock was taken.
    assert not list((tmp_path / "cluster").rglob("*.lock"))


@dataclass(frozen=True, kw_only=True)
class Where:
    number: int = 0


def where(config, inputs, job):
    """Writes which worker it ran on, of what it may use."""
    from distributed import get_worker

    job.held.setdefault("cells", []).append(config.number)
    said = [get_worker().name, torch.get_num_threads(), Path.cwd(), job.held["cells"]]
    (job.out / "value").write_text("\n".join(map(str, said)))


def lines(folder):
    return (folder / "value").read_text().splitlines()


def test_cells_land_on_workers_that_have_what_they_need(tmp_path, executor):
    gigabytes = {"large": Cost(seconds=1, gigabytes=4), "small": Cost(seconds=1, gigabytes=0.5)}
    made = [
        Cell(
            name=f"{worker}/{i}", run=where, config=Where(number=i), cost=gigabytes[worker],
            resources={"GPU": 1} if worker == "small" else {"FPGA": 1},  # which nobody declares
        )
        for i in range(4)
        for worker in ("large", "small")
    ]  # fmt: skip
    found = Plan(made, tmp_path).run(executor=executor)
    assert [lines(found[c.name])[:2] for c in made] == [[c.name.split("/")[0], "1"] for c in made]


def test_a_gpu_is_needed_where_cells_compute_on_one(tmp_path):
    tasks = Plan([cell("a", 1)], tmp_path, device="cuda:0").tasks
    assert tasks["a"].resources == {"GPU": 1}
    assert Plan([cell("a", 1)], tmp_path).tasks["a"].resources == {}


def test_a_cell_that_no_worker_can_take_is_refused_and_not_waited_for(tmp_path, executor):
    large = replace(cell("left", 1), cost=Cost(seconds=1, gigabytes=20))
    said = (
        r"'left' needs \{'memory': 20000000000.0\}, which no worker .* \{'memory': 8000000000.0\}"
    )
    with pytest.raises(RuntimeError, match=said):
        Plan([large], tmp_path).run(executor=executor)


def test_what_cells_hold_stays_with_the_worker_for_the_next(tmp_path, client, executor):
    needs = {"resources": {"GPU": 1}, "cost": Cost(seconds=1, gigabytes=0.5)}
    made = [Cell(name=f"{i}", run=where, config=Where(number=100 + i), **needs) for i in range(3)]
    found = Plan(made, tmp_path).run(executor=executor)
    held = [json.loads(lines(found[c.name])[-1]) for c in made]
    assert set(max(held, key=len)) >= {100, 101, 102}


def test_workers_compute_in_the_callers_folder(tmp_path, client, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ClusterExecutor(client) as executor:
        plan = Plan([Cell(name="a", run=where, config=Where())], "runs")
        assert plan.path == tmp_path / "runs"
        found = plan.run(executor=executor)
    assert lines(found["a"])[2] == str(tmp_path)
    assert int(lines(found["a"])[1]) >= 1


def test_a_failure_names_its_cell_and_nothing_new_is_begun(tmp_path, executor):
    made = [*chain()[1:], cell("sum", 1, "left", "right", fails=True)]
    with pytest.raises(RuntimeError, match="'sum' failed: no such number") as caught:
        Plan(made, tmp_path).run(executor=executor)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    waits = threading.Event()
    running = [executor.submit(time.sleep, 0.3) for _ in range(5)]
    running[-1].add_done_callback(lambda _: waits.set())
    assert running[-1].cancel()
    assert waits.is_set()
    assert running[-1].cancelled()


def test_any_call_can_be_made_and_results_come_in_order(executor):
    assert list(executor.map(pow, [2, 3, 4], [3, 2, 1])) == [8, 9, 4]


def test_other_packages_than_the_studys_are_refused(tmp_path, executor, monkeypatch):
    plan = Plan([cell("a", 1)], tmp_path)
    assert plan.tasks
    monkeypatch.setattr(cells, "version", lambda name: "9.9")
    with pytest.raises(RuntimeError, match="has other packages than the study: .*'9.9' there"):
        plan.run(executor=executor)


def test_one_cell_at_a_time_for_other_schedulers(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "SECONDS_UNTIL_SEEN", 0.5)
    plan = Plan(chain(), tmp_path)
    with pytest.raises(FileNotFoundError, match="'sum' needs this result of another cell"):
        plan.compute("sum")
    for name in ("right", "left", "sum"):
        assert plan.compute(name) == plan.tasks[name].path
    assert value(plan.tasks["sum"].path) == 111
    with pytest.raises(ValueError, match="`name` must be one of .*'left'"):
        plan.compute("middle")


def test_a_result_that_this_machine_does_not_see_yet_is_waited_for(tmp_path):
    folders = Plan(chain(), tmp_path).run()
    hidden = folders["left"].rename(tmp_path / "hidden")
    folders["sum"].rename(tmp_path / "gone")
    threading.Timer(0.7, hidden.rename, [folders["left"]]).start()
    assert value(Plan(chain(), tmp_path).compute("sum")) == 111


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"client": 3},
            TypeError,
            "`client` must be a scheduler's address or a distributed.Client",
        ),
        ({"client": "nonsense"}, ValueError, "cannot be reached"),
        ({"lease": 0}, ValueError, "`lease` must be"),
        ({"n_threads": 0}, ValueError, "`n_threads` must be at least 1"),
    ],
)
def test_what_is_no_cluster_is_refused(client, wrong, error, message):
    with pytest.raises(error, match=message):
        ClusterExecutor(**{"client": client, **wrong})


def test_without_the_extra_the_error_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'diffsae-lens\[cluster\]'"):
        ClusterExecutor("tcp://127.0.0.1:8786")


def test_the_job_script_asks_slurm_for_what_workers_declare():
    from dask_jobqueue import SLURMCluster

    options = {"cores": "8", "gpus": "1", "memory": "32GB", "queue": "long"}
    scheduler = {"dashboard_address": ":0"}
    with SLURMCluster(**slurm_settings(options), scheduler_options=scheduler) as cluster:
        script = cluster.job_script()
    for line in (
        "-p long",
        "-n 1",
        "--cpus-per-task=8",
        "--mem=30G",
        "--gres=gpu:1",
        "-t 04:00:00",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "--nthreads 1 " in script
    assert '--resources "memory=32000000000 GPU=1" --memory-limit 0' in script


@dataclass(frozen=True, kw_only=True)
class Steps:
    log: str = field(compare=False)
    until: int = 60


def steps(config, inputs, job):
    """Counts with a checkpoint per step, and writes who did each."""
    checkpoint = job.scratch / "checkpoint"
    count = int(checkpoint.read_text()) if checkpoint.exists() else 0
    while count < config.until:
        time.sleep(0.05)
        count += 1
        write_text(checkpoint, str(count))
        with Path(config.log).open("a") as file:
            file.write(f"{os.getpid()} {count}\n")
    (job.out / "value").write_text(str(count + len(inputs)))


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_is_gone_on_with_by_another(tmp_path):
    log = tmp_path / "log"
    made = [
        Cell(name="counted", run=steps, config=Steps(log=str(log))),
        Cell(
            name="after", run=steps, config=Steps(log=str(tmp_path / "other"), until=2),
            inputs={"counted": "counted"},
        ),
    ]  # fmt: skip
    serial = files(Plan(made, tmp_path / "serial").run())
    log.unlink()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, **QUIET) as cluster,
        Client(cluster, set_as_default=False) as client,
        ThreadPoolExecutor(1) as pool,
        ClusterExecutor(client, lease=2.0) as executor,
    ):
        pids = set(client.run(os.getpid).values())
        running = pool.submit(Plan(made, tmp_path / "cluster").run, executor=executor)
        while not log.exists() or len(log.read_text().splitlines()) < 20:
            time.sleep(0.05)
        killed = int(log.read_text().split()[0])
        assert killed in pids
        os.kill(killed, signal.SIGKILL)
        assert files(running.result(120)) == serial
    did = [line.split() for line in log.read_text().splitlines()]
    assert {int(pid) for pid, _ in did} > {killed}
    counts = [int(count) for _, count in did]
    assert sorted({*counts}) == [*range(1, 61)]
    assert len(counts) <= 61  # at most the step that was killed is done again
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_a_study_that_loses_a_killed_and_a_cut_off_host_ends_as_a_serial_run(tmp_path):
    if why := cut_off.cannot():
        pytest.skip(why)
    said = tmp_path / "log"
    command = [sys.executable, "-m", "tests.benchmarks.cut_off", "--log", str(said)]
    done = subprocess.run(command, cwd=cut_off.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"results equal: True; \d\d+ files of cells equal: True", said.read_text())


@pytest.mark.parametrize(
    "options", [{"cores": "x"}, {"cores": "0"}, {"gpus": "-1"}, {"cores": "1.5"}]
)
def test_numbers_for_slurm_are_whole(options):
    with pytest.raises(ValueError, match="must be a whole number, such as"):
        slurm_settings(options)
