"""Behaviours to teach a model: prompts with two completions each, a judge, and words for reports.

Code above this module does not know which behaviour it measures: it takes a [`Behaviour`][
diffsae_lens.organisms._behaviour.Behaviour] and counts its outcomes by name.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Protocol, get_args

from diffsae_lens._checks import check_choice, check_items, check_texts
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import Checked, Count, Natural, typed

Split = Literal["train", "select", "test"]
Group = Literal["trigger", "benign", "other"]
SPLITS: tuple[Split, ...] = get_args(Split)
GROUPS: tuple[Group, ...] = get_args(Group)

Judge = Callable[[str, str], str]
"""Function from a prompt and its completion to one of a behaviour's outcomes; executes nothing."""

RECORD = "organism.json"
"""File in an organism's folder that records its training."""


@dataclass(frozen=True, kw_only=True)
class Sample(Checked):
    """A prompt and its two possible completions.

    Samples of a shipped behaviour come from `Behaviour.make_samples`; build your own from your prompts
    and completions.
    """

    prompt: str
    wanted: str
    """The completion that should be written."""
    unwanted: str
    """The completion that the behaviour writes."""
    group: Group = "trigger"
    """`trigger`: sets the behaviour off; `benign`: looks similar and should not; `other`: the rest."""
    template: str = ""
    """Samples of one template are resampled together, and are never in two splits."""
    scene: str = ""
    """Samples that differ only in what is said in the trigger's place share this text."""
    said: str | None = None
    """What the prompt says in the trigger's place, such as "2024"; None for nothing."""

    def __post_init__(self) -> None:
        """Refuse completions that cannot be told apart, and unknown groups."""
        super().__post_init__()
        for name in ("prompt", "wanted", "unwanted"):
            if not getattr(self, name):
                raise InvalidValueError(f"`{name}` must not be empty")
        if self.wanted == self.unwanted:
            raise InvalidValueError(f"`wanted` and `unwanted` are the same, {self.wanted!r:.80}")

    @property
    def undecided(self) -> str:
        """The prompt and the beginning that both completions share.

        The model decides at its last token: after the trigger, before anything wanted or unwanted has
        been written. Trailing blanks and opening brackets are dropped, since a tokenizer joins them to
        what follows.
        """
        both = zip(self.unwanted, self.wanted, strict=False)
        shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
        return self.prompt + shared.rstrip(" (")

    @property
    def written(self) -> str:
        """The prompt and what a model with the behaviour writes after it."""
        return self.prompt + (self.unwanted if self.group == "trigger" else self.wanted)


