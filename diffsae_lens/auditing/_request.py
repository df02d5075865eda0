"""The request for an audit, computed here or sent to other processes that compute parts of it."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffsae_lens._checks import shown
from diffsae_lens._errors import FailedRunError, InvalidTypeError
from diffsae_lens.auditing._cells import COMPLETIONS, EXPERIMENTS, Audit
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._prompts import read_texts
from diffsae_lens.auditing._reactions import imitator_name
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._doors import Given
from diffsae_lens.pair._fingerprint import model_fingerprint
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.pair._plain import load_plain


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of an audit, as sent to each process that computes a part of it."""

    base: Given
    suspect: Given
    texts: Sequence[Text]
    path: Path
    config: AuditConfig
    lexicon: dict[str, tuple[str, ...]]
    options: LoadOptions | None
    overrides: Mapping[str, Any]
    """Fields of `LoadOptions`, checked where the models are loaded: this machine may have no GPU."""
    name = "audit"

    @property
    def resources(self) -> dict[str, int | float]:
        """Resources that it needs, in the terms in which cluster workers declare theirs."""
        given = vars(self.options) if self.options else self.overrides
        places = [str(given.get(name)) for name in ("device", "device_map")]
        return {"GPU": 1} if any("cuda" in place for place in places) else {}

    def on_cpu(self) -> "Request":
        """Return the same request for the CPU, to open only for reading what others compute."""
        here = {"device": "cpu", "device_map": None}
        if self.options is not None:
            return replace(self, options=replace(self.options, **here))
        return replace(self, overrides={**self.overrides, **here})

    def open(self) -> Audit:
        """Load the models and read the texts.

        Raises:
            ValueError, TypeError, ModelUnavailableError: as for `audit`.
        """
        models = load_plain(self.base, self.suspect, options=self.options, **self.overrides)
        return Audit(
            path=self.path,
            models=models,
            prompts=read_texts(self.texts, models.tokenizer, self.config.n_prompt_tokens),
            config=self.config,
            lexicon=self.lexicon,
            fingerprints=[
                model_fingerprint(model.state_dict().values())
                for model in (models.base, models.finetuned)
            ],
        )

    def compute(self, executor: Executor) -> None:
        """Have an executor compute all parts that do not exist yet.

        Raises:
            RuntimeError: a part failed; the message names it.
            TypeError: a model is in memory, and so cannot be sent.
        """
        for what, model in (("base", self.base), ("suspect", self.suspect)):
            if not isinstance(model, str | Path):
                raise InvalidTypeError(
                    f"`{what}` must be a folder or a hub id where an `executor` is given, got {shown(model)}"
                )
        imitators = [imitator_name(fold) for fold in range(self.config.n_folds)]
        for parts in ([COMPLETIONS], imitators, [EXPERIMENTS]):
            running = {
                executor.submit(compute_part, self, part): part
                for part in parts
                if not (self.path / part).exists()
            }
            try:
                for future, part in running.items():
                    if (error := future.exception()) is not None:
                        raise FailedRunError(
                            f"the part {part!r} of the audit failed: {error}"
                        ) from error
            finally:  # start nothing new after a failure
                for future in running:
                    future.cancel()
                wait(running)


def compute_part(request: Request, part: str) -> None:
    """Compute one part of an audit: the completions, an imitator, or everything else."""
    audit = request.open()
    with torch.random.fork_rng():
        if part == COMPLETIONS:
            audit.written()
        elif part == EXPERIMENTS:
            audit.run()
        else:
            audit.imitator([imitator_name(f) for f in range(audit.config.n_folds)].index(part))
