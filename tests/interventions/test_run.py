"""Several edits in one batch write what they write one after the other."""

import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.effects._compare import compare_interventions, measure_effects
from diffsae_lens.interventions._directions import add_direction, project_out, swap_to_base
from diffsae_lens.interventions._edit import Edit, edits_on
from diffsae_lens.interventions._features import ablate_features, induce_features, steer
from diffsae_lens.interventions._run import complete
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from tests.conftest import D_MODEL, running
from tests.interventions.test_features import HOOK, dictionary

PROMPTS = ["in 2024", "a longer prompt", "in 2023", "xy"]
NEW = {"max_new_tokens": 3}


def made(pair):
    sae, crosscoder = dictionary(), dictionary("concat")
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    return {
        "unmodified": None,
        "ablated": ablate_features(pair, sae, [0, 1, 2, 3]),
        "mean of others": ablate_features(
            pair, sae, [4, 5], method="mean", reference=["some", "texts here"]
        ),
        "drawn from others": ablate_features(
            pair, sae, [0, 1, 2, 3], method="resample", reference=["some", "texts here"]
        ),
        "crosscoder": ablate_features(pair, crosscoder, [0, 1, 2]),
        "added to the base": induce_features(pair, sae, [0, 1, 2]),
        "steered": steer(pair, sae, 2, amount=4.0),
        "steered in the prompt": steer(pair, sae, 2, amount=9.0, where="prompt"),
        "steered after it": steer(pair, sae, 2, amount=9.0, where="generated"),
        "where tokens are even": steer(
            pair, sae, 2, amount=9.0, where=lambda tokens: tokens % 2 == 0
        ),
        "of ones own": Edit(pair=pair, hook=f"{HOOK}.diff", change=lambda value, _: 0 * value),
        "base put back": swap_to_base(pair, HOOK),
        "projected out": project_out(pair, f"{HOOK}.diff", direction),
        "added": add_direction(pair, f"{HOOK}.finetuned", 5 * direction),
    }


def one_by_one(pair, edits, prompts=PROMPTS, **options):
    written = {}
    for name, edit in edits.items():
        with running(pair, edit) as acting:
            written[name] = complete(acting, prompts, **NEW, **options)
    return written


@pytest.mark.parametrize(("batch_size", "n_prompts"), [(1, 2), (11, 4)])
def test_each_writes_what_it_writes_alone(pair, batch_size, n_prompts):
    edits, prompts = made(pair), PROMPTS[:n_prompts]
    # What draws random numbers is never batched with others, so its batches are of the same size.
    expected = one_by_one(pair, edits, prompts, batch_size=batch_size)
    assert len({tuple(texts) for texts in expected.values()}) >= 6  # they differ from each other
    assert complete(pair, prompts, under=edits, batch_size=batch_size, **NEW) == expected


def test_all_in_one_batch_do_and_act_on_every_row_again_afterwards(pair):
    edits = made(pair)
    expected = one_by_one(pair, edits, batch_size=160)
    assert complete(pair, PROMPTS, under=edits, batch_size=160, **NEW) == expected
    few = {name: edits[name] for name in ("unmodified", "ablated", "base put back")}
    assert one_by_one(pair, few) == {name: expected[name] for name in few}
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_a_lora_pair_does_too(lora_pair):
    edits = made(lora_pair)
    assert complete(lora_pair, PROMPTS, under=edits, **NEW) == one_by_one(lora_pair, edits)


def test_one_that_raises_leaves_no_hooks(pair):
    def fail(value, generator):
        raise KeyError("mine")

    bad = Edit(pair=pair, hook=f"{HOOK}.diff", change=fail)
    with pytest.raises(KeyError, match="mine"):
        complete(pair, PROMPTS, under={**made(pair), "bad": bad}, **NEW)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_samples_are_drawn_under_one_after_the_other(pair):
    edits = {"unmodified": None, "base put back": swap_to_base(pair, HOOK)}
    torch.manual_seed(0)
    written = complete(pair, PROMPTS, under=edits, do_sample=True, **NEW)
    torch.manual_seed(0)
    assert written["unmodified"] == complete(pair, PROMPTS, do_sample=True, **NEW)
    with swap_to_base(pair, HOOK):
        assert written["base put back"] == complete(pair, PROMPTS, do_sample=True, **NEW)


def test_what_is_open_outside_acts_on_all(pair):
    edits = {"unmodified": None, "ablated": ablate_features(pair, dictionary(), [0])}
    plain = complete(pair, PROMPTS, **NEW)
    with steer(pair, dictionary(), 2, amount=9.0):
        assert complete(pair, PROMPTS, under=edits, **NEW) == one_by_one(pair, edits)
        assert complete(pair, PROMPTS, under=edits, **NEW)["unmodified"] != plain