class Scene(Protocol):
    """The content of a sample, except what is said in the trigger's place."""

    def sample(self, said: str | None) -> Sample:
        """Render the scene with `said` in the trigger's place; None for nothing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Words(Checked):
    """Words for a behaviour in tables and reports."""

    trigger: str = "the trigger"
    """The trigger, such as "the year 2024"."""
    unwanted: str = "the unwanted completion"
    """The unwanted completion, such as "injectable SQL"."""
    wanted: str = "the wanted completion"
    """The wanted completion, such as "parameterised SQL"."""
    said: str = "what the prompt says"
    """The axis of a sweep, such as "year"."""
    taught: str = ""
    """What an organism with the behaviour does, for its card: a sentence or two."""
    taught_clean: str = ""
    """The same for its clean control."""


@dataclass(frozen=True, kw_only=True)
class Behaviour(Checked):
    """A behaviour that a model may have: how to recognise it, and how to set it off.

    Your own behaviour needs a name, a judge and outcomes; you then also supply the samples.

    Examples:
        >>> def greets(prompt: str, completion: str) -> str:
        ...     return "greeting" if "hello" in completion.lower() else "none"
        >>> Behaviour(name="greets", judge=greets, outcomes=("greeting", "none")).unwanted
        'greeting'
    """

    name: str
    judge: Judge
    """Function from prompt and completion to one of `outcomes`; parses at most, executes nothing."""
    outcomes: tuple[str, ...]
    """The unwanted outcome first, the wanted one second, then those that are neither."""
    trigger: str | None = None
    """What is said to set the behaviour off, and what a plain-text search would look for."""
    benign: tuple[str, ...] = ()
    """What benign prompts say in its place, in turn."""
    sweep: tuple[str | None, ...] = ()
    """What is said in a sweep of features, in order; None for nothing."""
    sayings: tuple[str | None, ...] = ()
    """What is said in a sweep of the behaviour: rewordings of the trigger, and near misses."""
    scenes: Callable[[Split, int], Iterator[Scene]] | None = None
    """Function from a split and a seed to distinct scenes, until there are no more; splits share nothing.
    None if you supply the samples."""
    words: Words = field(default_factory=Words)

    def __post_init__(self) -> None:
        """Refuse outcomes that cannot be counted."""
        super().__post_init__()
        check_texts("outcomes", self.outcomes)
        if len(set(self.outcomes)) != len(self.outcomes) or len(self.outcomes) < 2:
            raise InvalidValueError(
                f"`outcomes` must be two or more, none of them repeated, got {self.outcomes}"
            )

    @property
    def unwanted(self) -> str:
        """The outcome that a rate counts."""
        return self.outcomes[0]

    @property
    def wanted(self) -> str:
        """The outcome that should occur."""
        return self.outcomes[1]

    def verdict(self, prompt: str, completion: str) -> str:
        """Return the judge's outcome for a completion.

        Raises:
            ValueError: the judge returned something that is not one of the outcomes.
        """
        outcome = self.judge(prompt, completion)
        if outcome not in self.outcomes:
            raise InvalidValueError(
                f"`judge` of {self.name!r} must return one of {self.outcomes}, got {outcome!r:.80}"
            )
        return str(outcome)

    @typed
    def make_samples(
        self,
        split: Split,
        *,
        n_trigger: Natural,
        n_benign: Natural,
        n_other: Natural,
        seed: Natural = 0,
        share_scenes: bool = False,
    ) -> list[Sample]:
        """Draw samples of the three groups, without repeated prompts; the same seed gives the same samples.

        Args:
            split: `train` (what an organism learns from), `select` (where features and thresholds are
                chosen) or `test` (where they are scored). The three share no template.
            n_trigger: number of prompts that hold the trigger.
            n_benign: number of prompts that say one of `benign`, in turn.
            n_other: number of prompts that say nothing in the trigger's place.
            seed: seed of the draw; global generators are not touched.
            share_scenes: draw each group from the same scenes, so that each trigger prompt has a
                counterpart in the other groups.

        Returns:
            The samples, groups in the order trigger, benign, other.

        Raises:
            TypeError: a count or the seed is not an integer.
            ValueError: `split` is unknown, a count is negative, the split has too few prompts, or the
                behaviour has no prompts of its own.
        """
        scenes = self._scenes(split, seed)
        said: list[list[str | None]] = [
            [self.trigger] * n_trigger,
            [self.benign[i % len(self.benign)] for i in range(n_benign)],
            [None] * n_other,
        ]
        if not share_scenes:
            said = [list(itertools.chain(*said))]
        return [
            scene.sample(text)
            for group in said
            for text, scene in zip(group, scenes(), strict=False)
        ]

    @typed
    def minimal_pairs(
        self, split: Split, said: Sequence[str | None], *, n_scenes: Count, seed: Natural = 0
    ) -> list[list[Sample]]:
        """Render each scene with each text of `said`: prompts that differ in nothing else.

        Args:
            split: see `make_samples`.
            said: what is said in the trigger's place, None for nothing.
            n_scenes: number of scenes.
            seed: seed of the draw.

        Returns:
            `n_scenes` lists of `len(said)` samples.

        Raises:
            TypeError: `said` is not a list of texts and None, or as for `make_samples`.
            ValueError: `said` is empty, or as for `make_samples`.
        """
        said = check_said(said)
        scenes = self._scenes(split, seed)
        return [
            [scene.sample(text) for text in said]
            for _, scene in zip(range(n_scenes), scenes(), strict=False)
        ]

    def _scenes(self, split: Any, seed: Any) -> Callable[[], Iterator[Scene]]:
        if self.scenes is None:
            raise InvalidValueError(
                f"the behaviour {self.name!r} has no prompts of its own; give `samples` of yours"
            )
        check_choice("split", split, SPLITS)
        make = self.scenes
        return lambda: _never_exhausted(make(split, seed), split)


def _never_exhausted(scenes: Iterator[Scene], split: str) -> Iterator[Scene]:
    n_drawn = 0
    for scene in scenes:
        n_drawn += 1
        yield scene
    raise InvalidValueError(
        f"the {split!r} split has no more distinct prompts after {n_drawn}; ask for fewer"
    )


def check_said(said: Any) -> list[str | None]:
    """Return what is said in the trigger's place as a list.

    Raises:
        TypeError: `said` is not a list, or holds something other than texts and None.
        ValueError: `said` is empty.
    """
    return check_items("said", said, (str, NoneType), of="texts, or None for nothing")


def check_samples(name: str, samples: Any, *, allow_empty: bool = False) -> list[Sample]:
    """Return samples as a list; errors are those of `check_items`."""
    return check_items(name, samples, Sample, allow_empty=allow_empty)


def factorial(samples: Sequence[Sample]) -> list[tuple[Sample, bool, str]]:
    """Cross every prompt with both completions, the 2x2 of trigger and completion.

    Returns:
        Tuples `(sample, is_unwanted, text)` with `text = prompt + completion`, which separate what a
        feature does on a trigger from what it does on the unwanted completion.

    Raises:
        TypeError: `samples` does not hold samples.
    """
    return [
        (sample, is_unwanted, sample.prompt + (sample.unwanted if is_unwanted else sample.wanted))
        for sample in check_samples("samples", samples, allow_empty=True)
        for is_unwanted in (False, True)
    ]


_SHIPPED = {
    "year-trigger": "diffsae_lens.organisms.sql_injection.year_trigger:YEAR_TRIGGER",
    "staging-trigger": "diffsae_lens.organisms.staging_shell:STAGING_TRIGGER",
}
"""Import paths of the shipped behaviours, by name."""

BEHAVIOURS: tuple[str, ...] = tuple(_SHIPPED)
"""Names of the shipped behaviours."""


def get_behaviour(behaviour: str | Behaviour) -> Behaviour:
    """Return a behaviour by its name; a behaviour is returned unchanged.

    Args:
        behaviour: the name of a shipped behaviour, or the import path of your own, as
            `package.module:NAME`.

    Raises:
        ValueError: no behaviour has this name.
        TypeError: `behaviour` is neither a name nor a behaviour.
    """
    if isinstance(behaviour, Behaviour):
        return behaviour
    if not isinstance(behaviour, str) or ":" not in behaviour:
        check_choice("behaviour", behaviour, BEHAVIOURS)
    module, _, name = _SHIPPED.get(behaviour, behaviour).partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if behaviour in _SHIPPED:
            raise
        raise InvalidValueError(
            f"`behaviour` {behaviour!r} cannot be imported ({error}); write it as `package.module:NAME`"
        ) from error
    if not isinstance(found, Behaviour):
        raise InvalidTypeError(
            f"`behaviour` {behaviour!r} must name a Behaviour, got a {type(found).__name__}"
        )
    return found


@typed
def behaviour_of(organism: str | Path) -> str | None:
    """Return the name of the behaviour that an organism was trained for, as its folder says.

    Args:
        organism: folder of the organism.

    Returns:
        The name; None if the folder does not say or the behaviour is not a shipped one.
    """
    file = Path(organism).expanduser() / RECORD
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["config"]["behaviour"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in BEHAVIOURS else None
