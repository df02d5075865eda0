"""Draws of a behaviour's samples."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any

from diffsae_lens._checks import check_count
from diffsae_lens._typed import Checked, Natural
from diffsae_lens.organisms._behaviour import Behaviour, Sample, Split


@dataclass(frozen=True, kw_only=True)
class Draw(Checked):
    """Samples to draw from a split; see `Behaviour.make_samples`."""

    split: Split
    n_trigger: Natural = 0
    n_benign: Natural = 0
    n_other: Natural = 0
    seed: Natural = 0
    share_scenes: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible counts."""
        super().__post_init__()
        check_count("n_samples", self.n_samples)

    @property
    def n_samples(self) -> int:
        """Number of samples in all groups."""
        return self.n_trigger + self.n_benign + self.n_other

    def samples(self, behaviour: Behaviour) -> list[Sample]:
        """Draw the samples."""
        return behaviour.make_samples(**{f.name: getattr(self, f.name) for f in fields(self)})


def _check_triggers(name: str, draw: Draw, **limits: int) -> None:
    check_count(f"{name}.n_trigger", draw.n_trigger, **limits)


Triggers = Annotated[Draw, _check_triggers]
"""A draw with trigger prompts."""
NoTriggers = Annotated[Draw, partial(_check_triggers, at_least=0, at_most=0)]


def draws_in(name: str, record: Any) -> Iterator[tuple[str, Draw]]:
    """Yield the draws of a record and of nested records, by their path, such as `scores.test`."""
    if isinstance(record, Draw):
        yield name, record
    elif is_dataclass(record):
        for field in fields(record):
            inner = f"{name}.{field.name}" if name else field.name
            yield from draws_in(inner, getattr(record, field.name))