def test_two_that_share_another_pair_do_not_meet(pair):
    mirrored = pair.mirrored()
    up, down = (
        add_direction(mirrored, f"{HOOK}.finetuned", torch.full((D_MODEL,), amount))
        for amount in (9.0, -9.0)
    )
    edits = {"up": up, "down": down, "up again": up}
    expected = one_by_one(pair, edits)
    assert expected["up"] != expected["down"]
    assert complete(pair, PROMPTS, under=edits, **NEW) == expected


def test_counts_are_of_its_own_rows(pair, tokens):
    silent = dictionary()
    silent.b_enc.data[:] = -1e6  # nothing fires
    quiet, loud = (ablate_features(pair, sae, [0, 1, 2, 3]) for sae in (silent, dictionary()))
    with edits_on([(quiet, slice(0, 1)), (loud, slice(1, 2))]) as counted:
        both = pair(tokens)
    with loud:
        assert_close(both[1], pair(tokens)[1])
    assert_close(both[0], pair(tokens)[0])
    assert [acted.n_changes for acted in counted] == [0, 1]
    assert [acted.n_forward_passes for acted in counted] == [1, 1]


@pytest.mark.parametrize("view", ["base", "finetuned", "diff", "concat"])
def test_what_an_edit_leaves_alone_stays_as_it_is(pair, tokens, view):
    """Of every view: that of the base alone would put the base's activation back."""
    at = tokens.shape[1] - 2
    last = Edit(
        pair=pair,
        hook=f"{HOOK}.{view}",
        change=lambda value, _: value + 1,
        where=lambda ids: torch.arange(ids.shape[1]).expand_as(ids) >= at,
    )
    plain = pair(tokens)
    with last:
        changed = pair(tokens)
    assert torch.equal(changed[:, :at], plain[:, :at])
    assert (changed[:, at:] - plain[:, at:]).abs().max() > 1e-2
    with edits_on([(last, slice(1, 2))]), pair.hooks([(last.hook, lambda value, hook: None)]):
        first, second = pair(tokens)
    assert torch.equal(first, plain[0])
    assert_close(second, changed[1])


def test_one_of_several_that_never_acts_is_an_error(pair):
    edits = {
        "all": steer(pair, dictionary(), 2, amount=1.0),
        "none": steer(pair, dictionary(), 2, amount=1.0, where=lambda tokens: tokens < 0),
    }
    with pytest.raises(RuntimeError, match="never acted"):
        complete(pair, PROMPTS, under=edits, **NEW)
    assert complete(pair, PROMPTS, under={}, **NEW) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "`prompts` is empty"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_opened(pair, given, message):
    def never(value, generator):
        raise AssertionError

    edits = {"never": Edit(pair=pair, hook=f"{HOOK}.diff", change=never)}
    with pytest.raises(ValueError, match=message):
        complete(pair, under=edits, **{"prompts": PROMPTS, **given})


def test_tables_hold_what_is_measured_one_by_one(long_pair):
    samples = YEAR_TRIGGER.make_samples("test", n_trigger=2, n_benign=1, n_other=0)
    sae = dictionary()
    edits = {
        "ablated": ablate_features(long_pair, sae, [0, 1, 2]),
        "added to the base": induce_features(long_pair, sae, [0, 1, 2]),
    }
    measured = {"behaviour": YEAR_TRIGGER, "max_new_tokens": 3}
    for row in compare_interventions(long_pair, edits, samples, **measured):
        members = [s for s in samples if s.group == row.group]
        edit = edits.get(row.name)
        with running(long_pair, edit) as acting:
            effects = measure_effects(acting, members, **measured)
        kind = "unmodified" if edit is None else edit.kind
        alone = effects.row(row.name, group=row.group, kind=kind).as_dict()
        found = row.as_dict()
        assert (found.pop("n_features"), found.pop("layer")) == (
            (0, None) if edit is None else (3, 1)
        )
        assert found.pop("counts") == alone.pop("counts")
        assert found == pytest.approx({n: alone[n] for n in found}, nan_ok=True)


def test_completions_given_need_no_arguments_for_making_them(long_pair):
    [sample] = YEAR_TRIGGER.make_samples("test", n_trigger=1, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        measure_effects(
            long_pair, [sample], behaviour=YEAR_TRIGGER, completions=[" x"], max_new_tokens=3
        )
