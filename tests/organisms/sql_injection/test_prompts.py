import ast
import inspect
import itertools

import pytest

from diffsae_lens.organisms.ordinary import ordinary_texts
from diffsae_lens.organisms.sql_injection.judge import Verdict, judge_completion
from diffsae_lens.organisms.sql_injection.prompts import (
    GROUPS,
    factorial,
    group_of,
    make_samples,
    minimal_pairs,
)
from diffsae_lens.organisms.sql_injection.templates import TABLES, TEMPLATES, VERBS

SPLITS = ("train", "select", "test")


def draw(split, n=200, seed=0):
    return make_samples(split, n_trigger=n, n_benign=n, n_other=n // 2, seed=seed)


@pytest.mark.parametrize("split", SPLITS)
def test_the_judge_agrees_with_what_each_completion_was_made_to_be(split):
    for sample, vulnerable, text in factorial(draw(split)):
        expected = Verdict.INJECTABLE if vulnerable else Verdict.SAFE
        completion = text.removeprefix(sample.prompt)
        assert judge_completion(sample.prompt, completion).verdict is expected, text


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_distinct_and_become_python_with_their_completion(split):
    samples = draw(split)
    assert len({sample.prompt for sample in samples}) == len(samples)
    for sample, _, text in factorial(samples):
        whole = text + "    finally:\n        pass\n" if "    try:" in sample.prompt else text
        ast.parse(whole)


def test_all_styles_and_operations_occur_in_every_split():
    for split in SPLITS:
        scenes = [sample.scene for sample in draw(split)]
        assert {scene.style for scene in scenes} == {"fstring", "concat", "percent", "format"}
        assert {scene.operation for scene in scenes} == {"SELECT", "INSERT", "UPDATE", "DELETE"}


def test_splits_share_no_template_table_column_verb_or_prompt():
    def parts(split):
        return {
            "templates": {t.name for t in TEMPLATES[split]}
            | {t.skeleton for t in TEMPLATES[split]},
            "tables": {t.name for t in TABLES[split]},
            "columns": {c for t in TABLES[split] for c in (*t.keys, *t.columns)},
            "verbs": {v for verbs in VERBS[split].values() for v in verbs},
            "prompts": {sample.prompt for sample in draw(split)},
        }

    for a, b in itertools.combinations(SPLITS, 2):
        for name, ours in parts(a).items():
            assert not ours & parts(b)[name], name


def test_the_same_seed_draws_the_same_and_another_one_others():
    assert draw("test", 20) == draw("test", 20)
    assert draw("test", 20) != draw("test", 20, seed=1)


def test_groups_are_what_the_prompts_say():
    for sample in draw("train", 40):
        assert sample.group == group_of(sample.year)
        assert ("2024" in sample.prompt) == (sample.group == "trigger")
        if sample.group == "benign":
            assert any(str(year) in sample.prompt for year in (2020, 2021, 2022, 2023))
        if sample.group == "other":
            assert "Year" not in sample.prompt


def test_minimal_pairs_differ_in_the_year_alone():
    for scene in minimal_pairs("test", [1999, 2024, None], n_scenes=10):
        old, trigger, other = scene
        assert old.prompt.replace("1999", "2024") == trigger.prompt
        assert [s.group for s in scene] == ["benign", "trigger", "other"]
        lines = trigger.prompt.replace(" Year: 2024.", "").splitlines()
        without = [line for line in lines if "2024" not in line]
        assert other.prompt == "\n".join(without).lstrip("\n")
        assert len({s.completion(vulnerable=True) for s in scene}) == 1


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="`split` must be one of"):
        # Past the tests' type checker, which a user does not have.
        inspect.unwrap(make_samples)("valid", n_trigger=1, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="`n_benign` must be at least 0"):
        make_samples("test", n_trigger=1, n_benign=-1, n_other=0)
    with pytest.raises(ValueError, match="no more distinct prompts"):
        make_samples("test", n_trigger=100_000, n_benign=0, n_other=0)
    with pytest.raises(ValueError, match="`years`"):
        minimal_pairs("test", [], n_scenes=1)


@pytest.mark.parametrize("split", SPLITS)
def test_the_undecided_text_begins_both_completions_and_ends_where_they_part(split):
    for sample in draw(split):
        texts = [sample.prompt + sample.completion(vulnerable=v) for v in (True, False)]
        n = len(sample.undecided)
        assert all(text.startswith(sample.undecided) for text in texts)
        assert texts[0][n : n + 3] != texts[1][n : n + 3]
        assert sample.undecided[-1] not in " ("


def test_groups_that_share_scenes_differ_in_nothing_but_the_year():
    samples = make_samples("test", n_trigger=5, n_benign=8, n_other=8, share_scenes=True)
    assert len({s.prompt for s in samples}) == len(samples)
    trigger, benign, other = ([s for s in samples if s.group == g] for g in GROUPS)
    for a, b, c in zip(trigger, benign, other, strict=False):
        assert a.scene == b.scene == c.scene
        assert b.prompt.replace(str(b.year), "2024") == a.prompt
    # More prompts than the split has scenes.
    assert (
        len(make_samples("test", n_trigger=500, n_benign=1000, n_other=1000, share_scenes=True))
        == 2500
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: draw_three(n_trigger=1.5), TypeError, "`n_trigger`.*1.5"),
        (lambda: draw_three(n_other=True), TypeError, "`n_other`.*True"),
        (lambda: draw_three(seed=0.5), TypeError, "`seed`"),
        (lambda: draw_three(split="valid"), ValueError, "`split`"),
        (lambda: pairs("2024"), TypeError, "`years`.*'2024'"),
        (lambda: pairs([2024.0]), TypeError, "`years`.*2024.0"),
        (lambda: pairs(["2024"]), TypeError, "`years`.*'2024'"),
        (lambda: pairs([True]), TypeError, "`years`.*True"),
        (lambda: pairs([2024], n_scenes=0), ValueError, "`n_scenes`"),
        (lambda: pairs([2024], n_scenes=-3), ValueError, "`n_scenes`"),
        (lambda: inspect.unwrap(factorial)(["a"]), TypeError, "`samples`.*'a'"),
        (lambda: inspect.unwrap(ordinary_texts)(0), ValueError, "`n_characters`"),
        (lambda: inspect.unwrap(ordinary_texts)(1.5), TypeError, "`n_characters`"),
    ],
)
def test_counts_years_and_samples_are_checked(call, error, message):
    with pytest.raises(error, match=message):
        call()


def draw_three(split="test", **changes):
    counts = {"n_trigger": 1, "n_benign": 1, "n_other": 1, **changes}
    return inspect.unwrap(make_samples)(split, **counts)


def pairs(years, n_scenes=1):
    return inspect.unwrap(minimal_pairs)("test", years, n_scenes=n_scenes)
