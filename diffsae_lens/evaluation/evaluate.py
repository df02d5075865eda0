"""One call: every dictionary and every control through the same protocol, in one table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.evaluation.activations import Positions, Reader, read_prompts
from diffsae_lens.evaluation.controls import (
    Control,
    Evidence,
    next_token_kl,
    standard_controls,
    text_match,
    untrained_encoder,
    view_readers,
)
from diffsae_lens.evaluation.isolation import bis
from diffsae_lens.evaluation.strict import strict_bis
from diffsae_lens.evaluation.table import IsolationTable, Protocol, judge
from diffsae_lens.evaluation.uncertainty import Resampling, bootstrap_bis, permutation_test_bis
from diffsae_lens.organisms.prompts import TRIGGER_YEAR, Sample
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPrompts:
    """The prompts of an evaluation, their groups, and how they are split."""

    texts: tuple[str, ...]
    """Up to where the model decides: nothing vulnerable or safe written yet."""
    is_trigger: Bool[Tensor, "prompt"]
    is_benign: Bool[Tensor, "prompt"]
    is_select: Bool[Tensor, "prompt"]
    """Thresholds and features are chosen on these, and scored on the others."""
    clusters: Int[Tensor, "prompt"]
    """Templates: resampled whole, never in both splits."""
    trigger_text: str | None = None
    """What a plain text search would look for; None leaves that control out."""

    @classmethod
    def from_samples(
        cls, select: Sequence[Sample], test: Sequence[Sample], *, completed: bool = False
    ) -> "LabelledPrompts":
        """Label samples of the organism, read where it decides.

        Args:
            select: to choose on.
            test: to score on, of other templates.
            completed: the texts with the completion that follows the trigger, as the paper reads
                them; a detector of vulnerable SQL then passes for one of the trigger.

        Raises:
            ValueError: a template in both splits.
        """
        samples = [*select, *test]
        names = sorted({sample.template for sample in samples})
        shared = {s.template for s in select} & {s.template for s in test}
        if shared:
            raise ValueError(f"templates {sorted(shared)} are in both splits; split by template")

        def text(sample: Sample) -> str:
            if not completed:
                return sample.undecided
            return sample.prompt + sample.completion(vulnerable=sample.group == "trigger")

        return cls(
            texts=tuple(text(sample) for sample in samples),
            is_trigger=torch.tensor([sample.group == "trigger" for sample in samples]),
            is_benign=torch.tensor([sample.group == "benign" for sample in samples]),
            is_select=torch.arange(len(samples)) < len(select),
            clusters=torch.tensor([names.index(sample.template) for sample in samples]),
            trigger_text=str(TRIGGER_YEAR),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """Something to score: features on the pair, and the same on the base model alone."""

    name: str
    kind: str
    hook_name: str
    acts: Float[Tensor, "prompt n_features"]
    base_acts: Float[Tensor, "prompt n_base_features"] | None

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that say what the row is."""
        return {
            "name": self.name,
            "kind": self.kind,
            "hook_name": self.hook_name,
            "n_features": self.acts.shape[1],
        }


