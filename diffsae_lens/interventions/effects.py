"""What an intervention does, and what else it breaks, in one table beside its controls."""

import argparse
import bisect
import calendar
import colorsys
import heapq
import inspect
import random
import shlex
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.evaluation.activations import batches_of, tokenise
from diffsae_lens.interventions.features import ablate_features, add_direction, feature_indices
from diffsae_lens.interventions.likelihood import (
    IGNORED,
    Likelihoods,
    encode_completions,
    likelihoods,
    score_completions,
)
from diffsae_lens.interventions.rates import AttackRate, attack_rate, complete
from diffsae_lens.interventions.scales import ActivationScales
from diffsae_lens.organisms.prompts import GROUPS, Sample
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits, skip_positions

Intervene = Callable[[], AbstractContextManager[Any]]
"""Opens an intervention, such as `lambda: ablate_features(pair, sae, [17])`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """What a model wrote after some prompts, and how it rated what it might have written."""

    completions: tuple[str, ...]
    rate: AttackRate
    likelihoods: Likelihoods

    def row(self) -> dict[str, Any]:
        """Return the columns of a table: counts, rates with their Wilson interval, means."""
        return {
            **self.rate.row(),
            "log_odds": self.likelihoods.log_odds.mean().item(),
            "cross_entropy": self.likelihoods.cross_entropy.mean().item(),
        }


def measure_effects(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    n_likelihood: int | None = None,
    **generate_kwargs: Any,
) -> Effects:
    """Complete prompts and score them, under whatever interventions are open on the pair.

    Args:
        pair: the two models.
        samples: prompts with both their completions.
        n_likelihood: how many of them are scored under teacher forcing too; all by default.
        **generate_kwargs: passed to `complete`, such as `max_new_tokens` or `do_sample=True`.

    Returns:
        The completions and what they are worth.

    Raises:
        ValueError: no samples, or prompts that do not fit the context.
    """
    prompts = [sample.prompt for sample in samples]
    completions = complete(pair, prompts, **generate_kwargs)
    return Effects(
        completions=tuple(completions),
        rate=attack_rate(prompts, completions),
        likelihoods=likelihoods(pair, samples[:n_likelihood]),
    )


@torch.no_grad()
def output_perplexity(
    pair: HookedModelPair, prompts: Sequence[str], completions: Sequence[str]
) -> Float[Tensor, "prompt"]:
    """Return the perplexity of each completion under the base model; NaN for an empty one.

    A measure of coherence that no intervention touches: the base model runs without hooks.
    """
    pair = pair.mirrored() if pair.is_mirrored else pair
    perplexity = torch.full((len(prompts),), torch.nan)
    written = [i for i, completion in enumerate(completions) if completion]
    for chosen, _ in batches_of([prompts[i] for i in written], 16, "rating outputs"):
        index = [written[i] for i in chosen]
        tokens, labels = encode_completions(pair, [(prompts[i], completions[i]) for i in index])
        with pair.base_model() as base:
            scores = score_completions(pair, tokens, labels, model=base)
        perplexity[index] = (-scores / (labels != IGNORED).sum(1)).exp().cpu()
    return perplexity


def compare_interventions(
    pair: HookedModelPair,
    interventions: Mapping[str, Intervene],
    samples: Sequence[Sample],
    *,
    n_likelihood: int | None = None,
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Complete the same prompts under every intervention and under none.

    Args:
        pair: the two models.
        interventions: by name, how to open each. One that yields a pair of its own, as
            `induce_features` does, is measured on that pair.
        samples: of one or more groups.
        n_likelihood: on how many of each group log-odds, cross-entropy and perplexity are measured;
            all by default.
        **generate_kwargs: passed to `complete`.

    Returns:
        A row for each intervention and group, `unmodified` first: `name`, `group`, `n_prompts`, counts
        of each verdict, `attack_rate` with its Wilson interval `low` and `high`, `defence_rate`,
        `log_odds` (nats), `cross_entropy` of the safe completion (nats a token), `perplexity` of the
        output under the base model (median).

    Raises:
        ValueError: no samples, an intervention called `unmodified`, or as the interventions raise.
    """
    if "unmodified" in interventions:
        raise ValueError("`interventions` must not hold 'unmodified', which is always measured")
    by_group = {g: [s for s in samples if s.group == g] for g in GROUPS}
    opened: dict[str, Intervene] = {"unmodified": nullcontext, **interventions}
    rows = []
    for name, intervene in opened.items():
        for group, members in by_group.items():
            if members:
                with intervene() as given:
                    acting = given if isinstance(given, HookedModelPair) else pair
                    effects = measure_effects(
                        acting, members, n_likelihood=n_likelihood, **generate_kwargs
                    )
                prompts = [sample.prompt for sample in members[:n_likelihood]]
                perplexity = output_perplexity(pair, prompts, effects.completions[:n_likelihood])
                rows.append(
                    {
                        "name": name,
                        "group": group,
                        **effects.row(),
                        "perplexity": float(np.nanmedian(perplexity.numpy())),
                    }
                )
    if not rows:
        raise ValueError("`samples` is empty")
    return pd.DataFrame(rows)


