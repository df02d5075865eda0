"""Several interventions in one batch write what they write one after the other."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from diffsae_lens.interventions.directions import add_direction, project_out, swap_to_base
from diffsae_lens.interventions.features import ablate_features, induce_features, steer
from diffsae_lens.interventions.rates import complete
from diffsae_lens.interventions.side_by_side import complete_under
from diffsae_lens.pair import HookedModelPair
from tests.conftest import D_MODEL
from tests.interventions.test_features import HOOK, dictionary

PROMPTS = ["in 2024", "a longer prompt", "in 2023", "xy"]
NEW = {"max_new_tokens": 6}


def interventions(pair):
    sae, crosscoder = dictionary(), dictionary("concat")
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    return {
        "unmodified": nullcontext,
        "ablated": partial(ablate_features, pair, sae, [0, 1, 2, 3]),
        "mean of others": partial(
            ablate_features, pair, sae, [4, 5], method="mean", reference=["some", "texts here"]
        ),
        "crosscoder": partial(ablate_features, pair, crosscoder, [0, 1, 2]),
        "added to the base": partial(induce_features, pair, sae, [0, 1, 2]),
        "steered": partial(steer, pair, sae, 2, strength=4.0),
        "steered in the prompt": partial(steer, pair, sae, 2, strength=9.0, where="prompt"),
        "steered after it": partial(steer, pair, sae, 2, strength=9.0, where="generated"),
        "base put back": partial(swap_to_base, pair, HOOK),
        "projected out": partial(project_out, pair, f"{HOOK}.diff", direction),
        "added": partial(add_direction, pair, f"{HOOK}.finetuned", 5 * direction),
    }


def one_by_one(pair, opened):
    written = {}
    for name, intervene in opened.items():
        with intervene() as given:
            acting = given if isinstance(given, HookedModelPair) else pair
            written[name] = complete(acting, PROMPTS, **NEW)
    return written


@pytest.mark.parametrize("max_rows", [1, 11, 25, 160])
def test_each_writes_what_it_writes_alone(pair, max_rows):
    opened = interventions(pair)
    expected = one_by_one(pair, opened)
    assert len({tuple(texts) for texts in expected.values()}) >= 6  # they differ from each other
    assert complete_under(pair, opened, PROMPTS, max_rows=max_rows, **NEW) == expected


def test_a_lora_pair_does_too(lora_pair):
    opened = interventions(lora_pair)
    assert complete_under(lora_pair, opened, PROMPTS, **NEW) == one_by_one(lora_pair, opened)


def test_afterwards_interventions_act_on_every_row_again(pair):
    opened = interventions(pair)
    before = one_by_one(pair, opened)
    complete_under(pair, opened, PROMPTS, **NEW)
    assert one_by_one(pair, opened) == before
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_one_that_raises_leaves_no_hooks(pair):
    bad = partial(ablate_features, pair, dictionary(), [10**6])
    with pytest.raises(ValueError, match="feature indices"):
        complete_under(pair, {**interventions(pair), "bad": bad}, PROMPTS, **NEW)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_samples_are_drawn_under_one_after_the_other(pair):
    opened = {"unmodified": nullcontext, "base put back": partial(swap_to_base, pair, HOOK)}
    torch.manual_seed(0)
    written = complete_under(pair, opened, PROMPTS, do_sample=True, **NEW)
    torch.manual_seed(0)
    assert written["unmodified"] == complete(pair, PROMPTS, do_sample=True, **NEW)
