"""One vector per text, scored on the very texts that were trained on: the paper's protocol as published."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.isolation._labels import Labels
from diffsae_lens.isolation._score import score
from diffsae_lens.isolation._sources import Candidate, Encoder, control_candidates
from diffsae_lens.isolation._table import IsolationTable
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.organisms._behaviour import GROUPS
from diffsae_lens.pair._views import VIEWS


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTexts:
    """Activations at one site averaged over each text's tokens, and what the texts are."""

    site: str
    """The models' hook, such as `blocks.18.hook_resid_post`."""
    base: Float[Tensor, "text d_model"]
    finetuned: Float[Tensor, "text d_model"]
    group: Int[Tensor, "text"]
    """Its place in `GROUPS`."""
    template: Int[Tensor, "text"]
    """Texts of one template have one number."""
    scene: Int[Tensor, "text"]
    """Texts that differ in nothing but the trigger and what follows from it have one number."""

    @property
    def variance_ratio(self) -> float:
        """Var(finetuned - base) / Var(base) over all entries, as the paper reports it."""
        return ((self.finetuned - self.base).var() / self.base.var()).item()

    @property
    def labels(self) -> Labels:
        """What is scored is what was fitted; intervals as published, and with templates drawn whole."""
        return Labels(
            is_trigger=self.group == GROUPS.index("trigger"),
            is_benign=self.group == GROUPS.index("benign"),
            is_select=torch.ones_like(self.group, dtype=torch.bool),
            templates=self.template,
            scenes=self.scene,
        )

    def read_by(self, view: str) -> Float[Tensor, "text d_in"]:
        """Return what a dictionary on a view reads, such as `diff` or `concat`."""
        return VIEWS[view].read(self.base, self.finetuned)


@torch.no_grad()
def evaluate_pooled(
    dictionaries: Mapping[str, SAE], texts: PooledTexts, *, resampling: Resampling
) -> IsolationTable:
    """Score dictionaries and controls on pooled vectors by the paper's protocol.

    Args:
        dictionaries: by name, each on the difference or on both models' activations.
        texts: those the dictionaries were trained on.
        resampling: of the intervals, `low` to `high` with every text drawn alone as published and
            `template_low` to `template_high` with templates drawn whole; the p-value, of labels
            permuted within scenes, takes five times as many. Its seed is that of the random controls.

    Returns:
        The table. What was fitted on the labels has no interval and no p-value.
    """
    return score(
        _candidates(dictionaries, texts, resampling.seed), texts.labels, "paper", resampling
    )


def _candidates(
    dictionaries: Mapping[str, SAE], texts: PooledTexts, seed: int
) -> Iterator[Candidate]:
    """One dense code at a time."""
    for name, dictionary in dictionaries.items():
        encoder, device = Encoder.of(name, dictionary), dictionary.W_enc.device
        both, base = texts.read_by(encoder.hook.view), texts.base
        yield encoder.candidate(
            encoder.encode(both.to(device)).cpu(), encoder.encode_base(base.to(device)).cpu()
        )
        if getattr(dictionary.cfg, "k", None):  # a dense code has no sparsity to share
            untrained = encoder.untrained(seed)
            yield untrained.candidate(untrained.encode(both), untrained.encode_base(base))
    by_view = {"diff": texts.read_by("diff"), "base": texts.base, "finetuned": texts.finetuned}
    n_directions = max(dictionary.cfg.d_sae for dictionary in dictionaries.values())
    yield from control_candidates(
        texts.site, by_view, texts.labels, n_directions=n_directions, seed=seed
    )