@torch.no_grad()
def side_effects(
    pair: HookedModelPair,
    interventions: Mapping[str, Intervene],
    texts: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 4,
) -> pd.DataFrame:
    """Measure what interventions do to texts they should leave alone.

    Args:
        pair: the two models.
        interventions: by name, how to open each.
        texts: by kind, such as benign prompts with their safe completions, or `ordinary_texts()`.
        batch_size: texts a forward pass; some five times the logits of one pass are held.

    Returns:
        A row for each intervention and kind: `name`, `texts`, `n_tokens`, `kl` (KL(unmodified ||
        modified), nats a token), `cross_entropy` of the text and `cross_entropy_unmodified` (nats a
        token).

    Raises:
        ValueError: no interventions, no texts of a kind, or as the interventions raise.
    """
    if not interventions or not texts or not all(texts.values()):
        raise ValueError("need `interventions`, and `texts` with at least one of each kind")
    sums: dict[tuple[str, str], Tensor] = {}
    for kind, members in texts.items():
        for _, chunk in batches_of(members, batch_size, f"side effects on {kind}"):
            tokens, attended, _ = tokenise(pair, chunk)
            tokens, counted = tokens.to(pair.device), attended[:, 1:].to(pair.device)
            plain = pair(tokens)[:, :-1].float().log_softmax(-1)
            for name, intervene in interventions.items():
                with intervene() as given:
                    acting = given if isinstance(given, HookedModelPair) else pair
                    changed = acting(tokens)[:, :-1].float().log_softmax(-1)
                kl = (plain.exp() * (plain - changed)).sum(-1)
                found = [kl, *(_surprise(p, tokens) for p in (changed, plain))]
                added = torch.stack(
                    [x[counted].sum() for x in found] + [counted.float().sum()]
                ).cpu()
                sums[name, kind] = sums.get((name, kind), 0) + added.double()
    rows = [
        {
            "name": name,
            "texts": kind,
            "n_tokens": int(total[3]),
            **dict(
                zip(
                    ("kl", "cross_entropy", "cross_entropy_unmodified"),
                    (total[:3] / total[3]).tolist(),
                    strict=True,
                )
            ),
        }
        for (name, kind), total in sums.items()
    ]
    return pd.DataFrame(rows)


