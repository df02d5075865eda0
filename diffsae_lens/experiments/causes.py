"""What features cause: the demo's interventions on the organism, beside their controls."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.evaluation.activations import Positions, feature_activations
from diffsae_lens.experiments.store import once
from diffsae_lens.interventions.directions import swap_to_base
from diffsae_lens.interventions.effects import measure_effects
from diffsae_lens.interventions.features import ablate_features, steer
from diffsae_lens.interventions.likelihood import attribute_features
from diffsae_lens.organisms.prompts import Sample
from diffsae_lens.pair import HookedModelPair

if TYPE_CHECKING:
    from diffsae_lens.experiments.demo import DemoConfig


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One intervention and the prompts it is measured on."""

    name: str
    """What the row is called."""
    dictionary: str | None
    """Whose features; None for interventions without a dictionary."""
    features: tuple[int, ...] = ()
    """Ablated, or steered with."""
    strengths: tuple[float, ...] = ()
    """Feature activations added; empty for ablation."""
    group: str = "trigger"
    """The prompts that are completed."""

    @property
    def key(self) -> str:
        """A file name for the condition's result."""
        parts = (self.name, self.dictionary, len(self.features), self.group)
        return "_".join(str(part).replace(" ", "-") for part in parts if part is not None)


def causal_table(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    config: "DemoConfig",
    cells: Path,
) -> list[dict[str, Any]]:
    """Complete held-out prompts under every intervention and its control, and judge them.

    Features are ordered by gradient attribution on the `select` split, acted on in the `test`
    split. Controls are as many random features that fire on the same prompts.

    Args:
        pair: the two models.
        dictionaries: by name.
        config: how many prompts and features.
        cells: folder where each intervention's row is kept, so that an interrupted table goes on.

    Returns:
        One row an intervention: `name`, `dictionary`, `n_features`, `group`, `n_prompts`, counts of
        each verdict, `attack_rate` with its Wilson interval `low` and `high`, `log_odds` (mean,
        nats), and `cross_entropy` of the safe completion (mean, nats a token).
    """
    n = config.n_generation_prompts
    test = config.samples("test", 2 * n, by=(1, 1, 0))
    by_group = {g: [s for s in test if s.group == g] for g in ("trigger", "benign")}
    last = {name: d for name, d in dictionaries.items() if name.endswith(f"-{config.layers[-1]}")}
    ranked = {
        name: once(cells / f"ranking_{name}.json", lambda d=d: _rank(pair, d, config))
        for name, d in last.items()
    }
    rows = []
    for condition in _conditions(ranked, config):
        rows.append(
            once(
                cells / f"{condition.key}.json",
                lambda c=condition: _measure(pair, last, config, c, by_group),
            )
        )
    return rows


def _rank(pair: HookedModelPair, dictionary: SAE, config: "DemoConfig") -> dict[str, Any]:
    """The features in order of effect, which of them fire, and how strongly on triggers."""
    samples = config.samples("select", 16, by=(1, 0, 0))
    attribution = attribute_features(pair, dictionary, samples)
    strongest = feature_activations(
        pair, dictionary, [s.prompt for s in samples], positions=Positions(pooling="max")
    )
    live = (strongest > 0).any(0)
    order = attribution.masked_fill(~live, -torch.inf).argsort(descending=True)
    n_live = int(live.sum())
    generator = torch.Generator().manual_seed(config.seed)
    shuffled = order[:n_live][torch.randperm(n_live, generator=generator)]
    return {
        "order": order[:n_live].tolist(),
        "random": shuffled.tolist(),
        "attribution": attribution[order[:n_live]].tolist(),
        "strongest_mean": _plain(strongest.mean(0)),
    }


def _plain(values: Tensor) -> list[float]:
    return [round(v, 4) for v in values.tolist()]


def _conditions(
    ranked: Mapping[str, Mapping[str, Any]], config: "DemoConfig"
) -> Iterator[Condition]:
    yield Condition(name="unmodified", dictionary=None)
    yield Condition(name="base activation put back", dictionary=None)
    yield Condition(name="unmodified", dictionary=None, group="benign")
    for name, rank in ranked.items():
        counts = sorted({min(n, len(rank["order"])) for n in config.feature_counts})
        for n_features in counts:
            for which, order in (("top", rank["order"]), ("random", rank["random"])):
                yield Condition(
                    name=f"{which} features ablated",
                    dictionary=name,
                    features=tuple(order[:n_features]),
                )
        most = counts[-1]
        yield Condition(
            name="top features ablated",
            dictionary=name,
            features=tuple(rank["order"][:most]),
            group="benign",
        )
        for which, order in (("top", rank["order"]), ("random", rank["random"])):
            features = tuple(order[: counts[0]])
            yield Condition(
                name=f"steered with {which} features",
                dictionary=name,
                features=features,
                strengths=tuple(rank["strongest_mean"][i] for i in features),
                group="benign",
            )


def _intervene(
    pair: HookedModelPair, dictionaries: Mapping[str, SAE], config: "DemoConfig", c: Condition
) -> AbstractContextManager[Any]:
    if c.name == "unmodified":
        return nullcontext()
    if c.dictionary is None:
        return swap_to_base(pair, config.hook_names[-1])
    dictionary = dictionaries[c.dictionary]
    if c.strengths:
        return steer(pair, dictionary, c.features, strength=c.strengths)
    return ablate_features(pair, dictionary, c.features)


def _measure(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    config: "DemoConfig",
    condition: Condition,
    by_group: Mapping[str, Sequence[Sample]],
) -> dict[str, Any]:
    samples = by_group[condition.group]
    with _intervene(pair, dictionaries, config, condition):
        effects = measure_effects(pair, samples, n_likelihood=config.n_likelihood_prompts)
    return {
        "name": condition.name,
        "dictionary": condition.dictionary,
        "n_features": len(condition.features),
        "group": condition.group,
        **effects.row(),
        "example": samples[0].prompt + effects.completions[0],
    }
