"""What the commands have in common."""

import argparse
import logging
import shlex
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._extras import require


def with_given(config: type, options: dict[str, Any]) -> Any:
    """Return the config with the options that the user gave; the others keep their defaults."""
    names = {field.name for field in fields(config)}
    chosen = {
        k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if v is not None
    }
    return config(**{k: v for k, v in chosen.items() if k in names})


def require_report() -> None:
    """Check the packages that a report needs before any work starts."""
    for package in ("matplotlib", "jinja2"):
        require(package, "the report")


def command_line(name: str, *words: str, **options: Any) -> str:
    """Return the command line with its words and the given options.

    Examples:
        >>> command_line("demo", out="a b", layers=[14, 18], seed=None)
        "diffsae-lens demo --out 'a b' --layers 14 18"
    """
    line = ["diffsae-lens", name, *words]
    for option, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            line += [f"--{option.replace('_', '-')}", *map(str, values)]
    return shlex.join(line)


def add_cluster(command: argparse.ArgumentParser) -> Any:
    """Add the options that say on which machines a command computes, and return their group."""
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="a Dask scheduler, on whose workers to compute",
    )
    where.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE",
        help="have Slurm start workers: jobs=4 cores=8 gpus=1 memory=32GB walltime=04:00:00 queue=..",
    )  # fmt: skip
    return where


@contextmanager
def cluster(scheduler: str | None, slurm: list[str] | None) -> Iterator[Executor | None]:
    """Yield the executor on other machines; None for this machine."""
    if scheduler is None and slurm is None:
        yield None
        return
    require("distributed", "computing on a cluster")
    options = dict(_pair(word) for word in slurm or ())
    import distributed  # sets its loggers' levels

    from diffsae_lens.study import _cluster

    logging.getLogger(distributed.__name__).setLevel(logging.WARNING)
    if scheduler is not None:
        with _cluster.ClusterExecutor(scheduler) as executor:
            yield executor
    else:
        with _cluster.slurm(options) as client, _cluster.ClusterExecutor(client) as executor:
            yield executor


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not (key and equals and value):
        raise InvalidValueError(f"`slurm` must be KEY=VALUE, such as jobs=4, got {word!r}")
    return key, value
