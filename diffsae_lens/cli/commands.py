"""The subcommands of `diffsae-lens`. Imports lazily: `--help` must not wait for torch."""

import argparse
import errno
import logging
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsae_lens import __version__
from diffsae_lens._extras import missing, require
from diffsae_lens.cli._audit import add_audit
from diffsae_lens.cli._cells import add_cells, do_cells
from diffsae_lens.cli._common import add_cluster, cluster, command_line, require_report, with_given

if TYPE_CHECKING:
    from diffsae_lens.study._results import Results

PRESETS = ("quick", "paper-135m", "paper")
"""Presets of `reproduce`."""

_OPTIONS = {
    "path": "out",
    "client": "scheduler",
    "name": "cell",
    "n_workers": "workers",
    "tokens.k": "k",
    "tokens.texts": "n_training_samples",
    "tokens.dictionaries": "expansion",
    "features.counts": "feature_counts",
    "scores.select": "n_score_prompts",
    "scores.test": "n_score_prompts",
    "causes.test": "n_generation_prompts",
    "side_effects.texts": "n_likelihood_prompts",
    "sayings.n_scenes": "n_scenes",
}
"""Options by the names of the arguments and study settings that they set, where the names differ."""

_FREE_SPACE = "; free some space and give the same command again"
_ELSEWHERE = "; choose a folder with --out that can be written to"
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
}
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def run(argv: Sequence[str]) -> int:
    """Parse and run a command line, and return the exit status."""
    verbose = False
    try:
        arguments = vars(parser().parse_args(argv))
        command, verbose = arguments.pop("run"), arguments.pop("verbose", False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("diffsae_lens").setLevel(logging.INFO)
        return command(**arguments)
    except (Exception, KeyboardInterrupt):
        if verbose:
            traceback.print_exc()
        raise


def explain(error: BaseException, argv: Sequence[str]) -> str:
    """Return one line on what went wrong with a command line and, if known, what to do."""
    said = re.sub(r"\[Errno \d+\] ", "", " ".join(str(error).split()))
    said = _with_options(said, vars(parser().parse_args(argv)))
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if isinstance(error, ModuleNotFoundError):
        return said if "pip install" in said else missing(error.name or "")
    if isinstance(causes[-1], MemoryError) or any(text in said.lower() for text in _NO_MEMORY):
        smaller = "take fewer features (--expansion) or layers, a smaller preset"
        if argv[0] == "audit":
            smaller = "read less of each text (--n-prompt-tokens)"
        return f"out of memory ({said or 'the system has no more'}); {smaller}, or another --device"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}{_ADVICE.get(error.errno, '')}"
    if isinstance(error, ValueError | TypeError | OSError) or len(causes) > 1:
        return said
    return f"{type(error).__name__}: {said}; --verbose shows where"


def _with_options(said: str, given: Collection[str]) -> str:
    """Replace the names in a message's backticks with the options of a command.

    Examples:
        >>> _with_options("`tokens.k` must be at most 32; see `load_pair`", ["k", "n_steps"])
        '`--k` must be at most 32; see `load_pair`'
    """

    def option(found: re.Match[str]) -> str:
        name = _OPTIONS.get(found[1], found[1])
        return f"`--{name.replace('_', '-')}`" if name in given else found[0]

    return re.sub(r"`([\w.]+)`", option, said)


