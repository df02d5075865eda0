"""Prompts of your own, with what a behaviour would write and what should be written instead."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffsae_lens._checks import check_choice, check_items
from diffsae_lens._typed import check_fields
from diffsae_lens.organisms.sql_injection.prompts import GROUPS, Group, Sample


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A prompt of your own with two completions to weigh against each other.

    Takes the place of a `Sample` wherever completions are scored, generated or attributed.
    """

    prompt: str
    behaviour: str
    """What the behaviour would write."""
    alternative: str
    """What should be written instead."""
    group: Group = "trigger"
    """`trigger`: should set the behaviour off; `benign`: looks alike; `other`: the rest."""

    def __post_init__(self) -> None:
        """Refuse what cannot be told apart, and groups that no table has."""
        check_fields(self)
        for name in ("prompt", "behaviour", "alternative"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise TypeError(f"`{name}` must be a text, got {text!r:.60}; give a string")
            if not text:
                raise ValueError(f"`{name}` must not be empty")
        check_choice("group", self.group, GROUPS)
        if self.behaviour == self.alternative:
            raise ValueError(f"`behaviour` and `alternative` are the same, {self.behaviour!r}")

    def completion(self, *, vulnerable: bool) -> str:
        """`behaviour` if `vulnerable`, else `alternative`."""
        return self.behaviour if vulnerable else self.alternative


Prompted = Sample | Contrast
"""A prompt, its group and two completions."""


def check_samples(name: str, samples: Any, *, allow_empty: bool = False) -> Sequence[Prompted]:
    """Return samples as a list.

    Args:
        name: what the argument is called, for the message.
        samples: a collection of `Sample` or `Contrast`.
        allow_empty: whether there may be none.

    Raises:
        TypeError: not a collection, or one that holds something else, such as texts.
        ValueError: empty.
    """
    return check_items(name, samples, (Sample, Contrast), allow_empty=allow_empty)
