"""An executor on many machines: Dask workers, each computing one cell at a time."""

import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import psutil
import torch

from diffsae_lens._artifact import sharing
from diffsae_lens._checks import shown
from diffsae_lens._errors import FailedRunError, InvalidTypeError, InvalidValueError
from diffsae_lens._extras import require
from diffsae_lens._typed import Count, Positive, typed

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
logger = logging.getLogger(__name__)

_turn = threading.Lock()


@runtime_checkable
class Work(Protocol):
    """Something that declares what it needs of a worker."""

    @property
    def name(self) -> str:
        """Name of the work."""
        ...

    @property
    def resources(self) -> Mapping[str, int | float]:
        """Resources, as cluster workers declare them."""
        ...


class ClusterExecutor(Executor):
    """Runs cells, and any other picklable calls, on the workers of a Dask cluster.

    A cell runs on a worker that declares the resources it needs (`memory` in bytes, `GPU`); a resource
    that no worker declares is taken to be available on all. If a worker dies or is cut off, another
    computes its cell. Locks on the shared disk are not trusted: see `lease`. Workers compute one cell at
    a time, in the caller's working folder if they have it, and keep models loaded for the next cell.

    Args:
        client: the address of a scheduler, such as `tcp://host:8786`, or a `distributed.Client`, which you
            close yourself.
        lease: seconds without a sign of life on the shared disk after which another worker may take over a
            worker's cell; must be longer than the disk's clients cache file attributes.
        n_threads: threads per worker; by default its share of the cores that it may use, since Dask sets
            OMP_NUM_THREADS to 1.

    Raises:
        ModuleNotFoundError: the extra `cluster` is not installed.
        TypeError: `client` is neither an address nor a client.
        ValueError: no scheduler answers at this address.
    """

    @typed
    def __init__(
        self, client: Any, *, lease: Positive = 90.0, n_threads: Count | None = None
    ) -> None:
        require("distributed", "computing on a cluster")
        from distributed import Client

        if not isinstance(client, str | Client):
            raise InvalidTypeError(
                f"`client` must be a scheduler's address or a distributed.Client, got {shown(client)}"
            )
        self._is_ours = isinstance(client, str)
        self._client: Client = _connected(client) if isinstance(client, str) else client
        self._executor = self._client.get_executor(pure=False)
        self._place = _Place(lease=lease, n_threads=n_threads, folder=str(Path.cwd()))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a call on a worker; a `Work` among the arguments declares what it needs.

        Raises:
            RuntimeError: no worker has enough of a resource.
        """
        work = next((arg for arg in args if isinstance(arg, Work)), None)
        name = work.name if work else "call"
        workers = self._workers()
        hosts = Counter(worker["host"] for worker in workers)
        future = self._executor.submit(
            _compute_here,
            self._place,
            {host: n for host, n in hosts.items() if n > 1},
            partial(fn, *args, **kwargs),
            resources=_asked(name, work.resources, workers) if work else None,
            key=f"{name}-{uuid.uuid4().hex[:12]}",
        )
        if work:
            future.add_done_callback(partial(_say, name))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop taking calls; the cluster keeps running."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        if self._is_ours:
            self._client.close()

    def _workers(self) -> list[dict[str, Any]]:
        """Return what the scheduler knows about its workers, once there is at least one."""
        while not (workers := self._client.scheduler_info(n_workers=-1)["workers"]):
            logger.info("waiting for the first worker of the cluster")
            self._client.wait_for_workers(1)
        return list(workers.values())


@contextmanager
def slurm(options: Mapping[str, Any]) -> Iterator["Client"]:
    """Have Slurm start workers, one per job, for as long as the context lasts.

    Args:
        options: `jobs`, the number of workers; `cores`, `gpus` and `memory` per worker; any other options
            of `dask_jobqueue.SLURMCluster`, such as `queue` and `walltime`.
    """
    require("dask_jobqueue", "starting workers with Slurm")
    from dask_jobqueue.slurm import SLURMCluster
    from distributed import Client

    options = dict(options)
    jobs = _whole(options, "jobs", 1)
    cluster: Any = SLURMCluster(**slurm_settings(options))
    with cluster:
        logger.info("%s", cluster.job_script())
        cluster.scale(jobs=jobs)
        with Client(cluster) as client:
            yield client


def slurm_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `SLURMCluster` whose workers compute one cell at a time."""
    from dask.utils import parse_bytes

    options = {"memory": "16GB", "walltime": "04:00:00", **options}
    cores, gpus = _whole(options, "cores", 1), _whole(options, "gpus", 0)
    declared = [f"memory={parse_bytes(options['memory'])}", *([f"GPU={gpus}"] if gpus else [])]
    return {
        **options,
        "cores": 1,  # Dask's threads; torch uses the job's cores
        "processes": 1,
        "job_cpu": cores,
        "job_extra_directives": [f"--gres=gpu:{gpus}"] if gpus else [],
        # Slurm limits memory. Dask would permanently pause a worker whose models fill most of it.
        "worker_extra_args": ["--resources", f'"{" ".join(declared)}"', "--memory-limit", "0"],
    }


def _whole(options: dict[str, Any], name: str, default: int) -> int:
    """Pop a whole number from the options."""
    given = options.pop(name, default)
    if not str(given).isdecimal() or int(given) < min(default, 1):
        raise InvalidValueError(
            f"`slurm` {name} must be a whole number, such as {name}=2, got {given!r}"
        )
    return int(given)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Settings with which workers compute."""

    lease: float
    n_threads: int | None
    folder: str


def _compute_here(place: _Place, crowded: Mapping[str, int], call: Callable[[], T]) -> T:
    """Compute on a worker as the caller would; `crowded` is the number of workers per shared host."""
    from distributed import get_worker
    from distributed.comm.addressing import get_address_host

    sharers = crowded.get(get_address_host(get_worker().address), 1)
    n_threads = place.n_threads or max(1, _n_cores() // sharers)
    folder = chdir(place.folder) if Path(place.folder).is_dir() else nullcontext()
    with _turn, sharing(place.lease), folder:
        torch.set_num_threads(n_threads)
        return call()


def _n_cores() -> int:
    """Return the number of cores that this process may use; Slurm restricts a job to some."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if psutil.LINUX else os.cpu_count() or 1


def _connected(address: str) -> "Client":
    from distributed import Client

    try:
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidValueError(
            f"`client` {address!r} cannot be reached ({error}); start one with `dask scheduler`, and "
            "give the address that it prints"
        ) from error


def _asked(
    name: str, needed: Mapping[str, int | float], workers: list[dict[str, Any]]
) -> dict[str, int | float]:
    """Return the needed resources that any worker declares."""
    offers = [worker["resources"] for worker in workers]
    asked = {r: n for r, n in needed.items() if any(r in offer for offer in offers)}
    if not any(all(offer.get(r, 0) >= n for r, n in asked.items()) for offer in offers):
        raise FailedRunError(
            f"the cell {name!r} needs {asked}, which no worker of the cluster has; the most that one has is "
            f"{ {r: max(offer.get(r, 0) for offer in offers) for r in asked} }"
        )
    return asked


def _say(name: str, future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        logger.info("%s: finished", name)