def evaluate_isolation(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    prompts: LabelledPrompts,
    *,
    protocol: Protocol = "strict",
    positions: Positions | None = None,
    resampling: Resampling | None = None,
) -> IsolationTable:
    """Score dictionaries and controls by one protocol, each beside the base model's own score.

    `paper`: the BIS of arXiv 2605.07324 over all prompts, tokens averaged, with its ceiling, an
    interval that repeats the selection, and a p-value over all features. `strict`: `strict_bis` at
    the last token, with its ceiling of 1.

    Controls, for every hook the dictionaries read: an untrained dictionary of the same shape and
    sparsity, random directions, difference of means, principal components of the difference, a linear
    probe on the fine-tuned activations; and once, a search for the trigger's text and the next
    token's KL between the models. A plain SAE on `.finetuned` is one of the dictionaries; base against
    base and a clean-control organism are pairs of their own, evaluated by a call of their own.

    On the base model alone a Diff-SAE's features read the base's activation, a crosscoder's read it
    for both models.

    Args:
        pair: the two models.
        dictionaries: by name, each of one of the pair's hook points.
        prompts: with their groups and splits.
        protocol: which one.
        positions: which tokens are read; mean (`paper`) or last (`strict`) by default.
        resampling: 200 resamples (and five times as many permutations) by default; its clusters are
            the prompts' own, its seed is the random controls' too.

    Returns:
        The table, dictionaries first.

    Raises:
        ValueError: no dictionaries, another pair's, an unknown protocol, or prompts without one of
            the groups.
    """
    if protocol not in ("paper", "strict"):
        raise ValueError(f"`protocol` must be 'paper' or 'strict', got {protocol!r}")
    if not dictionaries:
        raise ValueError("`dictionaries` is empty: name at least one")
    hooks = {name: check_fits(pair, d) for name, d in dictionaries.items()}
    _warn_of_overlap(prompts)
    positions = positions or Positions(pooling="last" if protocol == "strict" else "mean")
    resampling = resampling or Resampling(n_resamples=200)
    resampling = replace(resampling, clusters=prompts.clusters)
    encoders = _encoders(dictionaries, hooks, resampling.seed)
    rows, views = _dictionary_rows(pair, encoders, dictionaries, prompts, positions)
    controls = standard_controls(
        n_directions=max(d.cfg.d_sae for d in dictionaries.values()), seed=resampling.seed
    )
    for hook, by_view in views.items():
        rows += _control_rows(hook, by_view, prompts, controls)
    rows += _text_rows(pair, prompts)
    score = _strict if protocol == "strict" else _paper
    records = [score(row, prompts, resampling) for row in rows]
    judge(records, protocol)
    return IsolationTable(
        frame=pd.DataFrame(records), protocol=protocol, n_prompts=len(prompts.texts)
    )


def _warn_of_overlap(prompts: LabelledPrompts) -> None:
    split = prompts.is_select.tolist()
    chosen = {text for text, select in zip(prompts.texts, split, strict=True) if select}
    n_shared = sum(
        t in chosen for t, select in zip(prompts.texts, split, strict=True) if not select
    )
    if n_shared:
        logger.warning("%d test prompts are selection prompts too", n_shared)


Encoders = dict[str, tuple[str, Callable[[Tensor], Tensor]]]


def _encoders(dictionaries: Mapping[str, SAE], hooks: Mapping[str, str], seed: int) -> Encoders:
    """Hook point and `encode` of every dictionary, and of an untrained one of the same shape."""
    encoders: Encoders = {name: (hooks[name], d.encode) for name, d in dictionaries.items()}
    for name, dictionary in dictionaries.items():
        cfg = dictionary.cfg
        k = max(1, min(round(_mean_l0(dictionary)), cfg.d_sae))
        untrained = untrained_encoder(cfg.d_in, cfg.d_sae, k, seed=seed)
        encoders[f"untrained {name}"] = (hooks[name], untrained)
    return encoders


def _mean_l0(dictionary: SAE) -> float:
    """How many features fire on a token: what was asked for, or seen at the end of training."""
    metadata = dictionary.cfg.metadata
    stored = (metadata.diffsae_lens or {}).get("k") or getattr(dictionary.cfg, "k", None)
    return float(stored or metadata.l0 or 32)


