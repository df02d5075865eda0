"""The prompts of an evaluation: their groups, their splits, and where they are read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffsae_lens._checks import INTEGERS, check_choice, check_texts
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import Checked
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.measures._strict import check_splits
from diffsae_lens.measures._validation import check_masks
from diffsae_lens.organisms._behaviour import Sample, check_samples
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.reading._prompts import Positions

logger = logging.getLogger(__name__)

ReadAt = Literal["decision", "trigger", "completion", "everything"]
"""Which tokens of a sample are read; see `LabelledPrompts.from_samples`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Groups and splits of the scored texts, and which texts belong together."""

    is_trigger: Bool[Tensor, "text"]
    is_benign: Bool[Tensor, "text"]
    is_select: Bool[Tensor, "text"]
    """Texts that a control may be fitted on."""
    clusters: Int[Tensor, "text"] | None = None
    """Clusters of texts that are resampled whole; None draws each text alone."""
    templates: Int[Tensor, "text"] | None = None
    """Templates to draw whole for a second interval; None leaves that interval out."""
    scenes: Int[Tensor, "text"] | None = None
    """Scenes within which labels are permuted; None permutes them across all texts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPrompts(Checked):
    """The prompts of an evaluation, their groups, and how they are split."""

    texts: tuple[str, ...]
    """For strict scores, cut where the model decides, before anything wanted or unwanted is written."""
    is_trigger: Bool[Tensor, "prompt"]
    is_benign: Bool[Tensor, "prompt"]
    is_select: Bool[Tensor, "prompt"]
    """Prompts on which thresholds and features are chosen; the others are scored."""
    clusters: Int[Tensor, "prompt"]
    """Templates: resampled whole, never in both splits."""
    trigger_text: str | None = None
    """Text for the text-search control; None leaves that control out."""
    positions: Positions | None = None
    """Which tokens are read; None for the protocol's default, mean (`paper`) or last (`strict`)."""

    def __post_init__(self) -> None:
        """Refuse labels that are not one per text."""
        super().__post_init__()
        n = len(check_texts("texts", self.texts))
        for name in ("is_trigger", "is_benign", "is_select", "clusters"):
            labels = getattr(self, name)
            kinds = INTEGERS if name == "clusters" else (torch.bool,)
            if not isinstance(labels, Tensor) or labels.shape != (n,) or labels.dtype not in kinds:
                got = (
                    f"{labels.dtype} {list(labels.shape)}"
                    if isinstance(labels, Tensor)
                    else type(labels).__name__
                )
                raise InvalidValueError(
                    f"`{name}` must be a tensor of {'integers' if name == 'clusters' else 'booleans'}, "
                    f"one for each of the {n} `texts`, got {got}"
                )
            if name in ("is_trigger", "is_benign") and not labels.any():
                raise InvalidValueError(f"`{name}` must be true of at least one text, got none")

    @property
    def labels(self) -> Labels:
        """The labels without the texts."""
        return Labels(
            is_trigger=self.is_trigger,
            is_benign=self.is_benign,
            is_select=self.is_select,
            clusters=self.clusters,
        )

    @classmethod
    def from_samples(
        cls, select: Sequence[Sample], test: Sequence[Sample], *, read: ReadAt = "decision"
    ) -> "LabelledPrompts":
        """Make labelled prompts from samples.

        Args:
            select: samples to choose on.
            test: samples to score on, from other templates.
            read: `decision`, after the trigger and before anything wanted or unwanted is written;
                `trigger`, the strongest token of the first line that contains the sample's `said` (of the
                first line, if nothing is said); `completion`, the mean over the completion that follows the
                trigger; `everything`, prompt and completion, as the paper reads them. If the completion is
                read, a detector of unwanted completions passes for a detector of the trigger.

        Raises:
            TypeError: `select` or `test` that are not lists of samples.
            ValueError: no samples, a template in both splits, or an unknown `read`.
        """
        check_choice("read", read, get_args(ReadAt))
        select = check_samples("select", select, allow_empty=True)
        test = check_samples("test", test)
        samples = [*select, *test]
        names = sorted({sample.template for sample in samples})
        shared = {s.template for s in select} & {s.template for s in test}
        if shared:
            raise InvalidValueError(
                f"templates {sorted(shared)} are in both splits; split by template"
            )
        texts = [
            sample.undecided if read in ("decision", "trigger") else sample.written
            for sample in samples
        ]
        positions = None
        if read == "trigger":
            spans = tuple(_first_line(s.prompt, s.said) for s in samples)
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
            trigger_text=next((s.said for s in samples if s.group == "trigger"), None),
            positions=positions,
        )


def _first_line(prompt: str, said: str | None) -> tuple[int, int]:
    """Start and end of the first line that contains `said`; of the first line if nothing is said."""
    at = 0 if said is None else max(prompt.find(said), 0)
    end = prompt.find("\n", at)
    return prompt.rfind("\n", 0, at) + 1, len(prompt) if end < 0 else end


def check_scorable(
    pair: HookedModelPair,
    prompts: LabelledPrompts,
    resampling: Resampling | None,
    *,
    strict: bool,
) -> None:
    """Refuse early what the scorer would refuse only after reading every prompt.

    Raises:
        TypeError: `prompts` that are not `LabelledPrompts`.
        ValueError: groups or splits that cannot be scored, texts beyond the context, or a resampling with
            clusters other than the prompts'.
    """
    if not isinstance(prompts, LabelledPrompts):
        raise InvalidTypeError(
            f"`prompts` must be LabelledPrompts, got {type(prompts).__name__}; see "
            "`LabelledPrompts.from_samples`"
        )
    clusters = None if resampling is None else resampling.clusters
    if clusters is not None and not torch.equal(clusters, prompts.clusters):
        raise InvalidValueError(
            "`resampling.clusters` must be left out or be those of `prompts`, which are resampled whole; "
            "set `clusters` of the prompts"
        )
    groups = prompts.is_trigger, prompts.is_benign
    if strict:
        check_splits(prompts.clusters, *groups, prompts.is_select, prompts.clusters)
    check_masks(prompts.clusters, is_trigger=groups[0], is_benign=groups[1])
    pair.tokenise(prompts.texts, name="prompts.texts")


def warn_of_overlap(prompts: LabelledPrompts) -> None:
    """Log a warning if test prompts are also selection prompts."""
    split = prompts.is_select.tolist()
    chosen = {text for text, select in zip(prompts.texts, split, strict=True) if select}
    n_shared = sum(
        t in chosen for t, select in zip(prompts.texts, split, strict=True) if not select
    )
    if n_shared:
        logger.warning("%d test prompts are selection prompts too", n_shared)
