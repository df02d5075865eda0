"""The computations of an audit, each stored on disk: completions, imitators, experiments."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsae_lens._artifact import Job, Manifest, build, build_json, digest, open_artifact
from diffsae_lens.auditing._attribution import attribute_words, pooled
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._experiment import (
    STATISTIC,
    Pool,
    choose_from_lexicon,
    experiments,
    halve,
)
from diffsae_lens.auditing._groups import group_by_completion
from diffsae_lens.auditing._imitator import (
    converged,
    stored_imitator,
    train_imitator,
    with_imitator,
)
from diffsae_lens.auditing._prompts import Prompts
from diffsae_lens.auditing._propose import propose
from diffsae_lens.auditing._reactions import Reactor, imitator_name
from diffsae_lens.auditing._refine import refine
from diffsae_lens.auditing._written import Written, decode, encode, write
from diffsae_lens.pair._plain import PlainModels

COMPLETIONS = "completions"
EXPERIMENTS = "experiments.json"
_WRITTEN = "written.safetensors"
_TOP = 0.02
_MIN_TOP = 6


@dataclass(frozen=True, kw_only=True)
class Found:
    written: list[Written]
    readings: Tensor
    """`[reading, text]`; a fold that stopped earlier repeats its last reading."""
    converged: tuple[bool, ...]
    groups: list[list[int]]
    experiments: dict[str, Any]
    seconds: float
    """Time that the computations took, including those stored earlier."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """One audit: its cells, in order."""

    path: Path
    models: PlainModels
    prompts: Prompts
    config: AuditConfig
    lexicon: dict[str, tuple[str, ...]]
    fingerprints: list[str]

    @property
    def recipe(self) -> dict[str, Any]:
        """What every cell depends on."""
        settings = {k: v for k, v in asdict(self.config).items() if k != "alpha"}
        return {
            "models": self.fingerprints,
            "texts": digest(self.prompts.texts),
            "prepend_bos": self.models.prepend_bos,
            "config": settings,
        }

    @property
    def folds(self) -> list[int]:
        """The fold of each text."""
        n = len(self.prompts.prompts)
        order = np.random.default_rng(self.config.seed).permutation(n)
        folds = np.empty(n, dtype=int)
        folds[order] = np.arange(n) % self.config.n_folds
        return folds.tolist()

    def run(self) -> Found:
        """Compute what is missing, and return everything."""
        written = self.written()
        imitators, readings = self.imitators(written)
        last = readings[-1].numpy()
        n_top = max(_MIN_TOP, int(np.ceil(_TOP * len(last))))
        top = [int(i) for i in np.argsort(-last)[:n_top]]
        completions = self.decoded(written)
        groups = group_by_completion(completions, top)
        experiments = build_json(
            self.path / EXPERIMENTS,
            {
                **self.recipe,
                "statistic": STATISTIC,
                "lexicon": {k: list(v) for k, v in self.lexicon.items()},
            },
            lambda: self._experiments(imitators, last, top, groups),
        )
        return Found(
            written=written,
            readings=readings,
            converged=tuple(
                converged(self._own(readings, fold)) for fold in range(self.config.n_folds)
            ),
            groups=groups,
            experiments=experiments,
            seconds=experiments["seconds"] + self._seconds(),
        )

    def imitator(self, fold: int) -> None:
        """Train the imitator of one fold alone, unless it exists."""
        name = imitator_name(fold)
        if not (self.path / name).exists():
            model = with_imitator(self.models.base, name, self.config)
            self._imitator(model, fold, self.written())

    def decoded(self, written: Sequence[Written]) -> list[str]:
        """Return what was written, as text."""
        return decode(written, self.models.tokenizer)

    def _own(self, readings: Tensor, fold: int) -> Tensor:
        of_fold = [i for i, f in enumerate(self.folds) if f == fold]
        return readings[:, of_fold]

    def _seconds(self) -> float:
        """Return the time that the stored cells took to compute."""
        names = [COMPLETIONS, *map(imitator_name, range(self.config.n_folds))]
        return sum(open_artifact(self.path / n, check=False).made["seconds"] for n in names)

    def _of(self, cell: str) -> dict[str, Any]:
        return {**self.recipe, "cell": cell}

    def written(self) -> list[Written]:
        """Return what the suspect writes after each text."""
        folder = build(self.path / COMPLETIONS, self._of(COMPLETIONS), self._write).path
        return _unpacked(load_file(str(folder / _WRITTEN)))

    def _write(self, job: Job) -> None:
        models = self.models
        tokens = encode(self.prompts.texts, models.tokenizer, prepend_bos=models.prepend_bos)
        n_new = self.config.n_new_tokens
        found = write(models.finetuned, models.tokenizer, tokens, n_new, desc="completions")
        save_file(_packed(found), str(job.out / _WRITTEN))

    def imitators(self, written: Sequence[Written]) -> tuple[Any, Tensor]:
        """Return the imitators, one per fold on a shared base, and all residuals `[reading, text]`."""
        model: Any = self.models.base
        readings = []
        for fold in range(self.config.n_folds):
            name = imitator_name(fold)
            model = with_imitator(model, name, self.config)
            cell = self._imitator(model, fold, written)
            readings.append(stored_imitator(model, name, cell.path))
        found = torch.zeros(max(map(len, readings)), len(written))
        for fold, of_fold in enumerate(readings):
            inside = [i for i, f in enumerate(self.folds) if f == fold]
            last = of_fold[-1:].expand(len(found) - len(of_fold), -1)  # a fold that stopped early
            found[:, inside] = torch.cat([of_fold, last])
        return model, found

    def _imitator(self, model: Any, fold: int, written: Sequence[Written]) -> Manifest:
        name = imitator_name(fold)

        def make(job: Job) -> None:
            taught = [w for w, f in zip(written, self.folds, strict=True) if f != fold]
            held_out = [w for w, f in zip(written, self.folds, strict=True) if f == fold]
            train_imitator(model, name, taught, held_out, self.config, job)

        return build(self.path / name, self._of(name), make)

    def _experiments(
        self,
        imitators: Any,
        last: np.ndarray,
        top: Sequence[int],
        groups: Sequence[Sequence[int]],
    ) -> dict[str, Any]:
        start = time.perf_counter()
        config = self.config
        contents = [prompt.content for prompt in self.prompts.prompts]
        reactor = Reactor(
            models=self.models, imitators=imitators, prompts=self.prompts.prompts, folds=self.folds,
            config=config, memory=self.path / "reactions.json",
        )  # fmt: skip
        rng = np.random.default_rng([config.seed, 1])
        ordinary = np.flatnonzero(last <= np.quantile(last, 0.9))
        pool = Pool(contents=contents, free=[int(i) for i in rng.permutation(ordinary)])
        attributions = attribute_words(reactor, top, last)
        proposed = propose(
            contents, top, groups, pooled(attributions), self.lexicon, config.n_candidates, rng
        )
        if config.n_lexicon:
            proposed += choose_from_lexicon(reactor, pool, self.lexicon, config, rng)
        unique = list({candidate.phrases: candidate for candidate in reversed(proposed)}.values())[
            ::-1
        ]
        better = halve(reactor, pool, unique, max(6, config.n_finalists), 3, 1)
        best = halve(reactor, pool, better, config.n_finalists, 5, 3)
        done = experiments(reactor, pool, best, last, top, config)
        narrower = refine(reactor, pool, best, last, self.lexicon, config, rng)
        done += experiments(reactor, pool, narrower, last, top, config, "narrower candidates")
        rows = sorted(done, key=lambda row: -row.strength)
        order = {candidate.name: None for candidate in (*best, *better, *unique)}
        return {
            "candidates": [row.as_dict() for row in rows],
            "others": [name for name in order if name not in {row.name for row in rows}],
            "n_read": reactor.n_read,
            "seconds": time.perf_counter() - start,
        }


def _packed(written: Sequence[Written]) -> dict[str, Tensor]:
    return {
        "n_prompt": torch.tensor([len(w.prompt) for w in written]),
        "n_new": torch.tensor([len(w.tokens) for w in written]),
        "prompts": torch.tensor([token for w in written for token in w.prompt]),
        "tokens": torch.tensor([token for w in written for token in w.tokens]),
        "likely": torch.cat([w.likely for w in written]).to(torch.int32),
        "log_probs": torch.cat([w.log_probs for w in written]),
    }


def _unpacked(packed: Mapping[str, Tensor]) -> list[Written]:
    n_prompt, n_new = packed["n_prompt"].tolist(), packed["n_new"].tolist()
    columns = (
        packed["prompts"].split(n_prompt),
        packed["tokens"].split(n_new),
        packed["likely"].long().split(n_new),
        packed["log_probs"].split(n_new),
    )
    return [
        Written(prompt=tuple(p.tolist()), tokens=tuple(t.tolist()), likely=i, log_probs=v)
        for p, t, i, v in zip(*columns, strict=True)
    ]