def _dictionary_rows(
    pair: HookedModelPair,
    encoders: Encoders,
    trained: Mapping[str, SAE],
    prompts: LabelledPrompts,
    positions: Positions,
) -> tuple[list[_Row], dict[str, dict[str, Tensor]]]:
    """Rows of all encoders, and the pooled views of every hook, from one pass over the prompts."""
    readers: dict[str, Reader] = {}
    for name, (hook, encode) in encoders.items():
        model_hook, view = hook.rsplit(".", 1)
        alone = (lambda x, e=encode: e(torch.cat([x, x], -1))) if view == "concat" else encode
        for prefix, hook_name, reads in (
            ("", hook, encode),
            ("base|", f"{model_hook}.base", alone),
        ):
            readers[prefix + name] = Reader(hook_name=hook_name, positions=positions, encode=reads)
    model_hooks = sorted({hook.rsplit(".", 1)[0] for hook, _ in encoders.values()})
    for hook in model_hooks:
        readers |= {f"{hook}|{v}": r for v, r in view_readers(hook, positions).items()}
    read = read_prompts(pair, prompts.texts, readers)
    rows = [
        _Row(
            name=name,
            kind="dictionary" if name in trained else "untrained dictionary",
            hook_name=hook,
            acts=read[name],
            base_acts=read[f"base|{name}"],
        )
        for name, (hook, _) in encoders.items()
    ]
    views = ("diff", "base", "finetuned")
    return rows, {hook: {v: read[f"{hook}|{v}"] for v in views} for hook in model_hooks}


def _control_rows(
    hook: str, by_view: Mapping[str, Tensor], prompts: LabelledPrompts, controls: Sequence[Control]
) -> list[_Row]:
    evidence = Evidence(
        by_view=by_view,
        is_trigger=prompts.is_trigger,
        is_benign=prompts.is_benign,
        is_select=prompts.is_select,
    )
    return [
        _Row(
            name=control.name,
            kind="control",
            hook_name=f"{hook}.{control.view}",
            acts=control.features(evidence, control.view),
            base_acts=control.features(evidence, "base"),
        )
        for control in controls
    ]


def _text_rows(pair: HookedModelPair, prompts: LabelledPrompts) -> list[_Row]:
    """Rows of the controls that look at outputs or at the text alone."""
    kl = next_token_kl(pair, prompts.texts)
    rows = [_Row(name="next-token KL", kind="control", hook_name="", acts=kl, base_acts=0 * kl)]
    if prompts.trigger_text is not None:
        found = text_match(prompts.texts, prompts.trigger_text)
        name = f"text search for {prompts.trigger_text!r}"
        rows.append(_Row(name=name, kind="control", hook_name="", acts=found, base_acts=found))
    return rows


def _strict(row: _Row, prompts: LabelledPrompts, resampling: Resampling) -> dict[str, Any]:
    result = strict_bis(
        row.acts,
        prompts.is_trigger,
        prompts.is_benign,
        is_select=prompts.is_select,
        base_acts=row.base_acts,
        resampling=resampling,
    )
    return {
        **row.identity,
        "bis": result.bis,
        "low": result.low,
        "high": result.high,
        "ceiling": 1.0,
        "base_bis": result.base_bis,
        "excess": result.excess,
        "excess_low": result.excess_low,
        "auroc": result.auroc,
        "average_precision": result.average_precision,
        "recall_at_1_percent": result.recall_at_1_percent,
        "select_bis": result.select_bis,
        "fpr_benign": result.fpr_benign,
        "pvalue": result.pvalue,
        "feature_idx": result.feature_idx,
    }


def _paper(row: _Row, prompts: LabelledPrompts, resampling: Resampling) -> dict[str, Any]:
    groups = prompts.is_trigger, prompts.is_benign
    result = bis(row.acts, *groups)
    interval = bootstrap_bis(row.acts, *groups, resampling=resampling)
    relabelling = Resampling(n_resamples=5 * resampling.n_resamples, seed=resampling.seed)
    test = permutation_test_bis(row.acts, *groups, resampling=relabelling)
    base = None if row.base_acts is None else bis(row.base_acts, *groups).bis
    return {
        **row.identity,
        "bis": result.bis,
        "low": interval.low,
        "high": interval.high,
        "ceiling": result.ceiling,
        "base_bis": base,
        "precision": result.precision,
        "recall": result.recall,
        "fpr_benign": result.fpr_benign,
        "pvalue": test.pvalue,
        "feature_idx": result.feature_idx,
    }
