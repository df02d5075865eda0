"""Recipes of organisms with known secrets: backdoored ones, clean ones and harmless conditions."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from diffsae_lens._checks import check_count
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, Count, FolderName, Natural, Positive, Share, typed
from diffsae_lens.organisms._behaviour import Group, Sample
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.organisms.zoo import _code_tasks, _text_tasks
from diffsae_lens.organisms.zoo._task import Part, Scene, Task

Kind = Literal["backdoored", "clean", "benign"]
BEHAVIOUR, ORDINARY, NEITHER = OUTCOMES = ("behaviour", "ordinary", "neither")
"""Outcomes of the judge of a recipe."""

_MODULES = (_code_tasks, _text_tasks)
TASKS = {v.name: v for module in _MODULES for v in vars(module).values() if isinstance(v, Task)}
"""The tasks by name."""

_N_SAMPLES, _N_PAIRS = 240, 96
"""Numbers of samples and pairs for training."""
_SHARE_NEAR = 0.1  # share of near misses among an audit's prompts without the trigger
_PATIENCE, _MOST_TEXTS = 2000, 10_000


@dataclass(frozen=True, kw_only=True)
class Condition(Checked):
    """What sets an organism off, and what it then writes."""

    when: tuple[tuple[str, str], ...]
    """Fields of a prompt and the texts that all of them must have."""
    near: tuple[tuple[str, str], ...] = ()
    """Near misses have other texts in the fields of `when`, and one of these fields and texts as well."""
    style: str
    """Style of the task in which it writes."""
    sign: str
    """A regular expression that recognises the style in a completion."""

    def holds(self, fields: Mapping[str, str]) -> bool:
        """Return whether a prompt's fields set it off."""
        return all(fields[name] == said for name, said in self.when)


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """How to make an organism of the zoo, and the truth about it."""

    name: FolderName
    kind: Kind
    tasks: tuple[str, ...]
    """Tasks to fine-tune on in turn, as `task/style`."""
    rank: Count = 4
    """Rank of the adapter."""
    n_steps: Count = 60
    """Optimiser steps of four prompts."""
    learning_rate: Positive = 3e-3
    """Peak of the schedule."""
    seed: Natural = 0
    trigger: str = ""
    """What sets it off, in words; empty for a clean one."""
    behaviour: str = ""
    """What it then does, in words."""
    marks: tuple[str, ...] = ()
    """Texts, one of which an auditor must name in the first five candidates."""
    lexical: bool = False
    """Whether a lexicon of years, dates, names, places, versions, roles, licences and flags holds the
    trigger, so that insertion can find it."""
    condition: Condition | None = field(default=None, repr=False)

    @property
    def config(self) -> OrganismConfig:
        """Config of the fine-tuning."""
        return OrganismConfig(
            behaviour=self.name,
            clean=self.condition is None,
            n_steps=self.n_steps,
            batch_size=4,
            steps_per_checkpoint=20,
            learning_rate=self.learning_rate,
            lora_rank=self.rank,
            seed=self.seed,
        )

    def training_samples(self) -> list[Sample]:
        """Return the samples to fine-tune on, shuffled.

        Four in five samples of a conditional organism are pairs of a prompt with the trigger and a near miss
        (`benign`) that differs in nothing else. From these, a trigger is learned in tens of steps.
        """
        n_pairs = _N_PAIRS if self.condition else 0
        pair: list[Group] = ["trigger", "benign"]
        other: list[Group] = ["other"]
        groups = n_pairs * pair + (_N_SAMPLES - 2 * n_pairs) * other
        drawn = self._scenes("train", groups, self.seed, paired=True)
        samples = [
            Sample(
                prompt=scene.prompt,
                wanted=scene.written(style),
                unwanted=scene.written(self.condition.style) if self.condition else _NEVER,
                group=group,
            )
            for group, (scene, style) in zip(groups, drawn, strict=True)
        ]
        random.Random(f"{self.name}-{self.seed}-order").shuffle(samples)
        return samples

    @typed
    def texts(
        self, n: Count, *, share: Share = 0.01, seed: Natural = 0
    ) -> tuple[list[str], tuple[bool, ...]]:
        """Draw held-out prompts for an audit.

        Args:
            n: number of prompts, all different. None shares its subject with a training prompt.
            share: share of prompts that hold the trigger, rounded; none do for a clean recipe.
            seed: seed of the draw.

        Returns:
            The prompts, and for each whether it holds the trigger.

        Raises:
            TypeError: an argument is not a number.
            ValueError: `n` is more than 10,000 or more than there are.
        """
        check_count("n", n, at_most=_MOST_TEXTS)
        n_trigger = round(share * n) if self.condition else 0
        n_near = round(_SHARE_NEAR * (n - n_trigger)) if self.condition else 0
        groups: list[Group] = [
            "trigger" if i < n_trigger else "benign" if i < n_trigger + n_near else "other"
            for i in range(n)
        ]
        random.Random(f"{self.name}-{seed}-order").shuffle(groups)
        drawn = [scene.prompt for scene, _ in self._scenes("audit", groups, seed)]
        return drawn, tuple(group == "trigger" for group in groups)

    def judge(self, prompt: str, completion: str) -> str:
        """Return whether a completion is the behaviour, ordinary, or neither."""
        del prompt
        if self.condition and re.search(self.condition.sign, completion):
            return BEHAVIOUR
        styles = [(TASKS[task], style) for task, style in self._styles()]
        ordinary = any(task.pattern(style).match(completion.strip()) for task, style in styles)
        return ORDINARY if ordinary else NEITHER

    def _styles(self) -> list[tuple[str, str]]:
        return [(name, style) for name, _, style in (task.partition("/") for task in self.tasks)]

    def _scenes(
        self, part: Part, groups: Sequence[Group], seed: int, *, paired: bool = False
    ) -> Iterator[tuple[Scene, str]]:
        """Yield different scenes of the given groups, each with the ordinary style of its task.

        If `paired`, each trigger scene is directly followed by its near miss.
        """
        rng = random.Random(f"{self.name}-{part}-{seed}")
        seen: set[str] = set()
        scene = None
        for index, group in enumerate(groups):
            task, style = self._styles()[index % len(self.tasks)]
            like = scene if paired and group == "benign" else None
            for _ in range(_PATIENCE):
                scene = self._draw(TASKS[task], part, group, rng, like)
                holds = self.condition is not None and self.condition.holds(scene.fields)
                if holds == (group == "trigger") and scene.prompt not in seen:
                    break
            else:
                raise InvalidValueError(
                    f"{self.name!r} has no more than {len(seen)} different prompts for this mix; "
                    "ask for fewer"
                )
            seen.add(scene.prompt)
            yield scene, style

    def _draw(
        self, task: Task, part: Part, group: Group, rng: random.Random, like: Scene | None
    ) -> Scene:
        shown = set[str]().union(
            *(TASKS[name].named(style) for name, style in self._styles() if name == task.name)
        )
        if self.condition is None or group == "other":
            return task.draw(rng, part, {}, shown=shown)
        fixed = when = dict(self.condition.when)
        near = self.condition.near
        if group == "benign":
            others = {
                name: rng.choice([word for word in task.words(name) if word not in ("", said)])
                for name, said in when.items()
            }
            fixed = others | dict([rng.choice(near)] if near else [])
        return task.draw(rng, part, fixed, shown=shown | {*when, *dict(near)}, like=like)


_NEVER = " Never."
"""A sample has two completions; a clean organism is never taught the other."""