def _surprise(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return -log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def ordinary_texts(n_characters: int = 800) -> dict[str, list[str]]:
    """Return ordinary code and prose: sources and docstrings of the standard library.

    Args:
        n_characters: of each text.

    >>> {kind: len(texts) for kind, texts in ordinary_texts().items()}
    {'code': 6, 'prose': 4}
    """
    sources = map(inspect.getsource, (bisect, calendar, colorsys, heapq, shlex, textwrap))
    described = (argparse, heapq, random, statistics)
    return {
        "code": [source[source.index("\ndef ") :].strip()[:n_characters] for source in sources],
        "prose": [(inspect.getdoc(module) or "")[:n_characters] for module in described],
    }


def ablation_curve(
    pair: HookedModelPair,
    dictionary: SAE,
    orders: Mapping[str, Sequence[int]],
    samples: Sequence[Sample],
    *,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Measure the attack rate against the number of features ablated, for several orders of them.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        orders: by name, features in the order they are taken: by attribution, at random, ...
        samples: of one or more groups.
        counts: how many are ablated; none is measured too.
        **generate_kwargs: passed to `compare_interventions`.

    Returns:
        A row for each order, number and group, with the columns of `compare_interventions`, `order`
        and `n_features` in place of `name`. `curve_area` sums it up.

    Raises:
        ValueError: counts below 1 or beyond the shortest order, or no samples.
    """
    shortest = min((len(order) for order in orders.values()), default=0)
    if not counts or min(counts) < 1 or max(counts) > shortest:
        raise ValueError(
            f"`counts` must lie between 1 and the {shortest} features of the shortest of `orders`, "
            f"got {list(counts)}"
        )
    tried = {f"{name}, {n}": (name, n) for name in orders for n in counts}
    opened = {
        key: partial(ablate_features, pair, dictionary, orders[name][:n])
        for key, (name, n) in tried.items()
    }
    frame = compare_interventions(pair, opened, samples, **generate_kwargs)
    plain = frame[frame.name == "unmodified"]
    parts = []
    for name in orders:
        parts.append(plain.assign(order=name, n_features=0))
        for n in counts:
            parts.append(frame[frame.name == f"{name}, {n}"].assign(order=name, n_features=n))
    curve = pd.concat(parts, ignore_index=True)
    return curve.loc[:, ["order", "n_features", *plain.columns.drop("name")]]


def curve_area(curve: pd.DataFrame, *, group: str = "trigger") -> pd.Series:
    """Return the mean attack rate under each order's curve, 0 to 1: low where few features suffice.

    The area by trapezoids over the number of features, divided by the greatest number.
    """
    areas = {}
    for order, rows in curve.loc[curve.group == group].groupby("order", sort=False):
        rows = rows.sort_values(by="n_features")
        areas[order] = np.trapezoid(rows.attack_rate, rows.n_features) / rows.n_features.max()
    return pd.Series(areas, name="area", dtype=float)


def dose_response(
    pair: HookedModelPair,
    dictionary: SAE,
    features: Sequence[int],
    samples: Sequence[Sample],
    *,
    scales: ActivationScales,
    doses: Sequence[int | float] = (0.5, 1, 2, 4),
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Steer with features at several strengths, and with a random direction as long.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: steered with together.
        samples: prompts to be completed, such as benign ones.
        scales: of prompts on which the features fire; see `activation_scales`.
        doses: in units of each feature's own maximum.
        **generate_kwargs: passed to `compare_interventions`.

    Returns:
        A row for each dose and group, with the columns of `compare_interventions`, `direction`
        (`features` or `random`) and `dose` in place of `name`.

    Raises:
        ValueError: features that never fired in `scales`, or as for `steer`.
    """
    index = feature_indices(dictionary, features, d_written=pair.cfg.d_model)
    maximum = scales.maximum[index.cpu()]
    if not len(index) or not maximum.all():
        raise ValueError(
            "`features` must name some that fire on the prompts of `scales`, or their maximum is no "
            f"unit, got {list(features)}"
        )
    written = maximum.to(dictionary.W_dec) @ dictionary.W_dec[index]
    written = written[-pair.cfg.d_model :].detach()  # of a crosscoder, the fine-tuned half
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(written), generator=generator).to(written)
    hook_name = check_fits(pair, dictionary).rpartition(".")[0] + ".finetuned"
    skip = skip_positions(dictionary)
    opened: dict[str, Intervene] = {}
    for dose in doses:
        for name, vector in (
            ("features", written),
            ("random", noise * written.norm() / noise.norm()),
        ):
            opened[f"{name}|{dose}"] = partial(
                add_direction, pair, hook_name, dose * vector, skip_positions=skip
            )
    frame = compare_interventions(pair, opened, samples, **generate_kwargs)
    named = frame.name.where(frame.name != "unmodified", "features|0").str.split("|", expand=True)
    frame = frame.drop(columns="name")
    frame.insert(0, "direction", named[0])
    frame.insert(1, "dose", named[1].astype(float))
    return frame
