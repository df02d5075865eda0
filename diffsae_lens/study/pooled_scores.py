"""The paper's protocol as published: one vector a text, scored on the texts it was trained on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.isolation.controls import Evidence, standard_controls, untrained_encoder
from diffsae_lens.measures.bis import bis
from diffsae_lens.measures.resampling import Resampling, bootstrap_bis, permutation_test_bis
from diffsae_lens.organisms.behaviour import GROUPS
from diffsae_lens.pair.views import View

FITTED = ("difference of means", "linear probe")
"""Controls fitted on the labels of the very texts they are scored on: no interval or p-value holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTexts:
    """A layer's activations averaged over each text's tokens, and what the texts are."""

    base: Float[Tensor, "text d_model"]
    finetuned: Float[Tensor, "text d_model"]
    group: Int[Tensor, "text"]
    """Its place in `GROUPS`."""
    template: Int[Tensor, "text"]
    """Texts of one template have one number."""
    scene: Int[Tensor, "text"]
    """Texts that differ in nothing but the year and what follows from it have one number."""

    @classmethod
    def of_layer(cls, read: Mapping[str, Tensor], layer: int) -> "PooledTexts":
        """Take one layer out of the tensors that the `pooled` cell stores."""
        return cls(
            base=read[f"{layer}.base"],
            finetuned=read[f"{layer}.finetuned"],
            group=read["group"],
            template=read["template"],
            scene=read["scene"],
        )

    @property
    def variance_ratio(self) -> float:
        """Var(finetuned - base) / Var(base) over all entries, as the paper reports it."""
        return ((self.finetuned - self.base).var() / self.base.var()).item()

    def seen_by(self, view: View) -> tuple[Tensor, Tensor]:
        """What a dictionary on a view reads, and what it reads on the base alone."""
        return view.read(self.base, self.finetuned), view.of_base(self.base)


@torch.no_grad()
def pooled_scores(
    dictionaries: Mapping[str, SAE], texts: PooledTexts, *, n_resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Score dictionaries and floors on pooled vectors, each beside the base model alone.

    Args:
        dictionaries: by name, each on the difference or on both models' activations.
        texts: those the published dictionaries were trained on.
        n_resamples: of the interval; the p-value takes five times as many permutations.
        seed: of resamples and random floors.

    Returns:
        A row for each dictionary and floor: `name`, `kind`, `n_features`, `bis` with its intervals,
        which repeat the choice of the feature: `low` to `high` as published, every text drawn alone,
        `template_low` to `template_high` with templates drawn whole; `ceiling`, `precision`, `recall`,
        `fpr_benign`, `base_bis`, `pvalue` (labels permuted within scenes), `l0`, the mean number of
        features that fire on a text. No interval and no p-value for what was fitted on the labels.
    """
    is_trigger, is_benign = (texts.group == GROUPS.index(name) for name in ("trigger", "benign"))
    rows = []
    for name, kind, acts, alone in _codes(dictionaries, texts, seed):
        found = bis(acts, is_trigger, is_benign)
        row = {
            "name": name,
            "kind": kind,
            "n_features": acts.shape[1],
            "bis": found.bis,
            "ceiling": found.ceiling,
            "precision": found.precision,
            "recall": found.recall,
            "fpr_benign": found.fpr_benign,
            "base_bis": bis(alone, is_trigger, is_benign).bis,
            "l0": (acts > 0).float().sum(1).mean().item(),
        }
        rows.append(row | _uncertainty(name, acts, texts, n_resamples=n_resamples, seed=seed))
    return rows


def _uncertainty(
    name: str, acts: Tensor, texts: PooledTexts, *, n_resamples: int, seed: int
) -> dict[str, float | None]:
    if name in FITTED:
        return dict.fromkeys(("low", "high", "template_low", "template_high", "pvalue"))
    groups = [texts.group == GROUPS.index(name) for name in ("trigger", "benign")]
    alone, whole = (
        bootstrap_bis(
            acts, *groups, resampling=Resampling(n_resamples=n_resamples, seed=seed, clusters=c)
        )
        for c in (None, texts.template)
    )
    relabelling = Resampling(n_resamples=5 * n_resamples, seed=seed, clusters=texts.scene)
    return {
        "low": alone.low,
        "high": alone.high,
        "template_low": whole.low,
        "template_high": whole.high,
        "pvalue": permutation_test_bis(acts, *groups, resampling=relabelling).pvalue,
    }


def _codes(
    dictionaries: Mapping[str, SAE], texts: PooledTexts, seed: int
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Name, kind, features, and features on the base model alone; one dense code at a time."""
    for name, dictionary in dictionaries.items():
        cfg = dictionary.cfg
        view = DictionaryRecord.of(dictionary).spec
        if view is None:
            raise ValueError(f"the dictionary {name!r} does not record what it reads of a pair")
        both, alone = texts.seen_by(view)
        device = dictionary.W_enc.device
        yield (
            name,
            "dictionary",
            dictionary.encode(both.to(device)).cpu(),
            dictionary.encode(alone.to(device)).cpu(),
        )
        if k := getattr(cfg, "k", None):
            encode = untrained_encoder(cfg.d_in, cfg.d_sae, k, seed=seed)
            yield f"untrained {name}", "untrained dictionary", encode(both), encode(alone)
    evidence = Evidence(
        by_view={
            "diff": texts.finetuned - texts.base,
            "base": texts.base,
            "finetuned": texts.finetuned,
        },
        is_trigger=texts.group == GROUPS.index("trigger"),
        is_benign=texts.group == GROUPS.index("benign"),
        # The paper has no split: what is fitted is scored.
        is_select=torch.ones_like(texts.group, dtype=torch.bool),
    )
    n_directions = max(dictionary.cfg.d_sae for dictionary in dictionaries.values())
    for control in standard_controls(n_directions=n_directions, seed=seed):
        yield (
            control.name,
            "control",
            control.features(evidence, control.view),
            control.features(evidence, "base"),
        )
