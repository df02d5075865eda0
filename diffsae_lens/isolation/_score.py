"""The only scorer: it scores every dictionary and every control by the same protocol, in one table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_choice, check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_fits
from diffsae_lens.isolation._labels import LabelledPrompts, Labels, check_scorable, warn_of_overlap
from diffsae_lens.isolation._sources import (
    Candidate,
    Encoder,
    PromptSource,
    encoders_of,
    read_encoded,
)
from diffsae_lens.isolation._table import IsolationTable, judged
from diffsae_lens.measures._bis import BisResult, bis
from diffsae_lens.measures._resampling import Resampling, bootstrap_bis, permutation_test_bis
from diffsae_lens.measures._strict import StrictBisResult, strict_bis
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.reading._prompts import Positions
from diffsae_lens.results import Protocol, ScoreRow

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
_POOLINGS = {"strict": Positions(pooling="last"), "paper": Positions(pooling="mean")}

Scored = tuple[ScoreRow, Float[Tensor, "resample"]]
"""A row, and its score on every resample."""


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
    """Score dictionaries and controls by one protocol.

    `paper`: the BIS of arXiv 2605.07324 over all prompts, tokens averaged, with its ceiling, an
    interval that repeats the selection, and a p-value over all features. `strict`: `strict_bis` at
    the last token (unless the prompts say otherwise), with its ceiling of 1.

    Controls: an untrained dictionary for every shape, sparsity and seed; every dictionary itself on the
    `null_pairs`; for every hook point random directions, difference of means, principal components of
    the difference and a linear probe on the fine-tuned activations; once per table, a search for the
    trigger's text and the next-token KL between the models. A plain SAE on `.finetuned` and a dictionary
    trained with `frozen_decoder` count as ordinary dictionaries.

    On the base model alone, a Diff-SAE's features read the base's activation, and a crosscoder's features
    read it in place of both models'.

    Args:
        pair: the two models.
        dictionaries: dictionaries by name, each on one of the pair's hook points; several training seeds
            of one recipe as a list (see `IsolationTable.over_seeds`).
        prompts: prompts with their groups, splits and positions.
        protocol: the protocol to score by.
        resampling: 200 resamples by default, without clusters, since the prompts have their own. The
            random controls share its seed. The paper's p-value takes five times as many permutations of
            the labels, across clusters.
        null_pairs: pairs with nothing to find, by name, with the same hook points: base against base, a
            clean fine-tune.

    Returns:
        The table, dictionaries first.

    On every model, a dictionary's row and the controls at its hook point leave out the tokens that the
    dictionary was not trained on.

    Raises:
        TypeError: dictionaries or prompts of another type.
        ValueError: no dictionaries, a dictionary of another pair, an unknown protocol, prompts without
            one of the groups or beyond the context, or clusters other than the prompts'.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    [table] = evaluate_protocols(
        pair, dictionaries, prompts, protocols=[protocol], resampling=resampling,
        null_pairs=null_pairs,
    )  # fmt: skip
    return table


def evaluate_protocols(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE | Sequence[SAE]],
    prompts: LabelledPrompts,
    *,
    protocols: Sequence[Protocol],
    resampling: Resampling | None = None,
    null_pairs: Mapping[str, HookedModelPair] | None = None,
) -> list[IsolationTable]:
    """Score by several protocols in a single pass over the prompts; see `evaluate_isolation`.

    Returns:
        One table per protocol.
    """
    encoders = [e for _, e in encoders_of(dictionaries, partial(check_fits, pair))]
    check_scorable(pair, prompts, resampling, strict="strict" in protocols)
    for name, null_pair in (null_pairs or {}).items():
        _check_null_pair(name, null_pair, encoders)
    warn_of_overlap(prompts)
    resampling = resampling or Resampling(n_resamples=200)
    poolings = {p: prompts.positions or _POOLINGS[p] for p in protocols}
    source = PromptSource(pair=pair, prompts=prompts, encoders=encoders, seed=resampling.seed)
    candidates = source.candidates(poolings)
    for name, null_pair in (null_pairs or {}).items():
        theirs = [e.on_null_pair(name) for e in encoders]
        for protocol, (coded, _) in read_encoded(null_pair, prompts, theirs, poolings).items():
            candidates[protocol] += coded
    return [score(candidates[p], prompts.labels, p, resampling) for p in protocols]


