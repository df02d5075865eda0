"""Several interventions in one batch write what they write one after the other."""

from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from diffsae_lens.organisms.sql_injection.prompts import make_samples

from diffsae_lens.effects.compare import compare_interventions, measure_effects
from diffsae_lens.effects.rates import complete
from diffsae_lens.interventions.directions import add_direction, project_out, swap_to_base
from diffsae_lens.interventions.features import ablate_features, induce_features, steer
from diffsae_lens.interventions.side_by_side import acting_pair, complete_under
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
        "where tokens are even": partial(
            steer, pair, sae, 2, strength=9.0, where=lambda tokens: tokens % 2 == 0
        ),
        "by hand": lambda: pair.hooks(fwd_hooks=[(f"{HOOK}.diff", lambda value, hook: 0 * value)]),
        "base put back": partial(swap_to_base, pair, HOOK),
        "projected out": partial(project_out, pair, f"{HOOK}.diff", direction),
        "added": partial(add_direction, pair, f"{HOOK}.finetuned", 5 * direction),
    }


def one_by_one(pair, opened):
    written = {}
    for name, intervene in opened.items():
        with intervene() as given:
            acting = acting_pair(pair, given)
            written[name] = complete(acting, PROMPTS, **NEW)
    return written


@pytest.mark.parametrize("batch_size", [1, 4, 11, 25, 160])
def test_each_writes_what_it_writes_alone(pair, batch_size):
    opened = interventions(pair)
    expected = one_by_one(pair, opened)
    assert len({tuple(texts) for texts in expected.values()}) >= 6  # they differ from each other
    assert complete_under(pair, opened, PROMPTS, batch_size=batch_size, **NEW) == expected


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
    with pytest.raises(ValueError, match="`features` must hold indices"):
        complete_under(pair, {**interventions(pair), "bad": bad}, PROMPTS, **NEW)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_samples_are_drawn_under_one_after_the_other(pair):
    opened = {"unmodified": nullcontext, "base put back": partial(swap_to_base, pair, HOOK)}
    torch.manual_seed(0)
    written = complete_under(pair, opened, PROMPTS, do_sample=True, **NEW)
    torch.manual_seed(0)
    assert written["unmodified"] == complete(pair, PROMPTS, do_sample=True, **NEW)
    with swap_to_base(pair, HOOK):
        assert written["base put back"] == complete(pair, PROMPTS, do_sample=True, **NEW)


def test_what_is_open_outside_acts_on_all(pair):
    opened = {
        "unmodified": nullcontext,
        "ablated": partial(ablate_features, pair, dictionary(), [0]),
    }
    plain = complete(pair, PROMPTS, **NEW)
    with steer(pair, dictionary(), 2, strength=9.0):
        assert complete_under(pair, opened, PROMPTS, **NEW) == one_by_one(pair, opened)
        assert complete_under(pair, opened, PROMPTS, **NEW)["unmodified"] != plain


def test_two_that_share_another_pair_do_not_meet(pair):
    mirrored = pair.mirrored()

    @contextmanager
    def on_the_base(strength):
        with add_direction(mirrored, f"{HOOK}.finetuned", torch.full((D_MODEL,), strength)):
            yield mirrored

    opened = {"up": partial(on_the_base, 9.0), "down": partial(on_the_base, -9.0)}
    expected = one_by_one(pair, opened)
    assert expected["up"] != expected["down"]
    assert complete_under(pair, opened, PROMPTS, **NEW) == expected


def test_counts_are_of_its_own_rows(pair):
    silent = dictionary()
    silent.b_enc.data[:] = -1e6  # nothing fires
    counted = {}

    @contextmanager
    def counting(name, sae):
        with ablate_features(pair, sae, [0, 1, 2, 3]) as counted[name]:
            yield counted[name]

    opened = {
        "silent": partial(counting, "silent", silent),
        "loud": partial(counting, "loud", dictionary()),
    }
    complete_under(pair, opened, PROMPTS, **NEW)
    assert counted["silent"].n_changes == 0 < counted["loud"].n_changes
    assert counted["silent"].n_forward_passes == counted["loud"].n_forward_passes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "`prompts` is empty"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_opened(pair, given, message):
    def never():
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        complete_under(pair, {"never": never}, **{"prompts": PROMPTS, **given})


def test_tables_hold_what_is_measured_one_by_one(long_pair):
    samples = make_samples("test", n_trigger=2, n_benign=1, n_other=0)
    sae = dictionary()
    opened = {
        "ablated": partial(ablate_features, long_pair, sae, [0, 1, 2]),
        "added to the base": partial(induce_features, long_pair, sae, [0, 1, 2]),
    }
    frame = compare_interventions(long_pair, opened, samples, max_new_tokens=3)
    for row in frame.itertuples():
        members = [s for s in samples if s.group == row.group]
        with opened.get(row.name, nullcontext)() as given:
            alone = measure_effects(acting_pair(long_pair, given), members, max_new_tokens=3).row()
        assert {name: getattr(row, name) for name in alone} == pytest.approx(alone, nan_ok=True)


def test_completions_given_need_no_arguments_for_making_them(long_pair):
    [sample] = make_samples("test", n_trigger=1, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        measure_effects(long_pair, [sample], completions=[" x"], max_new_tokens=3)
