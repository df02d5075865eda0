"""One call: every dictionary and every control through the same protocol, in one table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_choice
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries.fits import check_fits
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.isolation.controls import (
    Control,
    Evidence,
    next_token_kl,
    standard_controls,
    text_match,
    untrained_encoder,
    view_readers,
)
from diffsae_lens.isolation.labels import LabelledPrompts, check_scorable, warn_of_overlap
from diffsae_lens.isolation.table import IsolationTable, Protocol, judge
from diffsae_lens.measures.bis import bis
from diffsae_lens.measures.resampling import Resampling, bootstrap_bis, permutation_test_bis
from diffsae_lens.measures.strict import strict_bis
from diffsae_lens.pair.hook import VirtualHook
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.tokens import TokenPolicy
from diffsae_lens.pair.views import View
from diffsae_lens.reading.prompts import Positions, Reader, read_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """Something to score: features on the pair, and the same on the base model alone."""

    name: str
    kind: str
    hook_name: str
    seed: int | None = None
    acts: Float[Tensor, "prompt n_features"]
    base_acts: Float[Tensor, "prompt n_base_features"] | None

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that say what the row is."""
        return {
            "name": self.name,
            "kind": self.kind,
            "seed": self.seed,
            "hook_name": self.hook_name,
            "n_features": self.acts.shape[1],
        }


@typed
def evaluate_isolation(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE | Sequence[SAE]],
    prompts: LabelledPrompts,
    *,
    protocol: Protocol = "strict",
    resampling: Resampling | None = None,
    null_pairs: Mapping[str, HookedModelPair] | None = None,
) -> IsolationTable:
    """Score dictionaries and controls by one protocol, each beside the base model's own score.

    `paper`: the BIS of arXiv 2605.07324 over all prompts, tokens averaged, with its ceiling, an
    interval that repeats the selection, and a p-value over all features. `strict`: `strict_bis` at
    the last token (unless the prompts say otherwise), with its ceiling of 1.

    Controls: for every shape, sparsity and seed an untrained dictionary; every dictionary itself on the
    `null_pairs`; for every hook random directions, difference of means, principal components of the
    difference, a linear probe on the fine-tuned activations; once, a search for the trigger's text
    and the next token's KL between the models. A plain SAE on `.finetuned` and a dictionary trained
    with `frozen_decoder` are dictionaries like others.

    On the base model alone a Diff-SAE's features read the base's activation, a crosscoder's read it
    for both models.

    Args:
        pair: the two models.
        dictionaries: by name, each of one of the pair's hook points; several training seeds of one
            recipe as a list (see `IsolationTable.over_seeds`).
        prompts: with their groups, splits and positions.
        protocol: which one.
        resampling: 200 resamples by default, without clusters: those are the prompts' own. Its seed is
            the random controls' too. The paper's p-value takes five times as many permutations of the
            labels, across clusters.
        null_pairs: pairs with nothing to find, by name, with the same hooks: base against base, a
            clean fine-tune.

    Returns:
        The table, dictionaries first.

    On every model a dictionary's row leaves out the tokens that it was not trained on, and so do the
    controls at its hook.

    Raises:
        TypeError: something else in place of dictionaries or prompts.
        ValueError: no dictionaries, another pair's, an unknown protocol, prompts without one of the
            groups or beyond the context, or clusters other than the prompts'.
    """
    check_choice("protocol", protocol, get_args(Protocol))
    entries = _entries(pair, dictionaries)
    check_scorable(pair, prompts, resampling, strict=protocol == "strict")
    for name, null_pair in (null_pairs or {}).items():
        _check_null_pair(name, null_pair, entries)
    warn_of_overlap(prompts)
    if prompts.positions is None:
        pooling = "last" if protocol == "strict" else "mean"
        prompts = replace(prompts, positions=Positions(pooling=pooling))
    resampling = resampling or Resampling(n_resamples=200)
    resampling = replace(resampling, clusters=prompts.clusters)
    shapes: dict[tuple[Any, ...], _Entry] = {}
    for entry in entries:
        shapes.setdefault((entry.hook.name, entry.d_sae, entry.k, entry.seed), entry)
    untrained = [entry.untrained(resampling.seed) for entry in shapes.values()]
    rows, views = _encoded_rows(pair, [*entries, *untrained], prompts)
    for name, null_pair in (null_pairs or {}).items():
        theirs = [replace(e, name=f"{e.name} on {name}", kind="null pair") for e in entries]
        rows += _encoded_rows(null_pair, theirs, prompts)[0]
    controls = standard_controls(n_directions=max(e.d_sae for e in entries), seed=resampling.seed)
    for hook, by_view in views.items():
        rows += _control_rows(hook, by_view, prompts, controls)
    rows += _text_rows(pair, prompts)
    score = _strict if protocol == "strict" else _paper
    records = [score(row, prompts, resampling) for row in rows]
    judge(records, protocol)
    resampled = torch.stack([record.pop("distribution") for record in records])
    frame = pd.DataFrame(records).astype({"seed": "Int64"})  # with rows that have none
    return IsolationTable(
        frame=frame, protocol=protocol, n_prompts=len(prompts.texts), resampled=resampled,
        resampling=resampling,
    )  # fmt: skip


