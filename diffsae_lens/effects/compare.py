"""What an intervention does, and what else it breaks, in one table beside its controls."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from diffsae_lens._checks import check_count, check_texts
from diffsae_lens._typed import typed
from diffsae_lens.effects.likelihood import (
    IGNORED,
    Likelihoods,
    check_scored,
    encode_completions,
    likelihoods,
    score_completions,
)
from diffsae_lens.effects.rates import (
    AttackRate,
    attack_rate,
    check_generation,
    complete,
)
from diffsae_lens.interventions.side_by_side import (
    Intervene,
    acting_pair,
    check_interventions,
    complete_under,
)
from diffsae_lens.organisms.behaviour import GROUPS, Behaviour, Sample
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.texts import batches_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """What a model wrote after some prompts, and how it rated what it might have written."""

    completions: tuple[str, ...]
    rate: AttackRate
    likelihoods: Likelihoods
    perplexity: Float[Tensor, "prompt"]
    """Of the completions, those whose likelihoods were taken too; see `output_perplexity`."""

    def row(self) -> dict[str, Any]:
        """Return the columns of a table: counts, rates with their Wilson interval, means."""
        return {
            **self.rate.row(),
            "log_odds": self.likelihoods.log_odds.mean().item(),
            "cross_entropy": self.likelihoods.cross_entropy.mean().item(),
            "perplexity": float(np.nanmedian(self.perplexity.numpy())),
        }


def measure_effects(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    n_likelihood: int | None = None,
    completions: Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> Effects:
    """Complete prompts and score them, under whatever interventions are open on the pair.

    Args:
        pair: the two models.
        samples: prompts with both their completions.
        n_likelihood: how many of them are scored under teacher forcing too; all by default.
        behaviour: whose judge and outcomes are used.
        completions: what `complete_under` wrote after them, so that it need not be written again.
        **generate_kwargs: passed to `complete`, such as `max_new_tokens` or `do_sample=True`.

    Returns:
        The completions and what they are worth.

    Raises:
        TypeError: something else in place of samples, completions, a judge or a count, or a judge that
            does not return verdicts.
        ValueError: no samples, prompts that do not fit the context, not as many completions as prompts,
            or `completions` and arguments for making them.
    """
    samples = _check_measured(pair, samples, n_likelihood)
    prompts = [sample.prompt for sample in samples]
    if completions is not None and generate_kwargs:
        raise ValueError(f"{sorted(generate_kwargs)} have no effect on given `completions`")
    if completions is None:
        completions = complete(pair, prompts, **generate_kwargs)
    if len(check_texts("completions", completions)) != len(prompts):
        raise ValueError(
            f"`completions` must be as many as `samples`, got {len(completions)} for {len(prompts)}"
        )
    return Effects(
        completions=tuple(completions),
        rate=attack_rate(prompts, completions, behaviour=behaviour),
        likelihoods=likelihoods(pair, samples[:n_likelihood]),
        perplexity=output_perplexity(pair, prompts[:n_likelihood], completions[:n_likelihood]),
    )


@torch.no_grad()
def output_perplexity(
    pair: HookedModelPair, prompts: Sequence[str], completions: Sequence[str]
) -> Float[Tensor, "prompt"]:
    """Return the perplexity of each completion under the base model; NaN for an empty one.

    A measure of coherence that no intervention touches: the base model runs without hooks.

    Raises:
        TypeError: prompts or completions that are not lists of texts.
        ValueError: not as many completions as prompts, or one beyond the context.
    """
    prompts = check_texts("prompts", prompts, allow_empty=True)
    completions = check_texts("completions", completions, allow_empty=True)
    if len(prompts) != len(completions):
        raise ValueError(
            f"`completions` must be as many as `prompts`, got {len(completions)} for {len(prompts)}"
        )
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


@typed
def compare_interventions(
    pair: HookedModelPair,
    interventions: Mapping[str, Intervene],
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    n_likelihood: int | None = None,
    **generate_kwargs: Any,
) -> pd.DataFrame:
    """Complete the same prompts under every intervention and under none, side by side.

    Each is opened twice for every group: to complete, and to score.

    Args:
        pair: the two models.
        interventions: by name, how to open each. One that yields a pair of its own, as
            `induce_features` does, is measured on that pair.
        samples: of one or more groups.
        n_likelihood: on how many of each group log-odds, cross-entropy and perplexity are measured;
            all by default.
        behaviour: whose judge and outcomes are used.
        **generate_kwargs: passed to `complete_under`.

    Returns:
        A row for each intervention and group, `unmodified` first: `name`, `group`, `n_prompts`, counts
        of each verdict, `attack_rate` with its Wilson interval `low` and `high`, `defence_rate`,
        `log_odds` (nats), `cross_entropy` of the safe completion (nats a token), `perplexity` of the
        output under the base model (median).

    Raises:
        TypeError, ValueError: no samples, an intervention called `unmodified`, as for `complete_under`
            and `measure_effects`, or as the interventions raise.
    """
    samples = _check_measured(pair, samples, n_likelihood)
    check_interventions(interventions)
    check_generation(pair, [sample.prompt for sample in samples], generate_kwargs)
    if "unmodified" in interventions:
        raise ValueError("`interventions` must not hold 'unmodified', which is always measured")
    by_group = {g: [s for s in samples if s.group == g] for g in GROUPS}
    opened: dict[str, Intervene] = {"unmodified": nullcontext, **interventions}
    written = {
        group: complete_under(pair, opened, [s.prompt for s in members], **generate_kwargs)
        for group, members in by_group.items()
        if members
    }
    rows = []
    for name, intervene in opened.items():
        for group, by_name in written.items():
            with intervene() as given:
                effects = measure_effects(
                    acting_pair(pair, given),
                    by_group[group],
                    n_likelihood=n_likelihood,
                    behaviour=behaviour,
                    completions=by_name[name],
                )
            rows.append({"name": name, "group": group, **effects.row()})
    return pd.DataFrame(rows)


def _check_measured(
    pair: HookedModelPair, samples: Sequence[Sample], n_likelihood: int | None
) -> list[Sample]:
    if n_likelihood is not None:
        check_count("n_likelihood", n_likelihood)
    return check_scored(pair, samples)


@torch.no_grad()
@typed
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
        TypeError: interventions that cannot be opened, or `texts` that are not lists of texts by kind.
        ValueError: no interventions, no texts of a kind or one beyond the context, a `batch_size` below
            1, or as the interventions raise.
    """
    check_interventions(interventions)
    batch_size = check_count("batch_size", batch_size)
    if not isinstance(texts, Mapping):
        raise TypeError(
            f"`texts` must map kinds to lists of texts, got {type(texts).__name__}; name the kind"
        )
    if not interventions or not texts:
        raise ValueError("need `interventions`, and `texts` with at least one of each kind")
    texts = {
        kind: pair.tokenise(members, name=f"texts[{kind!r}]") for kind, members in texts.items()
    }
    sums: dict[tuple[str, str], Tensor] = {}
    for kind, members in texts.items():
        for _, chunk in members.batches(batch_size, f"side effects on {kind}"):
            tokens = chunk.tokens.to(pair.device)
            counted = chunk.attended[:, 1:].to(pair.device)
            plain = pair(tokens)[:, :-1][counted].float().log_softmax(-1)
            targets = tokens[:, 1:][counted]
            for name, intervene in interventions.items():
                with intervene() as given:
                    changed = (
                        acting_pair(pair, given)(tokens)[:, :-1][counted].float().log_softmax(-1)
                    )
                found = torch.stack(
                    [
                        kl_div(changed, plain, reduction="sum", log_target=True),
                        nll_loss(changed, targets, reduction="sum"),
                        nll_loss(plain, targets, reduction="sum"),
                        torch.tensor(float(len(targets)), device=targets.device),
                    ]
                )
                sums[name, kind] = sums.get((name, kind), 0) + found.double().cpu()
    rows = []
    for (name, kind), total in sums.items():
        kl, after, before = (total[:3] / total[3]).tolist()
        row = {"name": name, "texts": kind, "n_tokens": int(total[3]), "kl": kl}
        rows.append({**row, "cross_entropy": after, "cross_entropy_unmodified": before})
    return pd.DataFrame(rows)
