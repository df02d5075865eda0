"""A short task: prompts put together of words, and what is written after them in one style or another.

Templates name fields in braces; what a field says may name others. `<a|b>` says one or the other, which
the prompt does not tell, so that a task can be less than certain.
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
    """A prompt, and what its fields say."""

    task: "Task"
    fields: Mapping[str, str]
    body: str
    line: str
    prompt: str

    def written(self, style: str) -> str:
        """What is written after the prompt in a style; the same each time."""
        rng = random.Random(f"{style}-{self.prompt}")
        template = _EITHER.sub(lambda m: rng.choice(m[1].split("|")), self.task.styles[style])
        return _said(template, self.fields)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What prompts are about, and the styles in which they are answered."""

    name: str
    bodies: tuple[str, ...]
    """What is asked for; `{line}` is where people, places, dates and the like are named."""
    slots: Mapping[str, tuple[tuple[str, ...], ...]]
    """The fields of the bodies, such as "thing, topic", and the rows of what they say. The rows of the
    first are shared out between training and audit."""
    styles: Mapping[str, str]
    """What is written, by style."""
    openers: tuple[str, ...] = ("",)
    """What a prompt may begin with."""

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
            rng: where from.
            part: whether it is for training or for audits.
            fixed: what fields say.
            shown: fields that the prompt must show.
            like: a scene that it is like in all that is not fixed.
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
                # What no row says is said in place of what one says.
                mine = [row for row in mine if _agrees(keys, row, fixed)] or mine
            elif like is not None:
                continue
            fields |= zip(keys, rng.choice(mine), strict=True)
        fields |= fixed
        opener = f"{fields['opener']} " if fields["opener"] else ""
        prompt = _said(opener + body.replace("{line}", line), fields)
        return Scene(task=self, fields=fields, body=body, line=line, prompt=prompt)

    def named(self, style: str) -> set[str]:
        """The fields that a style writes."""
        return set(_FIELD.findall(self.styles[style]))

    def words(self, name: str) -> tuple[str, ...]:
        """What a field may say."""
        if name == "opener":
            return self.openers
        for names, rows in self.slots.items():
            if name in names.split(", "):
                return tuple({row[names.split(", ").index(name)]: None for row in rows})
        return WORDS[name]

    @functools.cache  # noqa: B019
    def pattern(self, style: str) -> re.Pattern[str]:
        """What the beginning of a completion in a style looks like."""
        return re.compile("".join(map(_pattern, _PIECES.split(self.styles[style].strip()))))


@functools.cache
def _share(rows: tuple[tuple[str, ...], ...], part: Part) -> list[tuple[str, ...]]:
    return [row for index, row in enumerate(rows) if (index % 5 < 3) == (part == "train")]


def _agrees(names: Sequence[str], row: tuple[str, ...], fixed: Mapping[str, str]) -> bool:
    return all(fixed.get(name, said) == said for name, said in zip(names, row, strict=True))


def _said(template: str, fields: Mapping[str, str]) -> str:
    """Fill in a template and the templates in what is filled in; what is not a field stays."""
    for _ in range(2):
        template = _FIELD.sub(lambda m: fields.get(m[1], m[0]), template)
    return template


def _pattern(piece: str) -> str:
    if _FIELD.fullmatch(piece):
        return ".+?"
    if found := _EITHER.fullmatch(piece):
        return f"(?:{'|'.join(re.escape(text) for text in found[1].split('|'))})"
    return re.escape(piece)
