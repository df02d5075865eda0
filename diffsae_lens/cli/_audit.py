"""The command `audit`. Imports lazily, as `commands` does."""

import argparse
from pathlib import Path
from typing import Any

from diffsae_lens.cli._common import add_cluster, cluster, command_line, require_report, with_given
from diffsae_lens.cli._files import lexicon_of, texts_of


def add_audit(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the `audit` command."""
    audit = commands.add_parser(
        "audit",
        parents=[shared],
        help="say whether a fine-tune does something under rare conditions that it does not do otherwise",
    )
    audit.add_argument("base", help="model that the suspect was made from: a folder or a hub id")
    audit.add_argument("suspect", help="the fine-tune: a folder or a hub id; an adapter will do")
    audit.add_argument(
        "--texts", type=Path, required=True,
        help="file of 400 or more prompts, documents or conversations: .txt (one per line), .json, .jsonl",
    )  # fmt: skip
    audit.add_argument("--out", type=Path, default=Path("runs/audit"), help="the audit's folder")
    audit.add_argument(
        "--nulls", type=Path, help="statistics of clean models with the same settings"
    )
    audit.add_argument(
        "--lexicon", type=Path, help='.json of what is put into texts, {"Year": ["2024", ..]}'
    )
    audit.add_argument("--device", help="cpu, cuda, mps, ...")
    add_cluster(audit)
    for name, what in (
        ("n-prompt-tokens", "tokens of a text that are read"),
        ("n-new-tokens", "tokens that the suspect writes after each"),
        ("n-folds", "imitators"),
        ("lora-rank", "of an imitator"),
        ("batch-size", "texts per step of an imitator"),
        ("min-steps", "of an imitator before it may stop"),
        ("max-steps", "of an imitator after which it must"),
        ("steps-per-reading", "of an imitator between two looks at whether it may stop"),
        ("n-candidates", "candidates from the texts"),
        ("n-lexicon", "candidates from the lexicon; 0 leaves it out"),
        ("n-finalists", "candidates in the last experiment"),
        ("n-texts", "held-out texts that each of them is put into"),
        ("n-mates", "others of its kind beside it"),
        ("seed", "of folds, imitators and draws"),
    ):
        audit.add_argument(f"--{name}", type=int, help=what)
    audit.add_argument("--learning-rate", type=float, help="of an imitator")
    audit.add_argument(
        "--alpha", type=float, help="share of clean models called suspicious at most"
    )
    audit.set_defaults(run=run_audit)


def run_audit(  # noqa: PLR0913
    *, base: str, suspect: str, texts: Path, out: Path, nulls: Path | None, lexicon: Path | None,
    device: str | None, scheduler: str | None, slurm: list[str] | None, **options: Any,
) -> int:  # fmt: skip
    """Run an audit, write the report, print what was found, and return the exit status."""
    require_report()
    from diffsae_lens.auditing._config import MIN_TEXTS, AuditConfig
    from diffsae_lens.auditing._lexicon import LEXICON
    from diffsae_lens.auditing._nulls import Nulls

    config = with_given(AuditConfig, options)
    read = texts_of(texts, at_least=MIN_TEXTS)
    entries = LEXICON if lexicon is None else lexicon_of(lexicon)
    known = None if nulls is None else Nulls.load(nulls)
    from diffsae_lens.auditing._run import audit
    from diffsae_lens.reporting._audit import write_audit_report
    from diffsae_lens.reporting._audit_words import audit_text
    from diffsae_lens.study._feasible import check_out_folder

    check_out_folder("path", out)
    placed: dict[str, Any] = {} if device is None else {"device": device}
    with cluster(scheduler, slurm) as executor:
        results = audit(
            base, suspect, read, out, config=config, nulls=known, lexicon=entries, executor=executor, **placed
        )  # fmt: skip
    files = {"texts": texts, "out": out, "nulls": nulls, "lexicon": lexicon, "device": device}
    command = command_line("audit", base, suspect, **files, **options)
    written = write_audit_report(results, out, command=command)
    print(audit_text(results), end="\n\n")
    print("\n".join(str(file) for file in [*written, out / "results.json"]))
    return 0
