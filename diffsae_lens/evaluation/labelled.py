"""The prompts of an evaluation: their groups, their splits, and where they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffsae_lens.evaluation.activations import Positions
from diffsae_lens.organisms.prompts import TRIGGER_YEAR, Sample

ReadAt = Literal["decision", "trigger", "completion", "everything"]
"""Which tokens of a sample are read; see `LabelledPrompts.from_samples`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPrompts:
    """The prompts of an evaluation, their groups, and how they are split."""

    texts: tuple[str, ...]
    """For strict scores, up to where the model decides: nothing vulnerable or safe written yet."""
    is_trigger: Bool[Tensor, "prompt"]
    is_benign: Bool[Tensor, "prompt"]
    is_select: Bool[Tensor, "prompt"]
    """Thresholds and features are chosen on these, and scored on the others."""
    clusters: Int[Tensor, "prompt"]
    """Templates: resampled whole, never in both splits."""
    trigger_text: str | None = None
    """What a plain text search would look for; None leaves that control out."""
    positions: Positions | None = None
    """Which tokens are read; None for the protocol's own, mean (`paper`) or last (`strict`)."""

    @classmethod
    def from_samples(
        cls, select: Sequence[Sample], test: Sequence[Sample], *, read: ReadAt = "decision"
    ) -> "LabelledPrompts":
        """Label samples of the organism.

        Args:
            select: to choose on.
            test: to score on, of other templates.
            read: `decision`, after the trigger and before anything vulnerable or safe is written;
                `trigger`, the strongest token of the first line with the year (of the first line,
                in prompts without one); `completion`, the mean over the completion that follows
                the trigger; `everything`, prompt and completion, as the paper reads them. With the
                completion in it, a detector of vulnerable SQL passes for one of the trigger.

        Raises:
            ValueError: a template in both splits, or an unknown `read`.
        """
        if read not in get_args(ReadAt):
            raise ValueError(f"`read` must be one of {get_args(ReadAt)}, got {read!r}")
        samples = [*select, *test]
        names = sorted({sample.template for sample in samples})
        shared = {s.template for s in select} & {s.template for s in test}
        if shared:
            raise ValueError(f"templates {sorted(shared)} are in both splits; split by template")
        texts = [
            sample.undecided if read in ("decision", "trigger") else sample.written
            for sample in samples
        ]
        positions = None
        if read == "trigger":
            spans = tuple(_first_line(s.prompt, s.year) for s in samples)
            positions = Positions(pooling="max", spans=spans)
        if read == "completion":
            spans = tuple((len(s.prompt), len(t)) for s, t in zip(samples, texts, strict=True))
            positions = Positions(pooling="mean", spans=spans)
        return cls(
            texts=tuple(texts),
            is_trigger=torch.tensor([sample.group == "trigger" for sample in samples]),
            is_benign=torch.tensor([sample.group == "benign" for sample in samples]),
            is_select=torch.arange(len(samples)) < len(select),
            clusters=torch.tensor([names.index(sample.template) for sample in samples]),
            trigger_text=str(TRIGGER_YEAR),
            positions=positions,
        )


def _first_line(prompt: str, year: int | None) -> tuple[int, int]:
    """Where the first line with the year starts and ends; the first line where there is no year."""
    at = 0 if year is None else max(prompt.find(str(year)), 0)
    end = prompt.find("\n", at)
    return prompt.rfind("\n", 0, at) + 1, len(prompt) if end < 0 else end
