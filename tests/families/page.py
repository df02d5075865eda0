"""The outcomes as a page of the documentation."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from tests.families.judge import Kind, Outcome
from tests.families.variants import DOORS, GENERAL

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
WORDS = {kind: kind for kind in get_args(Kind)} | {
    "no such adapter": "-", "WRONG": "**WRONG**", "raw error": "**raw error**",
}  # fmt: skip
BY_FAMILY, BY_VARIANT = "family", "fine-tuned by"  # corners of the two tables
Outcomes = Mapping[tuple[str, str], Outcome]
SHOWN = 100  # characters of a message

INTRO = """# What works with what

`load_pair` wraps two models in TransformerLens's `TransformerBridge`. The bridge takes some architectures
apart and builds their attention anew, so a model can compute different numbers, and an adapter on a matrix
that was taken apart may never be called. This page shows what we tried and what came of it.

For each combination we make a random model with three layers, fine-tune it, save it and load it twice:
with `load_pair`, and with plain transformers and PEFT. The logits of both models and
`blocks.1.hook_resid_post.diff` must agree with the plain models'. For the column "full, generating" the
pair generates four tokens, and the tokens and `.diff` at every step must equal those of plain forward
passes without a cache.

`python -m tests.families` makes this page; it was made with {versions}.

| word | meaning |
|---|---|
| right | everything agrees to 1e-4 of its standard deviation |
| refused | `load_pair` raises an error that says why; no number comes out |
| **WRONG** | numbers come out, and they are not the models' |
| **raw error** | an error of another library, not written for you |
| - | PEFT has no such adapter for this family, or cannot run it |

"LoRA" adapts the modules that PEFT targets by default, or the attention's inputs where PEFT has no default
for the family.

The last table takes models, PEFT models and bridges in memory in place of folders, for a few families; its
adapters are on all linear layers. [Your own models](own_models.md) lists the forms that `load_pair` takes.
"""

WAY_OUT = """
## What to do when a combination is refused

- **The family is refused in every column.** The bridge does not support the architecture, or does not
  compute what transformers computes. Try a newer TransformerLens, or report it there with the size of the
  error in the message.
- **The adapter is refused, and the family is not.** If PEFT itself loads it, merge it with PEFT's
  `merge_and_unload()`, save the result and the tokenizer to one folder, and load that folder as `finetuned`.
- **The adapter does not fit.** It was made for another model, some of its weights are missing, or it is not
  a LoRA adapter. There is no right answer on this base; the message says what was expected.

[Your own models](own_models.md) has the ten most common mistakes and their messages, and the forms in
which you can pass models.

A family that is not on this page may work: every pair that `load_pair` makes is first compared with the
plain models.
"""


def tables(outcomes: Outcomes) -> str:
    """The table for all families, and one for the options of adapters on a few."""
    families = list(dict.fromkeys(family for family, _ in outcomes))
    known = (*GENERAL, *DOORS)
    special = list(dict.fromkeys(variant for _, variant in outcomes if variant not in known))
    few = [family for family in families if any((family, v) in outcomes for v in special)]
    text = "\n## Families\n\n" + _table(BY_FAMILY, families, list(GENERAL), outcomes)
    if special:
        turned = {(variant, family): o for (family, variant), o in outcomes.items()}
        text += "\n## Options of adapters\n\n" + _table(BY_VARIANT, special, few, turned)
    through = [family for family in families if any((family, door) in outcomes for door in DOORS)]
    if through:
        text += "\n## Models in memory\n\n" + _table(BY_FAMILY, through, list(DOORS), outcomes)
    return text


def page(outcomes: Outcomes) -> str:
    """The whole page."""
    names = ("transformers", "peft", "transformer-lens", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    intro = INTRO.replace("{versions}", versions)
    return intro + tables(outcomes) + _messages(outcomes) + WAY_OUT


def recorded(text: str) -> dict[tuple[str, str], str]:
    """Read the tables of a page: the kind of outcome by family and variant."""
    kinds = {word: kind for kind, word in WORDS.items()}
    outcomes: dict[tuple[str, str], str] = {}
    corner, columns = "", []
    for line in text.splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if first in (BY_FAMILY, BY_VARIANT):
            corner, columns = first, cells
        elif line.startswith("|") and corner:
            for column, cell in zip(columns, cells, strict=True):
                if cell in kinds:
                    key = (first, column) if corner == BY_FAMILY else (column, first)
                    outcomes[key] = kinds[cell]
        else:
            corner = ""
    return outcomes


def _table(corner: str, rows: Sequence[str], columns: Sequence[str], outcomes: Outcomes) -> str:
    lines = [f"| {' | '.join([corner, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        found = [outcomes.get((row, column)) for column in columns]
        cells = ["" if outcome is None else WORDS[outcome.kind] for outcome in found]
        lines.append(f"| {' | '.join([row, *cells])} |")
    return "\n".join(lines) + "\n"


def _messages(outcomes: Outcomes) -> str:
    """Why combinations are refused, each reason once with the combinations it stands for."""
    reasons: dict[str, list[str]] = {}
    for (family, variant), outcome in outcomes.items():
        if outcome.kind not in ("right", "no such adapter"):
            detail = (
                outcome.detail if outcome.kind == "refused" else f"{outcome.kind}: {outcome.detail}"
            )
            reasons.setdefault(detail[:SHOWN], []).append(f"{family} ({variant})")
    if not reasons:
        return ""
    lines = [
        f"- {', '.join(where)}: `{reason.replace('`', '')}`" for reason, where in reasons.items()
    ]
    return (
        "\n## The messages\n\nThe first 100 characters of each error message.\n\n"
        + "\n".join(lines)
        + "\n"
    )
