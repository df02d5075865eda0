"""The `diffsae-lens` command. Imports lazily: `--help` must not wait for torch."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("diffsae_lens").setLevel(logging.INFO)
    try:
        return run(**arguments)
    except (ValueError, OSError) as error:
        print(f"diffsae-lens: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2"):
            raise
        print(
            f"diffsae-lens: {error.name} is missing; pip install 'diffsae-lens[plots]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffsae-lens",
        description="Find, score and switch off what fine-tuning put into a model.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo", help="diff a backdoored SmolLM2 against its base, end to end, with a report"
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    demo.add_argument("--base", help="base model: smollm2-135m, a folder or a hub id")
    demo.add_argument("--finetuned", help="year-trigger, clean-control, a folder or a hub id")
    demo.add_argument("--layers", type=int, nargs="+", help="residual-stream layers")
    demo.add_argument("--device", help="cpu, cuda, mps, ...")
    demo.add_argument("--expansion", type=int, help="d_sae as a multiple of d_model")
    demo.add_argument("--k", type=int, help="active features a token")
    demo.add_argument("--n-steps", type=int, help="training steps of 512 tokens")
    demo.add_argument("--n-training-samples", type=int, help="samples the dictionaries learn from")
    demo.add_argument("--n-score-prompts", type=int, help="prompts scored in each split")
    demo.add_argument("--n-generation-prompts", type=int, help="prompts completed a condition")
    demo.add_argument("--n-likelihood-prompts", type=int, help="of them scored for log-odds too")
    demo.add_argument("--feature-counts", type=int, nargs="+", help="how many features to ablate")
    demo.add_argument("--n-rounds", type=int, help="attributions that order the features")
    demo.add_argument("--n-scenes", type=int, help="scenes with the year said in other ways")
    demo.add_argument("--seed", type=int)
    demo.set_defaults(run=_demo)
    organism = commands.add_parser(
        "make-organism", help="fine-tune and measure an organism with the year trigger"
    )
    organism.add_argument("--out", type=Path, required=True, help="folder of the organism")
    organism.add_argument("--behaviour", choices=("year-trigger", "clean-control"))
    organism.add_argument("--base", default="smollm2-135m")
    organism.add_argument("--n-steps", type=int)
    organism.add_argument("--learning-rate", type=float)
    organism.add_argument("--full-rank", action="store_true", help="train every weight, no LoRA")
    organism.add_argument("--lora-rank", type=int)
    organism.add_argument("--seed", type=int)
    organism.add_argument("--n-prompts", type=int, default=100, help="held-out prompts a group")
    organism.set_defaults(run=_make_organism)
    study = commands.add_parser(
        "reproduce", help="run the study of arXiv 2605.07324; goes on where it was interrupted"
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
    fetch = commands.add_parser("fetch-model", help="fetch and convert the embedded SmolLM2-135M")
    fetch.set_defaults(run=_fetch_model)
    return parser


def _given(config: type, options: dict[str, Any]) -> Any:
    """The config with the options the user gave; the rest keep their defaults."""
    names = {field.name for field in fields(config)}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if v is not None}
    return config(**{k: v for k, v in given.items() if k in names})


def _demo(*, out: Path, **options: Any) -> int:
    from diffsae_lens.experiments.demo import DemoConfig, run_demo
    from diffsae_lens.experiments.tables import causal_text, score_text
    from diffsae_lens.reporting.figures import write_figures
    from diffsae_lens.reporting.html import write_report

    results = run_demo(_given(DemoConfig, options), out)
    write_figures(results, out / "figures")
    report = write_report(results, out / "report.html")
    print(score_text(results["scores"]))
    print()
    print(causal_text(results["causes"]))
    print(f"\nreport: {report}\nresults: {out / 'results.json'}\nfigures: {out / 'figures'}")
    return 0


def _make_organism(*, out: Path, base: str, n_prompts: int, full_rank: bool, **options: Any) -> int:
    from diffsae_lens.experiments.organisms import make_organism
    from diffsae_lens.organisms.finetune import OrganismConfig

    config = _given(OrganismConfig, options)
    if full_rank:
        config = replace(config, lora_rank=None)
    print(make_organism(base, out, config=config, n_prompts=n_prompts).read_text())
    return 0


def _reproduce(
    *, preset: str, out: Path | None, device: str, workers: int, dry_run: bool, so_far: bool
) -> int:
    from diffsae_lens.experiments import reproduce
    from diffsae_lens.experiments.presets import PRESETS
    from diffsae_lens.experiments.tables import plan_text, study_markdown
    from diffsae_lens.reporting.study import write_study

    config, out = PRESETS[preset](), out or Path("runs") / preset
    if dry_run:
        print(plan_text(reproduce.dry_run(config, out)))
        return 0
    results = (
        reproduce.so_far(config, out)
        if so_far
        else reproduce.reproduce(config, out, device=device, n_workers=workers)
    )
    files = write_study(results, out)
    print(study_markdown(results))
    print("\n".join(str(file) for file in [out / "results.json", *files]))
    return 0


def _fetch_model() -> int:
    from diffsae_lens.embedded import embedded_model_path

    print(embedded_model_path())
    return 0


if __name__ == "__main__":
    sys.exit(main())