def _check_null_pair(name: str, null_pair: HookedModelPair, entries: Sequence["_Entry"]) -> None:
    for entry in entries:
        if entry.hook.name not in null_pair.hook_dict:
            raise ValueError(
                f"`null_pairs[{name!r}]` has no hook point {entry.hook.name}, which {entry.name!r} "
                f"reads; it has {sorted(null_pair.hook_dict)}, build it with the pair's hooks"
            )
        if null_pair.d_in(entry.hook.name) != entry.d_in:
            raise ValueError(
                f"`null_pairs[{name!r}]` is {null_pair.d_in(entry.hook.name)} wide at "
                f"{entry.hook.name}, {entry.name!r} reads {entry.d_in}; give a pair of the same models"
            )


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A dictionary, trained or not, and what its row is called."""

    name: str
    kind: str
    hook: VirtualHook
    seed: int | None
    d_in: int
    d_sae: int
    k: int
    encode: Callable[[Tensor], Tensor]
    policy: TokenPolicy

    def untrained(self, seed: int) -> "_Entry":
        """One of the same shape and sparsity that nobody trained."""
        encode = untrained_encoder(self.d_in, self.d_sae, self.k, seed=seed + (self.seed or 0))
        return replace(
            self, name=f"untrained {self.name}", kind="untrained dictionary", encode=encode
        )


def _entries(
    pair: HookedModelPair, dictionaries: Mapping[str, SAE | Sequence[SAE]]
) -> list[_Entry]:
    if not isinstance(dictionaries, Mapping):
        raise TypeError(
            f"`dictionaries` must be a mapping of names, got {type(dictionaries).__name__}; name each"
        )
    entries = []
    for name, given in dictionaries.items():
        trained = [given] if isinstance(given, SAE) else list(given)
        for i, dictionary in enumerate(trained):
            cfg, record = dictionary.cfg, DictionaryRecord.of(dictionary)
            seed = i if record.seed is None and len(trained) > 1 else record.seed
            entries.append(
                _Entry(
                    name=name,
                    kind="dictionary",
                    hook=check_fits(pair, dictionary),
                    seed=seed,
                    d_in=cfg.d_in,
                    d_sae=cfg.d_sae,
                    k=max(1, min(round(float(record.k or record.l0 or 32)), cfg.d_sae)),
                    encode=dictionary.encode,
                    policy=record.tokens,
                )
            )
    if not entries:
        raise ValueError("`dictionaries` is empty: name at least one")
    return entries


def _encoded_rows(
    pair: HookedModelPair, entries: Sequence[_Entry], prompts: LabelledPrompts
) -> tuple[list[_Row], dict[str, dict[str, Tensor]]]:
    """Rows of all entries, and the pooled views of every hook, from one pass over the prompts."""
    positions = prompts.positions or Positions()
    readers: dict[str, Reader] = {}
    for i, entry in enumerate(entries):
        hook, encode = entry.hook, entry.encode

        def alone(x: Tensor, e: Callable = encode, view: View = hook.spec) -> Tensor:
            return e(view.of_base(x))

        for prefix, read_from, reads in (
            ("", hook, encode),
            ("base|", hook.with_view("base"), alone),
        ):
            readers[f"{prefix}{i}"] = Reader(
                hook_name=read_from.name, positions=positions, encode=reads, policy=entry.policy
            )
    sites = sorted({entry.hook.site for entry in entries})
    for site in sites:
        policy = TokenPolicy.all_of(e.policy for e in entries if e.hook.site == site)
        readers |= {f"{site}|{v}": r for v, r in view_readers(site, positions, policy).items()}
    read = read_prompts(pair, prompts.texts, readers)
    rows = [
        _Row(
            name=entry.name,
            kind=entry.kind,
            hook_name=entry.hook.name,
            seed=entry.seed,
            acts=read[str(i)],
            base_acts=read[f"base|{i}"],
        )
        for i, entry in enumerate(entries)
    ]
    views = ("diff", "base", "finetuned")
    return rows, {site: {v: read[f"{site}|{v}"] for v in views} for site in sites}


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
            hook_name=VirtualHook(hook, control.view).name,
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
        "distribution": result.distribution,
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
        "distribution": interval.distribution,
    }