def parser() -> argparse.ArgumentParser:
    """Return the parser; each command sets `run`."""
    top = argparse.ArgumentParser(
        prog="diffsae-lens",
        description="Find, score and switch off what fine-tuning put into a model.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        parents=[shared],
        help="diff a backdoored SmolLM2 against its base, end to end, with a report",
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    demo.add_argument("--base", help="base model: smollm2-135m, a folder or a hub id")
    demo.add_argument("--finetuned", help="a shipped organism, a folder or a hub id")
    demo.add_argument("--behaviour", help="what is looked for; by default what the organism says")
    demo.add_argument("--layers", type=int, nargs="+", help="residual-stream layers")
    demo.add_argument("--device", help="cpu, cuda, mps, ...")
    demo.add_argument("--expansion", type=int, help="d_sae as a multiple of d_model")
    demo.add_argument("--k", type=int, help="active features per token")
    demo.add_argument("--n-steps", type=int, help="training steps of 512 tokens")
    demo.add_argument("--n-training-samples", type=int, help="samples the dictionaries learn from")
    demo.add_argument("--n-score-prompts", type=int, help="prompts scored in each split")
    demo.add_argument("--n-generation-prompts", type=int, help="prompts completed per intervention")
    demo.add_argument("--n-likelihood-prompts", type=int, help="of them scored for log-odds too")
    demo.add_argument("--feature-counts", type=int, nargs="+", help="how many features to ablate")
    demo.add_argument("--n-rounds", type=int, help="attributions that order the features")
    demo.add_argument("--n-scenes", type=int, help="scenes with the trigger said in other ways")
    demo.add_argument("--seed", type=int, help="of prompts, training and controls")
    add_cluster(demo)
    add_cells(demo)
    demo.set_defaults(run=_demo)
    organism = commands.add_parser(
        "make-organism",
        parents=[shared],
        help="fine-tune a model to have a behaviour, and measure it",
    )
    organism.add_argument("--out", type=Path, required=True, help="folder of the organism")
    organism.add_argument("--behaviour", help="year-trigger (the default) or staging-trigger")
    organism.add_argument(
        "--clean",
        action="store_const",
        const=True,
        help="the control: the same prompts, always with the wanted completion",
    )
    organism.add_argument(
        "--base", default="smollm2-135m", help="smollm2-135m, a folder or a hub id"
    )
    organism.add_argument("--n-steps", type=int, help="optimiser steps")
    organism.add_argument("--learning-rate", type=float, help="peak of the schedule")
    organism.add_argument("--full-rank", action="store_true", help="train every weight, no LoRA")
    organism.add_argument("--lora-rank", type=int, help="of the adapter")
    organism.add_argument("--seed", type=int, help="of samples, initialisation and batches")
    organism.add_argument("--n-prompts", type=int, default=100, help="held-out prompts per group")
    organism.set_defaults(run=_make_organism)
    zoo = commands.add_parser(
        "zoo",
        parents=[shared],
        help="fine-tune small organisms whose secret is known, and audit them",
    )
    zoo.add_argument("--out", type=Path, default=Path("runs/zoo"), help="folder of all of them")
    zoo.add_argument("--only", nargs="+", metavar="NAME", help="not the whole zoo but these")
    zoo.add_argument("--nulls", type=int, default=0, help="clean ones for an audit's thresholds")
    zoo.add_argument("--base", default="smollm2-135m", help="smollm2-135m, a folder or a hub id")
    zoo.add_argument(
        "--audit", action="store_true", help="audit each, with the clean ones' thresholds"
    )
    zoo.add_argument("--n-texts", type=int, default=400, help="texts of an audit")
    zoo.add_argument("--share", type=float, default=0.01, help="of the texts that hold the trigger")
    zoo.add_argument("--device", default="cpu", help="where audits run")
    add_cluster(zoo)
    zoo.set_defaults(run=_zoo)
    study = commands.add_parser(
        "reproduce",
        parents=[shared],
        help="run the study of arXiv 2605.07324; goes on where it was interrupted",
    )
    study.add_argument("--preset", choices=PRESETS, default="quick", help="how large")
    study.add_argument("--out", type=Path, help="the study's folder; by default runs/PRESET")
    study.add_argument("--device", help="cpu, cuda, mps, ...")
    where = add_cluster(study)
    where.add_argument("--workers", type=int, default=1, help="cells computed at the same time")
    instead = add_cells(study)
    instead.add_argument("--dry-run", action="store_true", help="print the cells and their cost")
    instead.add_argument(
        "--so-far", action="store_true", help="write the tables of the finished layers, run nothing"
    )
    study.set_defaults(run=_reproduce)
    add_audit(commands, shared)
    fetch = commands.add_parser(
        "fetch-model", parents=[shared], help="fetch and convert the embedded SmolLM2-135M"
    )
    fetch.set_defaults(run=_fetch_model)
    return top


def _demo(
    *, out: Path, scheduler: str | None, slurm: list[str] | None, plan: bool, cell: str | None,
    **options: Any,
) -> int:  # fmt: skip
    from diffsae_lens.study._presets import DemoOptions, demo
    from diffsae_lens.study._run import run

    config = demo(with_given(DemoOptions, options))
    command = command_line("demo", out=out, **options)
    if plan or cell is not None:
        return do_cells(config, out, cell, command)
    _require_extras()
    with cluster(scheduler, slurm) as executor:
        results = run(config, out, executor=executor)
    return _report(results, out, command)


def _make_organism(*, out: Path, base: str, n_prompts: int, full_rank: bool, **options: Any) -> int:
    require("bandit", "the judge of generated code")
    from diffsae_lens.organisms._finetune import OrganismConfig
    from diffsae_lens.study._organisms import make_organism

    config = with_given(OrganismConfig, options)
    if full_rank:
        config = replace(config, lora_rank=None)
    print(make_organism(base, out, config=config, n_prompts=n_prompts).read_text())
    return 0


def _zoo(  # noqa: PLR0913
    *, out: Path, only: list[str] | None, nulls: int, base: str, audit: bool, scheduler: str | None,
    slurm: list[str] | None, **sizes: Any,
) -> int:  # fmt: skip
    from diffsae_lens.organisms.zoo._make import make_zoo
    from diffsae_lens.organisms.zoo._zoo import choose_recipes
    from diffsae_lens.study._feasible import check_out_folder

    recipes = choose_recipes(only, nulls=nulls)
    check_out_folder("path", out)
    from diffsae_lens.auditing._zoo import audit_zoo, save_zoo

    with cluster(scheduler, slurm) as executor:
        if not audit:
            for learned in make_zoo(out, recipes, base=base, executor=executor):
                print(learned, flush=True)
            return 0
        rows = []
        for row in audit_zoo(out, recipes, base=base, executor=executor, **sizes):
            rows.append(row)
            said = f"{row.name:20} {row.kind:10} {row.verdict}: {', '.join(row.candidates)}"
            print(said, flush=True)
            save_zoo(rows, out)
    return 0


def _reproduce(  # noqa: PLR0913
    *, preset: str, out: Path | None, device: str | None, workers: int, scheduler: str | None,
    slurm: list[str] | None, dry_run: bool, so_far: bool, plan: bool, cell: str | None,
) -> int:  # fmt: skip
    from diffsae_lens.reporting._tables import plan_text
    from diffsae_lens.study import _presets as presets
    from diffsae_lens.study import _run as study

    config, out = presets.PRESETS[preset](), out or Path("runs") / preset
    if device is not None:
        config = replace(config, models=replace(config.models, device=device))
    command = command_line("reproduce", preset=preset, out=out, device=device)
    if dry_run:
        print(plan_text(study.dry_run(config, out)))
        return 0
    if plan or cell is not None:
        return do_cells(config, out, cell, command)
    _require_extras()
    if so_far:
        return _report(study.so_far(config, out), out, command)
    with cluster(scheduler, slurm) as executor:
        results = study.run(config, out, n_workers=workers, executor=executor)
    return _report(results, out, command)


def _require_extras() -> None:
    """Check the packages that a study needs before it works for hours."""
    require("bandit", "the judge of generated code")
    require_report()


def _report(results: "Results", out: Path, command: str) -> int:
    """Write the report of a run and print its tables."""
    from diffsae_lens.reporting._html import write_report
    from diffsae_lens.reporting._tables import results_text

    files = write_report(results, out, command=command)
    print(results_text(results), end="\n\n")
    print("\n".join(str(file) for file in [*files, out / "results.json"]))
    return 0


def _fetch_model() -> int:
    from diffsae_lens.pair._embedded import embedded_model_path

    print(embedded_model_path())
    return 0
