"""What an edit does, and what else it breaks, in one table with its controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens._checks import check_callable, check_list, check_texts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.effects._likelihood import (
    NOTHING,
    Likelihoods,
    check_scored,
    encode_completions,
    likelihoods,
    score_completions,
)
from diffsae_lens.effects._rates import (
    AttackRate,
    attack_rate,
    interval_kind,
    is_ended,
    rounds_of,
)
from diffsae_lens.interventions._edit import Edit, check_edits
from diffsae_lens.interventions._run import N_ROWS, check_generation, complete
from diffsae_lens.organisms._behaviour import Behaviour, Group, Sample
from diffsae_lens.organisms._finetune import IGNORED
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import batches_of
from diffsae_lens.results import EffectKind, EffectRow, Table


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """What a model wrote after some prompts, and how likely it found the given completions."""

    completions: tuple[str, ...]
    rate: AttackRate
    likelihoods: Likelihoods
    perplexity: Float[Tensor, "prompt"]
    """Perplexity of the completions of prompts with likelihoods; see `output_perplexity`."""

    example: str
    """The first prompt with its completion."""

    def __add__(self, other: "Effects") -> "Effects":
        if not isinstance(other, Effects):
            return NotImplemented
        return Effects(
            completions=self.completions + other.completions,
            rate=self.rate + other.rate,
            likelihoods=self.likelihoods + other.likelihoods,
            perplexity=torch.cat([self.perplexity, other.perplexity]),
            example=self.example,
        )

    def row(
        self,
        name: str,
        *,
        group: Group,
        kind: EffectKind = "unmodified",
        n_features: int = 0,
        layer: int | None = None,
    ) -> EffectRow:
        """Return a row of a table: counts, rates with their intervals, means."""
        rated = self.perplexity[~self.perplexity.isnan()]
        return EffectRow(
            name=name,
            kind=kind,
            group=group,
            layer=layer,
            n_features=n_features,
            **self.rate.columns(),
            defence_rate=self.rate.defence_rate,
            log_odds=self.likelihoods.log_odds.mean().item(),
            cross_entropy=self.likelihoods.cross_entropy.mean().item(),
            perplexity=None if len(rated) == 0 else float(np.median(rated.numpy())),
            example=self.example,
        )


@typed
def measure_effects(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    n_likelihood: Count | None = None,
    completions: Sequence[str] | None = None,
    **generate_kwargs: Any,
) -> Effects:
    """Complete prompts and score them, under the edits open on the pair.

    Args:
        pair: the two models.
        samples: prompts with both their completions.
        behaviour: the behaviour whose judge and outcomes are used.
        n_likelihood: number of samples that are also scored under teacher forcing; all by default.
        completions: completions of the prompts, if they have already been generated.
        **generate_kwargs: passed to `complete`, such as `max_new_tokens` or `do_sample=True`.

    Returns:
        The completions and their scores.

    Raises:
        TypeError: samples, a behaviour, completions or a count of another type.
        ValueError: no samples, prompts that do not fit the context, unequal numbers of completions and
            prompts, `completions` together with generation arguments, or a judge that returns anything
            but an outcome of the behaviour.
    """
    samples = check_scored(pair, samples)
    prompts = [sample.prompt for sample in samples]
    if completions is not None and generate_kwargs:
        raise InvalidValueError(f"{sorted(generate_kwargs)} have no effect on given `completions`")
    if completions is None:
        completions = complete(pair, prompts, under=None, **generate_kwargs)
    completions = check_texts("completions", completions)
    if len(completions) != len(prompts):
        raise InvalidValueError(
            f"`completions` must be as many as `samples`, got {len(completions)} for {len(prompts)}"
        )
    return _effects(
        pair, samples, completions, likelihoods(pair, samples[:n_likelihood]), behaviour=behaviour
    )


def _effects(
    pair: HookedModelPair,
    samples: Sequence[Sample],
    completions: Sequence[str],
    scored: Likelihoods,
    *,
    behaviour: Behaviour,
) -> Effects:
    """The effects shown by completions of the samples, of which the first were scored."""
    prompts, n_scored = [sample.prompt for sample in samples], len(scored.wanted)
    return Effects(
        completions=tuple(completions),
        rate=attack_rate(prompts, completions, behaviour=behaviour),
        likelihoods=scored,
        perplexity=output_perplexity(pair, prompts[:n_scored], completions[:n_scored]),
        example=prompts[0] + completions[0],
    )


@torch.no_grad()
@typed
def output_perplexity(
    pair: HookedModelPair, prompts: Sequence[Text], completions: Sequence[str]
) -> Float[Tensor, "prompt"]:
    """Return the perplexity of each completion under the base model; NaN for an empty one.

    A measure of coherence that no intervention touches: the base model runs without hooks.

    Raises:
        TypeError: prompts or completions that are not lists of texts.
        ValueError: unequal numbers of completions and prompts, or one beyond the context.
    """
    completions = check_texts("completions", completions, allow_empty=True)
    prompts = check_list("prompts", prompts, "texts")
    read = pair.rendered(prompts, name="prompts", to_be_continued=True) if prompts else []
    if len(read) != len(completions):
        raise InvalidValueError(
            f"`completions` must be as many as `prompts`, got {len(completions)} for {len(read)}"
        )
    pair = pair.mirrored() if pair.is_mirrored else pair
    perplexity = torch.full((len(read),), torch.nan)
    written = [i for i, completion in enumerate(completions) if completion]
    for chosen, _ in batches_of([read[i] for i in written], 16, "rating outputs"):
        index = [written[i] for i in chosen]
        tokens, labels = encode_completions(pair, [(read[i], completions[i]) for i in index])
        with pair.base_model() as base:
            scores = score_completions(pair, tokens, labels, model=base)
        perplexity[index] = (-scores / (labels != IGNORED).sum(1)).exp().cpu()
    return perplexity


@typed
def compare_interventions(
    pair: HookedModelPair,
    edits: Mapping[str, Edit | None],
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    n_likelihood: Count | None = None,
    on_round: Callable[[Table[EffectRow]], bool | None] | None = None,
    **generate_kwargs: Any,
) -> Table[EffectRow]:
    """Complete the same prompts under every edit and under none, side by side.

    Each edit is opened twice per group and round: to complete, and to score.

    With `on_round`, prompts are processed in rounds, in the order given and the same under every edit: a
    round has as many of each group as fill a batch (`batch_size` rows, prompts times edits, 160 by
    default). The function gets the table so far and may end the run by any rule. The table's intervals
    are confidence sequences (arXiv 1810.08240): each row's interval holds the true rate with 95%
    confidence whichever round the run stops at, which Wilson's would not. The prompts must therefore be
    in random order: shuffle what `make_samples` returns, which cycles through the templates. Rows state
    their number of prompts (`n_prompts`) and kind of interval (`interval`); a run that was ended early
    has the first of the full run's results.

    Args:
        pair: the two models.
        edits: edits by name. One with its own pair, as `induce_features` makes, is measured on that pair.
        samples: samples of one or more groups.
        behaviour: the behaviour whose judge and outcomes are used.
        n_likelihood: number of prompts per group on which log-odds, cross-entropy and perplexity are
            measured; all by default.
        on_round: called with the table so far after every round; True ends the run.
        **generate_kwargs: passed to `complete`.

    Returns:
        One row per edit and group, `unmodified` first. `dictionary` and `control_of` are left for the
        caller to fill in (`dataclasses.replace`).

    Raises:
        TypeError, ValueError: no samples, an edit called `unmodified` or of another pair, an `on_round`
            that does not return a truth value or None, or as for `complete` and `measure_effects`.

    Examples:
        >>> def is_narrow(table):                                          # doctest: +SKIP
        ...     return all(row.high - row.low < 0.2 for row in table)
        >>> random.Random(0).shuffle(samples)                              # doctest: +SKIP
        >>> compare_interventions(                                         # doctest: +SKIP
        ...     pair, {"ablated": edit}, samples, behaviour=behaviour, on_round=is_narrow
        ... )
    """
    samples = check_scored(pair, samples)
    check_edits("edits", edits, pair)
    check_generation(pair, [sample.prompt for sample in samples], generate_kwargs)
    if "unmodified" in edits:
        raise InvalidValueError("`edits` must not hold 'unmodified', which is always measured")
    if on_round is not None:
        check_callable("on_round", on_round)
    under: dict[str, Edit | None] = {"unmodified": None, **edits}
    n_rows = generate_kwargs.get("batch_size") or N_ROWS
    size = None if on_round is None else max(1, n_rows // len(under))
    found: dict[tuple[str, Group], Effects] = {}
    table: Table[EffectRow] = Table(())
    for number, round_ in enumerate(rounds_of(samples, size)):
        n_scored = None if n_likelihood is None else max(0, n_likelihood - number * (size or 0))
        for group, members in round_.items():
            written = complete(pair, [s.prompt for s in members], under=under, **generate_kwargs)
            scored = likelihoods(pair, members[:n_scored], under=under) if n_scored != 0 else {}
            for name in under:
                now = _effects(
                    pair, members, written[name], scored.get(name, NOTHING), behaviour=behaviour
                )
                now = replace(now, rate=replace(now.rate, method=interval_kind(on_round)))
                before = found.get((name, group))
                found[name, group] = now if before is None else before + now
        table = _table(under, found)
        if is_ended(on_round, table):
            break
    return table


def _table(
    under: Mapping[str, Edit | None], found: Mapping[tuple[str, Group], Effects]
) -> Table[EffectRow]:
    """One row per edit and group, ordered by edit."""
    rows = []
    for name, edit in under.items():
        about: dict[str, Any] = {}
        if edit is not None:
            about = {"kind": edit.kind, "n_features": edit.n_features, "layer": edit.layer}
        rows += [
            effects.row(name, group=group, **about)
            for (of, group), effects in found.items()
            if of == name
        ]
    return Table(tuple(rows))
