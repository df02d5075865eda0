"""A study on three worker hosts, one of which is killed in mid-cell and one cut from the network.

    python -m tests.benchmarks.cut_off [--log FILE]

The hosts are network namespaces of this machine over one folder, which takes root and `ip`. Prints what
happened, and fails if the results differ from those of a serial run.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HOW = ("artifact.json", "trainer_cfg.json")
NET, PORT, LEASE = "10.231.77", 8791, 6.0
ROOT = Path(__file__).parents[2]
TIMEOUTS = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s",
}
"""After how long a silent connection is taken to be lost; Dask's own are 30 s."""


def ip(*words: str, netns: str | None = None) -> None:
    inside = ["-n", netns] if netns else []
    subprocess.run(["ip", *inside, *words], check=True, capture_output=True, text=True)


def cannot() -> str:
    """Why there can be no hosts here; "" if there can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "namespaces need Linux and `ip`"
    name = f"dl-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"namespaces cannot be made: {error.stderr.strip()}"
    return ""


@dataclass
class Host:
    """A worker in a namespace of its own."""

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def cut(self) -> None:
        """Take its network away; it goes on computing."""
        ip("link", "set", "eth0", "down", netns=self.name)


@contextmanager
def hosts(n: int, logs: Path) -> Iterator[list[Host]]:
    """A scheduler at `NET`.1 and workers beside it; all of it is removed at the end."""
    tag = f"dl{os.getpid() % 10000}"
    environment = os.environ | TIMEOUTS | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(stack: ExitStack, name: str, *words: str) -> subprocess.Popen[bytes]:
        log = stack.enter_context((logs / f"{name}.log").open("wb"))
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=ROOT)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    with ExitStack() as stack:
        ip("link", "add", tag, "type", "bridge")
        stack.callback(ip, "link", "del", tag)
        ip("addr", "add", f"{NET}.1/24", "dev", tag)
        ip("link", "set", tag, "up")
        start(
            stack, "scheduler", sys.executable, "-m", "distributed.cli.dask_scheduler",
            "--host", f"{NET}.1", "--port", str(PORT), "--no-dashboard",
        )  # fmt: skip
        found = []
        for i in range(n):
            name, outer = f"{tag}-{i}", f"{tag}v{i}"
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", outer, "master", tag, "up")
            ip("addr", "add", f"{NET}.{10 + i}/24", "dev", "eth0", netns=name)
            ip("link", "set", "eth0", "up", netns=name)
            ip("link", "set", "lo", "up", netns=name)
            process = start(
                stack, name, "ip", "netns", "exec", name,
                sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{NET}.1:{PORT}",
                "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0",
            )  # fmt: skip
            found.append(Host(name=name, address=f"{NET}.{10 + i}", process=process))
        yield found


def tiny_study(folder: Path) -> Any:
    from tests.conftest import byte_tokenizer, plant, tiny_llama, write_tiny_model
    from tests.study.tiny import tiny_config

    tokenizer = byte_tokenizer(folder / "tokenizer")
    base = tiny_llama(max_position_embeddings=1024)
    return tiny_config(
        write_tiny_model(folder / "base", base, tokenizer),
        write_tiny_model(folder / "finetuned", plant(base), tokenizer),
    )


def stored(path: Path) -> dict[str, dict[str, str]]:
    """What the cells hold: the hashes of their files, but of those that say how it was made and where.

    Of JSON, the hash of its value: SAELens writes the keys of a config in the order of a set.
    """
    from diffsae_lens._artifact import digest, open_artifact, read_json

    found = {}
    for folder in sorted(p for p in (path / "cells").iterdir() if p.is_dir()):
        found[folder.name] = {
            name: digest(read_json(folder / name)) if name.endswith(".json") else sha256
            for name, sha256 in open_artifact(folder).files.items()
            if Path(name).name not in HOW
        }
    return found


def main() -> None:
    """Run the study twice and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, help="also write there what is printed")
    log = parser.parse_args().log
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # what was set up is removed
    if why := cannot():
        print(f"skipped: {why}")
        return
    start, said = time.monotonic(), []

    def say(text: str) -> None:
        said.append(f"{time.monotonic() - start:6.1f} s  {text}")
        print(said[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        same = compare(Path(name), say)
    if log is not None:
        log.write_text("\n".join(said) + "\n")
    if not same:
        sys.exit("the results differ")


def compare(folder: Path, say: Any) -> bool:
    """Whether a study with two hosts lost ends in the results of a serial run."""
    from diffsae_lens.study import ClusterExecutor, run

    config = tiny_study(folder)
    with hosts(3, folder) as workers:
        serial = run(config, folder / "serial")
        say(f"serial run: {len(serial.cells)} cells, {sum(c.seconds or 0 for c in serial.cells)} s")
        with ClusterExecutor(f"tcp://{NET}.1:{PORT}", lease=LEASE, n_threads=1) as executor:
            executor._client.wait_for_workers(3, timeout=180)
            executor._client.run(__import__, "diffsae_lens.study._stages")
            say("three hosts have joined the scheduler, and imported what cells need")
            wrong = threading.Thread(target=go_wrong, args=(executor._client, workers, say))
            wrong.start()
            parallel = run(config, folder / "cluster", executor=executor)
            wrong.join()
            say(f"the study is finished; hosts left: {sorted(names(executor._client))}")
    one, other = (replace(results, cells=(), versions={}) for results in (serial, parallel))
    files, others = stored(folder / "serial"), stored(folder / "cluster")
    same = one == other, files == others
    for cell, name in sorted((cell, name) for cell, of in files.items() for name in of):
        if files[cell][name] != others.get(cell, {}).get(name):
            say(f"{cell}/{name} differs")
    n_files = sum(map(len, files.values()))
    left = [p.name for p in (folder / "cluster").rglob("*.partial")]
    say(
        f"results equal: {same[0]}; {n_files} files of cells equal: {same[1]}; work folders left: {left}"
    )
    return all(same) and not left


def names(client: Any) -> set[str]:
    return {worker["host"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


def go_wrong(client: Any, workers: list[Host], say: Any) -> None:
    """Kill one host and cut another, each while it computes a cell."""
    for host, what in zip(workers[:2], ("killed", "cut from the network"), strict=True):
        while True:
            doing = {
                address: keys for address, keys in client.processing().items()
                if f"//{host.address}:" in address and keys
            }  # fmt: skip
            if doing:
                break
            time.sleep(0.02)
        time.sleep(0.3)  # into the cell
        if what == "killed":
            host.process.kill()
        else:
            host.cut()
        [keys] = doing.values()
        say(f"{host.address} is {what} while it computes {keys[0].rsplit('-', 1)[0]!r}")
        lost = time.monotonic()
        while host.address in names(client):
            time.sleep(0.1)
        say(f"the scheduler has given {host.address} up after {time.monotonic() - lost:.1f} s")


if __name__ == "__main__":
    main()
