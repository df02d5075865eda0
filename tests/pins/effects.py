"""What interventions write, break and move: the causal areas of the pinned results."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sae_lens import SAE

from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._ablation import ablation_effects
from diffsae_lens.effects._attribution import attribute_features, greedy_order
from diffsae_lens.effects._compare import (
    compare_interventions,
    output_perplexity,
)
from diffsae_lens.effects._curves import (
    ablation_curve,
    curve_area,
    dose_response,
    steering_pair,
)
from diffsae_lens.effects._likelihood import likelihoods, log_odds
from diffsae_lens.effects._minimal import Bounds, minimal_feature_set
from diffsae_lens.effects._scales import activation_scales, matched_features
from diffsae_lens.effects._side_effects import side_effects
from diffsae_lens.effects._sweep import sweep_features, sweep_trigger
from diffsae_lens.interventions._directions import (
    add_direction,
    control_directions,
    project_out,
    swap_to_base,
)
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.interventions._features import (
    ablate_features,
    clamp_features,
    induce_features,
    keep_only_features,
    steer,
)
from diffsae_lens.interventions._run import complete
from diffsae_lens.organisms._behaviour import Behaviour
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.results import Row, Table
from tests.conftest import D_MODEL, running
from tests.pins.setup import HOOK, Setup
from tests.pins.values import plain, rows, summary

PROMPTS = ["in 2024", "a longer prompt", "in 2023", "xy"]
TEXTS = {"code": ["def f(x): return x", "a = 1"], "prose": ["The year was long."]}
N_NEW = 6
BRIEFLY = ("ablated", "held at the mean", "clamped", "steered", "only kept", "induced")
"""Interventions with the second dictionary, which take its other path."""


def by_letters(prompt: str, completion: str) -> str:
    """A judge that any change of a completion may turn."""
    outcomes = YEAR_TRIGGER.outcomes
    return outcomes[sum(map(ord, prompt[:1] + completion)) % len(outcomes)]


LETTERS = Behaviour(name="letters", judge=by_letters, outcomes=YEAR_TRIGGER.outcomes)

NOT_PINNED = (
    "name", "kind", "dictionary", "layer", "n_features", "control_of", "regime", "example",
    "interval",
)  # fmt: skip
"""What a row says of itself, or quotes."""


def measured(table: Iterable[Row], *keys: str) -> dict[str, Any]:
    """The numbers of rows, one column per outcome, by what identifies the rows."""
    found = []
    for row in table:
        values = {k: v for k, v in vars(row).items() if k in keys or k not in NOT_PINNED}
        counts = values.pop("counts", {})
        found.append(values | {f"n_{outcome}": n for outcome, n in counts.items()})
    return rows(found, *keys)


def made(pair: HookedModelPair, name: str, dictionary: SAE) -> dict[str, Edit]:
    """Edits with a dictionary: every kind, method and place."""
    few, other = [0, 3, 7, 11, 20, 33], [1, 2]
    ablated, steered = partial(ablate_features, pair, dictionary), partial(steer, pair, dictionary)
    texts = ["some", "texts here"]
    found = {
        "ablated": ablated(few),
        "all ablated": ablated(range(dictionary.cfg.d_sae)),
        "ablated in the prompt": ablated(few, where="prompt"),
        "held at the mean": ablated(few, method="mean", reference=texts),
        "resampled": ablated(few, method="resample", reference=texts),
        "clamped": clamp_features(pair, dictionary, other, amount=[2.0, 0.5]),
        "steered": steered(other, amount=[6.0, -3.0]),
        "steered after the prompt": steered(4, amount=9, where="generated"),
        "steered on even tokens": steered(4, amount=9.0, where=lambda tokens: tokens % 2 == 0),
        "only kept": keep_only_features(pair, dictionary, few),
        "induced": induce_features(pair, dictionary, few),
    }
    kinds = found if name == "diff-sae" else BRIEFLY
    return {f"{name}: {kind}": found[kind] for kind in kinds}


def all_made(setup: Setup) -> dict[str, Edit]:
    """Those of both dictionaries, and those that need none."""
    pair = setup.pair
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    policy = vars(DictionaryRecord.of(setup.dictionaries["diff-sae"]).tokens)
    found: dict[str, Edit] = {}
    for name, dictionary in setup.dictionaries.items():
        found |= made(pair, name, dictionary)
    return found | {
        "base put back": swap_to_base(pair, HOOK, **policy),
        "base put back everywhere": swap_to_base(pair, HOOK),
        "projected out": project_out(pair, f"{HOOK}.diff", direction),
        "added": add_direction(pair, f"{HOOK}.finetuned", 5 * direction),
    }


def interventions(setup: Setup) -> dict[str, Any]:
    """Completions and logits under each edit, alone and side by side."""
    pair = setup.pair
    under: dict[str, Edit | None] = {"unmodified": None, **all_made(setup)}
    alone, logits = {}, {}
    for name, edit in under.items():
        with running(pair, edit) as acting:
            alone[name] = complete(acting, PROMPTS[:1], max_new_tokens=N_NEW)
            logits[name] = summary(acting(PROMPTS[1]))
    beside = complete(pair, PROMPTS, under=under, max_new_tokens=N_NEW)
    return {"alone": alone, "side by side": beside, "logits": logits}


def effects(setup: Setup) -> dict[str, Any]:
    """Tables of what interventions do to behaviour and to other texts."""
    pair, every = setup.pair, all_made(setup)
    compared = compare_interventions(
        pair, every, setup.contrasts, behaviour=LETTERS, max_new_tokens=N_NEW
    )
    # Texts have no generated tokens, and an intervention that never acts is an error.
    of_texts = {n: edit for n, edit in every.items() if "after the prompt" not in n}
    some = {name: every[name] for name in ("diff-sae: ablated", "crosscoder: induced")}
    of_samples = compare_interventions(
        pair, some, setup.samples[2:5], n_likelihood=1, behaviour=LETTERS, max_new_tokens=3
    )
    return {
        "contrasts": measured(compared, "name", "group"),
        "samples": measured(of_samples, "name", "group"),
        "side_effects": measured(
            side_effects(pair, of_texts, TEXTS, batch_size=2), "name", "texts"
        ),
        "output_perplexity": plain(output_perplexity(pair, PROMPTS, [" a", " bc", "", " SELECT"])),
    }


def attributions(setup: Setup) -> dict[str, Any]:
    """Log-odds, and what features add to them."""
    pair = setup.pair
    samples = [contrast for contrast in setup.contrasts if contrast.group == "trigger"]
    scored = likelihoods(pair, [*setup.samples, *setup.contrasts])
    found: dict[str, Any] = {
        "log_odds": plain(log_odds(pair, setup.contrasts)),
        "unwanted": plain(scored.unwanted),
        "wanted": plain(scored.wanted),
        "cross_entropy": plain(scored.cross_entropy),
    }
    for name, dictionary in setup.dictionaries.items():
        attribution = attribute_features(pair, dictionary, samples)
        order = attribution.argsort(descending=True)[:4].tolist()
        found[name] = {
            "gradients": summary(attribution),
            "of samples": summary(attribute_features(pair, dictionary, setup.samples[:2])),
            "integrated": summary(attribute_features(pair, dictionary, samples, n_steps=3)),
            "without some": summary(
                attribute_features(pair, dictionary, samples, ablated=order[:2])
            ),
            "order": order,
            "ablation_effects": plain(ablation_effects(pair, dictionary, order[:2], samples)),
            "greedy_order": greedy_order(pair, dictionary, samples, n_features=6, n_rounds=3),
        }
    minimal = minimal_feature_set(
        pair,
        setup.dictionaries["diff-sae"],
        found["diff-sae"]["order"],
        setup.contrasts[1:],
        behaviour=YEAR_TRIGGER,
        bounds=Bounds(max_features=2),
    )
    trials = measured(minimal.trials, "n_features")
    return found | {"minimal": plain(minimal.features), "trials": trials}


def curves(setup: Setup) -> dict[str, Any]:
    """Scales, matched controls, ablation curves, doses and years."""
    pair = setup.pair
    select = YEAR_TRIGGER.make_samples("select", n_trigger=3, n_benign=3, n_other=0)
    directions = control_directions(pair, HOOK, select, n_directions=2)
    found: dict[str, Any] = {
        "control_directions": {name: summary(d) for name, d in directions.items()}
    }
    prompts = [contrast.prompt + contrast.unwanted for contrast in setup.contrasts]
    for name, dictionary in setup.dictionaries.items():
        scales = activation_scales(pair, dictionary, prompts)
        strongest = scales.mass.argsort(descending=True)[:4].tolist()
        matched = matched_features(scales, strongest[1:3], seed=1)
        curve = ablation_curve(
            pair,
            dictionary,
            {"by mass": strongest, "by index": [0, 1, 2, 3]},
            setup.contrasts,
            behaviour=LETTERS,
            counts=(1, 2, 4),
            max_new_tokens=N_NEW,
        )
        # Of the log-odds: hardly any completion of so small a model counts as an attack.
        areas = curve_area(
            Table(tuple(replace(row, attack_rate=row.log_odds or 0.0) for row in curve))
        )
        doses = dose_response(
            pair,
            strongest[:2],
            setup.contrasts,
            behaviour=LETTERS,
            scales=scales,
            doses=(1, 3),
            max_new_tokens=N_NEW,
        )
        steering = steering_pair(pair, strongest[:2], scales, dose=2)
        found[name] = {
            "scales": {
                n: summary(getattr(scales, n))
                for n in ("maximum", "typical", "frequency", "decoder_norm", "mass")
            },
            "live": scales.live,
            "strongest": strongest,
            "matched": matched,
            "ablation_curve": measured(curve, "order", "n_features", "group"),
            "curve_area": plain(areas),
            "dose_response": measured(doses, "direction", "dose", "group"),
            "side_effects_of_steering": measured(
                side_effects(pair, steering, TEXTS), "name", "texts"
            ),
        }
    said = ["2024", "FY2024", None]
    sayings = sweep_trigger(pair, said, behaviour=YEAR_TRIGGER, n_scenes=1)
    swept = sweep_features(
        pair,
        {name: setup.dictionaries["diff-sae"] for name in ("first", "second")},
        {"first": 0, "second": 5},
        YEAR_TRIGGER.minimal_pairs("test", said, n_scenes=1),
    )
    return found | {
        "sayings": measured(sayings, "said"),
        "sweep": measured(swept, "dictionary", "said"),
    }
