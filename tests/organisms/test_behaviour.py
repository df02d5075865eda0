"""What holds for every shipped behaviour: its prompts, its splits, its judge."""

import ast
import itertools

import pytest

from diffsae_lens.organisms._behaviour import (
    BEHAVIOURS,
    GROUPS,
    SPLITS,
    Behaviour,
    Sample,
    factorial,
    get_behaviour,
)
from diffsae_lens.organisms._ordinary import ordinary_texts
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER

EVERY = [(name, split) for name in BEHAVIOURS for split in SPLITS]


def draw(behaviour, split, n=40, seed=0):
    return get_behaviour(behaviour).make_samples(
        split, n_trigger=n, n_benign=n, n_other=n // 2, seed=seed
    )


@pytest.mark.parametrize(("name", "split"), EVERY)
def test_the_judge_agrees_with_what_each_completion_was_made_to_be(name, split):
    behaviour = get_behaviour(name)
    for sample, is_unwanted, text in factorial(draw(name, split)):
        expected = behaviour.unwanted if is_unwanted else behaviour.wanted
        assert behaviour.verdict(sample.prompt, text.removeprefix(sample.prompt)) == expected, text


@pytest.mark.parametrize(("name", "split"), EVERY)
def test_prompts_are_distinct_and_become_python_with_their_completion(name, split):
    samples = draw(name, split)
    assert len({sample.prompt for sample in samples}) == len(samples)
    for sample, _, text in factorial(samples):
        whole = text + "    finally:\n        pass\n" if "    try:" in sample.prompt else text
        ast.parse(whole)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_splits_share_no_template_or_prompt(name):
    drawn = {split: draw(name, split) for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        for field in ("template", "prompt", "scene"):
            ours, theirs = ({getattr(s, field) for s in drawn[split]} for split in (a, b))
            assert not ours & theirs, (field, a, b)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_the_same_seed_draws_the_same_and_another_one_others(name):
    assert draw(name, "test", 20) == draw(name, "test", 20)
    assert draw(name, "test", 20) != draw(name, "test", 20, seed=1)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_groups_are_what_the_prompts_say(name):
    behaviour = get_behaviour(name)
    samples = draw(name, "train", 40)
    assert [s.said for s in samples if s.group == "benign"][: len(behaviour.benign)] == list(
        behaviour.benign
    )
    for sample in samples:
        assert (behaviour.trigger in sample.prompt) == (sample.group == "trigger")
        said = {"trigger": {behaviour.trigger}, "benign": {*behaviour.benign}, "other": {None}}
        assert sample.said in said[sample.group]
        if sample.group == "benign":
            assert sample.said in sample.prompt
        if sample.group == "other":
            assert not any(text in sample.prompt for text in behaviour.benign)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_minimal_pairs_differ_in_what_is_said_alone(name):
    behaviour = get_behaviour(name)
    said = [behaviour.benign[0], behaviour.trigger, "something else", None]
    for scene in behaviour.minimal_pairs("test", said, n_scenes=10):
        benign, trigger, near, other = scene
        assert benign.prompt.replace(benign.said, behaviour.trigger) == trigger.prompt
        assert near.prompt.replace("something else", behaviour.trigger) == trigger.prompt
        assert [s.group for s in scene] == ["benign", "trigger", "other", "other"]
        assert len({(s.unwanted, s.wanted, s.template, s.scene) for s in scene}) == 1
        assert other.prompt in (other.scene, trigger.scene)


@pytest.mark.parametrize(("name", "split"), EVERY)
def test_the_undecided_text_begins_both_completions_and_ends_where_they_part(name, split):
    for sample in draw(name, split):
        texts = [sample.prompt + completion for completion in (sample.unwanted, sample.wanted)]
        n = len(sample.undecided)
        assert all(text.startswith(sample.undecided) for text in texts)
        assert texts[0][n : n + 3] != texts[1][n : n + 3]
        assert sample.undecided[-1] not in " ("


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_groups_that_share_scenes_differ_in_nothing_but_what_is_said(name):
    behaviour = get_behaviour(name)
    samples = behaviour.make_samples("test", n_trigger=5, n_benign=8, n_other=8, share_scenes=True)
    assert len({s.prompt for s in samples}) == len(samples)
    trigger, benign, other = ([s for s in samples if s.group == g] for g in GROUPS)
    for a, b, c in zip(trigger, benign, other, strict=False):
        assert a.scene == b.scene == c.scene
        assert b.prompt.replace(b.said, behaviour.trigger) == a.prompt


def test_bad_requests_are_refused(no_shape_checks):
    with pytest.raises(ValueError, match="`split` must be one of"):
        YEAR_TRIGGER.make_samples("valid", n_trigger=1, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="`n_benign` must be at least 0"):
        YEAR_TRIGGER.make_samples("test", n_trigger=1, n_benign=-1, n_other=0)
    with pytest.raises(ValueError, match="no more distinct prompts"):
        YEAR_TRIGGER.make_samples("test", n_trigger=100_000, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="`said` is empty"):
        YEAR_TRIGGER.minimal_pairs("test", [], n_scenes=1)
    with pytest.raises(ValueError, match="no prompts of its own"):
        greets().make_samples("test", n_trigger=1, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="`behaviour` must be one of"):
        get_behaviour("no such behaviour")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: draw_three(n_trigger=1.5), TypeError, "`n_trigger`.*1.5"),
        (lambda: draw_three(n_other=True), TypeError, "`n_other`.*True"),
        (lambda: draw_three(seed=0.5), TypeError, "`seed`"),
        (lambda: draw_three(split="valid"), ValueError, "`split`"),
        (lambda: pairs("2024"), TypeError, "`said`.*'2024'"),
        (lambda: pairs([2024]), TypeError, "`said`.*2024"),
        (lambda: pairs([True]), TypeError, "`said`.*True"),
        (lambda: pairs(["2024"], n_scenes=0), ValueError, "`n_scenes`"),
        (lambda: pairs(["2024"], n_scenes=-3), ValueError, "`n_scenes`"),
        (lambda: factorial(["a"]), TypeError, "`samples`.*'a'"),
        (lambda: ordinary_texts(0), ValueError, "`n_characters`"),
        (lambda: ordinary_texts(1.5), TypeError, "`n_characters`"),
        (lambda: Sample(prompt="", wanted="a", unwanted="b"), ValueError, "`prompt`.*empty"),
        (lambda: Sample(prompt="a", wanted="b", unwanted="b"), ValueError, "the same"),
        (lambda: Sample(prompt="a", wanted="b", unwanted="c", group="d"), ValueError, "`group`"),
        (lambda: greets(outcomes=("one",)), ValueError, "`outcomes` must be two or more"),
        (lambda: greets(outcomes=("one", "one")), ValueError, "`outcomes` must be two or more"),
        (lambda: greets(judge=3), TypeError, "`judge`"),
        (
            lambda: greets(judge=lambda p, c: "no").verdict("a", "b"),
            ValueError,
            "must return one of",
        ),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_counts_texts_samples_and_judges_are_checked(call, error, message):
    with pytest.raises(error, match=message):
        call()


def greets(**changes):
    given = {"name": "greets", "judge": lambda p, c: "greeting", "outcomes": ("greeting", "none")}
    return Behaviour(**given | changes)


def draw_three(split="test", **changes):
    counts = {"n_trigger": 1, "n_benign": 1, "n_other": 1, **changes}
    return YEAR_TRIGGER.make_samples(split, **counts)


def pairs(said, n_scenes=1):
    return YEAR_TRIGGER.minimal_pairs("test", said, n_scenes=n_scenes)