def score(
    candidates: Iterable[Candidate], labels: Labels, protocol: Protocol, resampling: Resampling
) -> IsolationTable:
    """Score candidates one at a time, so that they need not all be in memory.

    Args:
        candidates: dictionaries and controls, read on the same texts.
        labels: labels of these texts.
        protocol: the protocol to score by.
        resampling: number of resamples and their seed; the labels say which texts are drawn together.

    Returns:
        The table, dictionaries first, then untrained ones, null pairs and controls.
    """
    score_one = _strict if protocol == "strict" else _paper
    scored = [score_one(candidate, labels, resampling) for candidate in candidates]
    kinds = ("dictionary", "untrained dictionary", "null pair", "control")
    scored.sort(key=lambda s: kinds.index(s[0].kind))
    return IsolationTable(
        rows=judged([row for row, _ in scored]),
        protocol=protocol,
        n_prompts=len(labels.is_trigger),
        resampled=torch.stack([resampled for _, resampled in scored]),
        resampling=replace(resampling, clusters=labels.clusters),
    )


def _check_null_pair(name: str, null_pair: HookedModelPair, encoders: Sequence[Encoder]) -> None:
    check_items("null_pairs", [null_pair], HookedModelPair)
    for e in encoders:
        if e.hook.name not in null_pair.hook_dict:
            raise InvalidValueError(
                f"`null_pairs[{name!r}]` has no hook point {e.hook.name}, which {e.dictionary!r} "
                f"reads; it has {sorted(null_pair.hook_dict)}, build it with the pair's hooks"
            )
        if null_pair.d_in(e.hook.name) != e.d_in:
            raise InvalidValueError(
                f"`null_pairs[{name!r}]` is {null_pair.d_in(e.hook.name)} wide at "
                f"{e.hook.name}, {e.dictionary!r} reads {e.d_in}; give a pair of the same models"
            )


def _strict(candidate: Candidate, labels: Labels, resampling: Resampling) -> Scored:
    found = strict_bis(
        candidate.acts,
        labels.is_trigger,
        labels.is_benign,
        is_select=labels.is_select,
        base_acts=candidate.base_acts,
        resampling=replace(resampling, clusters=labels.clusters),
    )
    row = ScoreRow(
        **candidate.identity,
        **_columns(found),
        protocol="strict",
        ceiling=1.0,
        excess=found.excess,
    )
    return row, cast("Tensor", found.distribution)  # there is one, since it was resampled


def _paper(candidate: Candidate, labels: Labels, resampling: Resampling) -> Scored:
    groups = labels.is_trigger, labels.is_benign
    found = bis(candidate.acts, *groups)
    row = ScoreRow(
        **candidate.identity,
        **_columns(found),
        protocol="paper",
        low=None,
        high=None,
        base_bis=bis(candidate.base_acts, *groups).bis,
        pvalue=None,
        l0=(candidate.acts > 0).float().sum(1).mean().item(),
    )
    if candidate.is_fitted and labels.is_select.all():
        # Scored on the same labels it was fitted on, so no interval or p-value is valid.
        return row, torch.full((resampling.n_resamples,), torch.nan, dtype=torch.double)
    drawn = bootstrap_bis(
        candidate.acts, *groups, resampling=replace(resampling, clusters=labels.clusters)
    )
    relabelling = Resampling(
        n_resamples=5 * resampling.n_resamples, seed=resampling.seed, clusters=labels.scenes
    )
    row = replace(
        row,
        low=drawn.low,
        high=drawn.high,
        pvalue=permutation_test_bis(candidate.acts, *groups, resampling=relabelling).pvalue,
    )
    if labels.templates is not None:
        whole = replace(resampling, clusters=labels.templates)
        of_templates = bootstrap_bis(candidate.acts, *groups, resampling=whole)
        row = replace(row, template_low=of_templates.low, template_high=of_templates.high)
    return row, drawn.distribution


def _columns(found: StrictBisResult | BisResult) -> dict[str, Any]:
    """The measured values that rows have a column for."""
    columns = {field.name for field in fields(ScoreRow)}
    return {f.name: getattr(found, f.name) for f in fields(found) if f.name in columns}
