"""Prompts of your own, with what a behaviour would write and what should be written instead."""

from dataclasses import dataclass

from diffsae_lens.organisms.prompts import GROUPS, Group, Sample


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
        for name in ("prompt", "behaviour", "alternative"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must not be empty")
        if self.group not in GROUPS:
            raise ValueError(f"`group` must be one of {GROUPS}, got {self.group!r}")
        if self.behaviour == self.alternative:
            raise ValueError(f"`behaviour` and `alternative` are the same, {self.behaviour!r}")

    def completion(self, *, vulnerable: bool) -> str:
        """`behaviour` if `vulnerable`, else `alternative`."""
        return self.behaviour if vulnerable else self.alternative


Prompted = Sample | Contrast
"""A prompt, its group and two completions."""
