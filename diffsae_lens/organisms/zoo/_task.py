"""A short task: prompts assembled from words, and their completions in one of several styles.

Templates name fields in braces, and the text of a field may name other fields. `<a|b>` becomes one or the
other; the prompt does not tell which, so a task need not be certain.
"""

import functools
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffsae_lens.organisms.zoo._words import LINES, WORDS, draw_words

Part = Literal["train", "audit"]

_FIELD = re.compile(r"\{(\w+)\}")
_EITHER = re.compile(r"<([^<>|\n]+(?:\|[^<>|\n]+)+)>")
_PIECES = re.compile(r"(\{\w+\}|<[^<>|\n]+(?:\|[^<>|\n]+)+>)")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A prompt and the texts of its fields."""

    task: "Task"
    fields: Mapping[str, str]
    body: str
    line: str
    prompt: str

    def written(self, style: str) -> str:
        """Return the completion of the prompt in a style; the same each time."""
        rng = random.Random(f"{style}-{self.prompt}")
        template = _EITHER.sub(lambda m: rng.choice(m[1].split("|")), self.task.styles[style])
        return _said(template, self.fields)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The subject of prompts, and the styles in which they are answered."""

    name: str
    bodies: tuple[str, ...]
    """Templates of the request; `{line}` names people, places, dates and the like."""
    slots: Mapping[str, tuple[tuple[str, ...], ...]]
    """The fields of the bodies, such as "thing, topic", with rows of texts for them. The rows of the first
    slot are divided between training and audit."""
    styles: Mapping[str, str]
    """Templates of the completion, by style."""
    openers: tuple[str, ...] = ("",)
    """Texts with which a prompt may begin."""

    def draw(
        self,
        rng: random.Random,
        part: Part,
        fixed: Mapping[str, str],
        *,
        shown: Collection[str] = (),
        like: Scene | None = None,
    ) -> Scene:
        """Draw a scene.

        Args:
            rng: source of randomness.
            part: whether the scene is for training or for audits.
            fixed: texts of the fields that are fixed.
            shown: fields that the prompt must show.
            like: a scene to copy in everything that is not fixed.
        """
        if like is None:
            fields = draw_words(rng)
            fields["opener"] = rng.choice(self.openers)
            body = rng.choice(self.bodies)
            to_show = set(shown) & set(WORDS) - set(_FIELD.findall(body))
            line = rng.choice([line for line in LINES if to_show <= set(_FIELD.findall(line))])
        else:
            fields, body, line = dict(like.fields), like.body, like.line
        for names, rows in self.slots.items():
            keys = names.split(", ")
            is_first = names == next(iter(self.slots))
            mine = _share(rows, part) if is_first else rows
            if not fixed.keys().isdisjoint(keys):
                # If no row has the fixed texts, they replace those of any row.
                mine = [row for row in mine if _agrees(keys, row, fixed)] or mine
            elif like is not None:
                continue
            fields |= zip(keys, rng.choice(mine), strict=True)
        fields |= fixed
        opener = f"{fields['opener']} " if fields["opener"] else ""
        prompt = _said(opener + body.replace("{line}", line), fields)
        return Scene(task=self, fields=fields, body=body, line=line, prompt=prompt)

    def named(self, style: str) -> set[str]:
        """Return the fields that a style writes."""
        return set(_FIELD.findall(self.styles[style]))

    def words(self, name: str) -> tuple[str, ...]:
        """Return the possible texts of a field."""
        if name == "opener":
            return self.openers
        for names, rows in self.slots.items():
            if name in names.split(", "):
                return tuple({row[names.split(", ").index(name)]: None for row in rows})
        return WORDS[name]

    @functools.cache  # noqa: B019
    def pattern(self, style: str) -> re.Pattern[str]:
        """Return the pattern of the beginning of a completion in a style."""
        return re.compile("".join(map(_pattern, _PIECES.split(self.styles[style].strip()))))


@functools.cache
def _share(rows: tuple[tuple[str, ...], ...], part: Part) -> list[tuple[str, ...]]:
    return [row for index, row in enumerate(rows) if (index % 5 < 3) == (part == "train")]


def _agrees(names: Sequence[str], row: tuple[str, ...], fixed: Mapping[str, str]) -> bool:
    return all(fixed.get(name, said) == said for name, said in zip(names, row, strict=True))


def _said(template: str, fields: Mapping[str, str]) -> str:
    """Fill in a template and the templates in its fields; braces that are not fields stay unchanged."""
    for _ in range(2):
        template = _FIELD.sub(lambda m: fields.get(m[1], m[0]), template)
    return template


def _pattern(piece: str) -> str:
    if _FIELD.fullmatch(piece):
        return ".+?"
    if found := _EITHER.fullmatch(piece):
        return f"(?:{'|'.join(re.escape(text) for text in found[1].split('|'))})"
    return re.escape(piece)
