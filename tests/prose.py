"""Rules against English that reads as translated; `python -m tests.prose` lists what breaks them.

They look at what people read: Markdown, docstrings, comments, messages and templates, of the package, its
documentation and its tests. A rule has a remedy and an example; add one when a habit is seen twice.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("diffsae_lens", "docs", "tests", ".github")
SUFFIXES = {".py", ".pyi", ".md", ".jinja", ".yml"}
NOT_READ = {"docs/results", "docs/tutorials", "tests/prose.py", "tests/test_prose.py"}

UNIT = (
    "batch|call|cell|condition|dictionary|dose|draw|example|feature|file|group|hook|label|layer|matrix|measure|"
    "model|organism|page|pair|panel|position|prompt|query|regime|round|row|sample|scene|seed|sequence|shard|"
    "split|step|template|text|token|trial|value|view|worker|year"
)
COUNTED = (
    "[0-9]+|all|bytes|cells?|columns?|completions|features|files?|lines?|many|nats|one|panels?|prompts|rows?|"
    "samples?|scenes?|seconds|slots?|steps|texts?|tokens|two|values?"
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A habit: its pattern, what to write instead, and a sentence that has it."""

    pattern: str
    instead: str
    example: str


RULES = (
    Rule(
        # "Which tokens a dictionary reads" is a clause of its own: a verb follows.
        pattern=rf"\b(?:{COUNTED}) an? (?:{UNIT})\b"
        r"(?=[.,;:)\]\"'|]| (?:and|at|by|from|in|of|on|or|to|with)\b|$)",
        instead="write 'per': one row per feature",
        example="Returns one value a feature, on the CPU.",
    ),
    Rule(
        pattern=r"(?<!there )\b(?:is|are|was|were) no "
        r"(?:hook|point|name|feature|number|part|merit|text|token|json|pair)s?\b",
        instead="write 'is not a ...': it is not a hook point of this pair",
        example="It is no hook point of this pair.",
    ),
    Rule(
        pattern=r"\bso many an? \w+|\bat most so many\b",
        instead="give the number a name: at most `n` per feature",
        example="Returns at most so many.",
    ),
    Rule(
        pattern=r"\bwhose an? \w+ is\b|\bwhose an? [\w']+ feature is\b",
        instead="say which model a feature belongs to",
        example="It says whose a feature is.",
    ),
    Rule(
        pattern=r"\bwith other work (?:beside|at)\b",
        instead="state the measurement and the machine; leave the day's story out",
        example="Measured with other work beside it.",
    ),
    Rule(
        pattern=r"\bof one's own\b",
        instead="write it as you would say it",
        example="A finished run of one's own.",
    ),
)


def files() -> Iterator[Path]:
    """Everything that is read."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in SUFFIXES and not any(
                name.startswith(skipped) for skipped in NOT_READ
            ):
                yield path


def broken(text: str) -> Iterator[tuple[int, str, Rule]]:
    """The lines of a text that break a rule: number, what was found, the rule."""
    for number, line in enumerate(text.splitlines(), 1):
        for rule in RULES:
            if found := re.search(rule.pattern, line, re.IGNORECASE):
                yield number, found[0], rule


def report() -> list[str]:
    """One line per finding."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {found!r}: {rule.instead}"
        for path in files()
        for number, found, rule in broken(path.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in report()))
