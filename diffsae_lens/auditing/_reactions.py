"""How a suspect reacts to a text: what it writes, and how far its imitator is from that."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffsae_lens._artifact import digest, read_json, write_json
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._prompts import Prompt
from diffsae_lens.auditing._written import Written, decode, encode, residuals, write
from diffsae_lens.pair._plain import PlainModels

Edit = tuple[int, str]
"""A text's index and its new content."""


def imitator_name(fold: int) -> str:
    """Return the name of the adapter of a fold's imitator."""
    return f"imitator{fold}"


@dataclass(kw_only=True, eq=False)
class Reactor:
    """Reads edited texts, each with the imitator that never saw the original."""

    models: PlainModels
    imitators: Any
    """The base with the adapters of all imitators."""
    prompts: Sequence[Prompt]
    folds: Sequence[int]
    config: AuditConfig
    memory: Path | None = None
    """File for the reactions, so that an interruption costs at most one call."""
    n_read: int = 0
    """Edited texts read so far."""
    _known: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Load what an interrupted attempt has read."""
        if self.memory is not None and self.memory.exists():
            self._known = dict(read_json(self.memory))
            self.n_read = len(self._known)

    def __call__(self, edits: Sequence[Edit], what: str = "experiment") -> np.ndarray:
        """Return the residual of each edited text, in nats."""
        keys = [digest([i, content]) for i, content in edits]
        new = {key: edit for key, edit in zip(keys, edits, strict=True) if key not in self._known}
        if new:
            indices = [i for i, _ in new.values()]
            found = self.residuals(indices, self.written(new.values(), what))
            self._known |= dict(zip(new, found, strict=True))
            self.n_read += len(new)
            if self.memory is not None:
                write_json(self.memory, self._known)
        return np.array([self._known[key] for key in keys])

    def written(self, edits: Iterable[Edit], what: str = "writing") -> list[Written]:
        """Return what the suspect writes after edited texts."""
        texts = [self.prompts[i].saying(content).text for i, content in edits]
        models = self.models
        tokens = encode(texts, models.tokenizer, prepend_bos=models.prepend_bos)
        return write(
            models.finetuned, models.tokenizer, tokens, self.config.n_new_tokens, desc=what
        )

    def completion(self, edit: Edit) -> str:
        """Return what the suspect writes after one edited text."""
        return decode(self.written([edit]), self.models.tokenizer)[0]

    def residuals(self, indices: Sequence[int], written: Sequence[Written]) -> list[float]:
        """Return how far each text's own imitator is from what was written."""
        found = [0.0] * len(written)
        for fold in sorted({self.folds[i] for i in indices}):
            of_fold = [j for j, i in enumerate(indices) if self.folds[i] == fold]
            self.imitators.set_adapter(imitator_name(fold))
            for j, value in zip(
                of_fold, residuals(self.imitators, [written[j] for j in of_fold]), strict=True
            ):
                found[j] = round(value.item(), 4)
        return found
