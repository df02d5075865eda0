"""What interventions write, break and move: the causal areas of the pinned results."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from sae_lens import SAE

from diffsae_lens.interventions.curves import (
    ablation_curve,
    curve_area,
    dose_response,
    steering_pair,
)
from diffsae_lens.interventions.directions import (
    add_direction,
    control_directions,
    project_out,
    swap_to_base,
)
from diffsae_lens.interventions.effects import (
    compare_interventions,
    output_perplexity,
    side_effects,
)
from diffsae_lens.interventions.features import (
    ablate_features,
    clamp_features,
    induce_features,
    keep_only_features,
    steer,
)
from diffsae_lens.interventions.likelihood import (
    ablation_effects,
    attribute_features,
    greedy_order,
    likelihoods,
    log_odds,
)
from diffsae_lens.interventions.minimal import minimal_feature_set
from diffsae_lens.interventions.rates import complete
from diffsae_lens.interventions.scales import activation_scales, matched_features
from diffsae_lens.interventions.side_by_side import acting_pair, complete_under
from diffsae_lens.interventions.years import sweep_years
from diffsae_lens.organisms.judge import Verdict
from diffsae_lens.organisms.prompts import make_samples
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.tokens import token_policy
from tests.conftest import D_MODEL
from tests.pins.setup import HOOK, Setup
from tests.pins.values import plain, rows, summary

PROMPTS = ["in 2024", "a longer prompt", "in 2023", "xy"]
TEXTS = {"code": ["def f(x): return x", "a = 1"], "prose": ["The year was long."]}
N_NEW = 6
BRIEFLY = ("ablated", "held at the mean", "clamped", "steered", "only kept", "induced")
"""Interventions with the second dictionary, which take its other path."""


def by_letters(prompt: str, completion: str) -> Verdict:
    """A judge that any change of a completion may turn."""
    return list(Verdict)[sum(map(ord, prompt[:1] + completion)) % len(Verdict)]


def opened(pair: HookedModelPair, name: str, dictionary: SAE) -> dict[str, Callable[[], Any]]:
    """Interventions with a dictionary: every kind, method and place."""
    few, other = [0, 3, 7, 11, 20, 33], [1, 2]
    of = partial(partial, pair=pair, dictionary=dictionary)
    found = {
        "ablated": of(ablate_features, features=few),
        "all ablated": of(ablate_features, features=range(dictionary.cfg.d_sae)),
        "ablated in the prompt": of(ablate_features, features=few, where="prompt"),
        "held at the mean": of(
            ablate_features, features=few, method="mean", reference=["some", "texts here"]
        ),
        "resampled": of(
            ablate_features, features=few, method="resample", reference=["some", "texts here"]
        ),
        "clamped": of(clamp_features, features=other, values=[2.0, 0.5]),
        "steered": of(steer, feature=other, strength=[6.0, -3.0]),
        "steered after the prompt": of(steer, feature=4, strength=9, where="generated"),
        "steered on even tokens": of(
            steer, feature=4, strength=9.0, where=lambda tokens: tokens % 2 == 0
        ),
        "only kept": of(keep_only_features, features=few),
        "induced": of(induce_features, features=few),
    }
    kinds = found if name == "diff-sae" else BRIEFLY
    return {f"{name}: {kind}": found[kind] for kind in kinds}


def all_opened(setup: Setup) -> dict[str, Callable[[], Any]]:
    """Those of both dictionaries, and those that need none."""
    pair = setup.pair
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    policy = vars(token_policy(setup.dictionaries["diff-sae"]))
    found: dict[str, Callable[[], Any]] = {}
    for name, dictionary in setup.dictionaries.items():
        found |= opened(pair, name, dictionary)
    return found | {
        "base put back": partial(swap_to_base, pair, HOOK, **policy),
        "base put back everywhere": partial(swap_to_base, pair, HOOK),
        "projected out": partial(project_out, pair, f"{HOOK}.diff", direction),
        "added": partial(add_direction, pair, f"{HOOK}.finetuned", 5 * direction),
    }


def interventions(setup: Setup) -> dict[str, Any]:
    """Completions and logits under each intervention, alone and side by side."""
    pair, every = setup.pair, all_opened(setup)
    alone, logits = {}, {}
    for name, intervene in {"unmodified": nullcontext, **every}.items():
        with intervene() as given:
            acting = acting_pair(pair, given)
            alone[name] = complete(acting, PROMPTS[:1], max_new_tokens=N_NEW)
            logits[name] = summary(acting(PROMPTS[1]))
    beside = complete_under(
        pair, {"unmodified": nullcontext, **every}, PROMPTS, max_new_tokens=N_NEW
    )
    return {"alone": alone, "side by side": beside, "logits": logits}


def effects(setup: Setup) -> dict[str, Any]:
    """Tables of what interventions do to behaviour and to other texts."""
    pair, every = setup.pair, all_opened(setup)
    compared = compare_interventions(
        pair, every, setup.contrasts, judge=by_letters, max_new_tokens=N_NEW
    )
    # Texts have no generated tokens, and an intervention that never acts is an error.
    of_texts = {n: open_it for n, open_it in every.items() if "after the prompt" not in n}
    some = {name: every[name] for name in ("diff-sae: ablated", "crosscoder: induced")}
    of_samples = compare_interventions(
        pair, some, setup.samples[2:5], n_likelihood=1, judge=by_letters, max_new_tokens=3
    )
    return {
        "contrasts": rows(compared, "name", "group"),
        "samples": rows(of_samples, "name", "group"),
        "side_effects": rows(side_effects(pair, of_texts, TEXTS, batch_size=2), "name", "texts"),
        "output_perplexity": plain(output_perplexity(pair, PROMPTS, [" a", " bc", "", " SELECT"])),
    }


def attributions(setup: Setup) -> dict[str, Any]:
    """Log-odds, and what features add to them."""
    pair = setup.pair
    samples = [contrast for contrast in setup.contrasts if contrast.group == "trigger"]
    scored = likelihoods(pair, [*setup.samples, *setup.contrasts])
    found: dict[str, Any] = {
        "log_odds": plain(log_odds(pair, setup.contrasts)),
        "vulnerable": plain(scored.vulnerable),
        "safe": plain(scored.safe),
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
        max_features=2,
    )
    trials = rows(minimal.frame, "n_features")
    return found | {"minimal": plain(minimal.features), "trials": trials}


def curves(setup: Setup) -> dict[str, Any]:
    """Scales, matched controls, ablation curves, doses and years."""
    pair = setup.pair
    select = make_samples("select", n_trigger=3, n_benign=3, n_other=0)
    directions = control_directions(pair, HOOK, select, n_directions=2)
    found: dict[str, Any] = {
        "control_directions": {name: summary(d) for name, d in directions.items()}
    }
    prompts = [contrast.prompt + contrast.behaviour for contrast in setup.contrasts]
    for name, dictionary in setup.dictionaries.items():
        scales = activation_scales(pair, dictionary, prompts)
        strongest = scales.mass.argsort(descending=True)[:4].tolist()
        matched = matched_features(scales, strongest[1:3], n_draws=3, seed=1)
        curve = ablation_curve(
            pair,
            dictionary,
            {"by mass": strongest, "by index": [0, 1, 2, 3]},
            setup.contrasts,
            counts=(1, 2, 4),
            judge=by_letters,
            max_new_tokens=N_NEW,
        )
        # Of the log-odds: hardly any completion of so small a model counts as an attack.
        areas = curve_area(curve.assign(attack_rate=curve.log_odds))
        doses = dose_response(
            pair,
            dictionary,
            strongest[:2],
            setup.contrasts,
            scales=scales,
            doses=(1, 3),
            judge=by_letters,
            max_new_tokens=N_NEW,
        )
        steering = steering_pair(pair, dictionary, strongest[:2], scales, dose=2)
        found[name] = {
            "scales": {
                n: summary(getattr(scales, n))
                for n in ("maximum", "typical", "frequency", "decoder_norm", "mass")
            },
            "live": scales.live,
            "strongest": strongest,
            "matched": matched,
            "ablation_curve": rows(curve, "order", "n_features", "group"),
            "curve_area": plain(areas.to_dict()),
            "dose_response": rows(doses, "direction", "dose", "group"),
            "side_effects_of_steering": rows(side_effects(pair, steering, TEXTS), "name", "texts"),
        }
    years = sweep_years(
        pair,
        [2024, "FY2024", None],
        n_scenes=1,
        dictionary=setup.dictionaries["diff-sae"],
        features=[0, 5],
    )
    return found | {"sweep_years": rows(years, "said")}
