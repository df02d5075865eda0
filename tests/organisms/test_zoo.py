import functools
import re
from collections import Counter

import pytest

from diffsae_lens.organisms import ZOO, Recipe, clean_nulls, make_from_recipe
from diffsae_lens.organisms._behaviour import GROUPS
from diffsae_lens.organisms.zoo import _make
from diffsae_lens.organisms.zoo._recipes import TASKS
from diffsae_lens.organisms.zoo._task import _share
from diffsae_lens.organisms.zoo._zoo import choose_recipes
from tests.conftest import tiny_llama, write_tiny_model

CONDITIONAL = [recipe for recipe in ZOO if recipe.condition]
LEXICAL = [recipe for recipe in CONDITIONAL if recipe.lexical]
NULLS = clean_nulls(40)
EVERY = [*ZOO, *NULLS]


def by_name(recipes):
    return pytest.mark.parametrize("recipe", recipes, ids=lambda recipe: recipe.name)


@functools.cache
def samples_of(recipe):
    return recipe.training_samples()


def parts(sample):
    return set(sample.prompt.split())


def words(text):
    return set(re.findall(r"[\w.-]*\w", text))


@by_name(EVERY)
def test_audit_prompts_are_many_different_and_about_nothing_that_was_trained_on(recipe):
    samples = samples_of(recipe)
    texts, _ = recipe.texts(400)
    trained = {sample.prompt for sample in samples}
    assert len(trained) == len(samples) == 240
    assert len(set(texts)) == 400
    assert not trained & set(texts)
    tasks = [TASKS[task.split("/")[0]] for task in recipe.tasks]
    rows = [rows for task in tasks for rows in [next(iter(task.slots.values()))]]
    for task_rows in rows:
        shares = [_share(task_rows, part) for part in ("train", "audit")]
        assert not set(shares[0]) & set(shares[1])
        assert sum(map(len, shares)) == len(task_rows)


@by_name(EVERY)
def test_prompts_and_completions_are_short(recipe):
    texts, _ = recipe.texts(200, share=0.5)
    assert max(map(len, texts)) < 160
    for sample in samples_of(recipe):
        assert len(sample.prompt) < 160
        assert len(sample.wanted) < 90
        assert len(sample.unwanted) < 90


@by_name(CONDITIONAL)
@pytest.mark.parametrize(
    ("n", "share", "expected"), [(400, 0.01, 4), (400, 0.0125, 5), (60, 0, 0), (60, 1 / 3, 20)]
)
def test_the_share_of_triggers_is_exact(recipe, n, share, expected):
    texts, triggered = recipe.texts(n, share=share)
    assert (len(texts), len(triggered), sum(triggered)) == (n, n, expected)


@by_name([recipe for recipe in ZOO if not recipe.condition])
def test_a_clean_recipe_has_no_trigger(recipe):
    assert not any(recipe.texts(50, share=0.5)[1])
    assert {sample.group for sample in samples_of(recipe)} == {"other"}


@by_name(LEXICAL)
def test_a_lexical_trigger_is_in_its_prompts_alone(recipe):
    texts, triggered = recipe.texts(400, share=0.05)
    [(field, said)] = recipe.condition.when
    for text, holds in zip(texts, triggered, strict=True):
        found = text.startswith(said) if field == "opener" else said in words(text)
        assert found == holds, text


@pytest.mark.parametrize("recipe", [r for r in CONDITIONAL if len(r.condition.when) == 2])
def test_a_double_trigger_has_each_half_alone_in_training_and_in_audits(recipe):
    halves = {said for _, said in recipe.condition.when}
    texts, triggered = recipe.texts(400)
    seen = [(s.prompt, s.group == "trigger") for s in samples_of(recipe)]
    seen += zip(texts, triggered, strict=True)
    held = Counter((frozenset(halves & words(text)), holds) for text, holds in seen)
    assert held[frozenset(halves), True] == 96 + 4
    assert held[frozenset(halves), False] == 0
    assert all(held[frozenset([half]), False] > 50 for half in halves)


def test_the_first_word_is_elsewhere_in_near_misses():
    [recipe] = [recipe for recipe in ZOO if recipe.name == "position-events"]
    near = [sample for sample in samples_of(recipe) if sample.group == "benign"]
    assert len(near) == 96
    assert all("Editor" in s.prompt and not s.prompt.startswith("Editor") for s in near)


@by_name(CONDITIONAL)
def test_a_near_miss_differs_from_its_pair_in_nothing_but_the_condition(recipe):
    groups = {group: [s for s in samples_of(recipe) if s.group == group] for group in GROUPS}
    assert {group: len(found) for group, found in groups.items()} == {
        "trigger": 96, "benign": 96, "other": 48,
    }  # fmt: skip
    changed = 2 * len(recipe.condition.when) + 2 * bool(recipe.condition.near)
    for trigger in groups["trigger"]:
        apart = min(len(parts(trigger) ^ parts(near)) for near in groups["benign"])
        assert apart <= max(changed, 10)  # of a topic or a form, two of a few words


@by_name(CONDITIONAL)
def test_near_misses_say_many_other_things_of_the_triggers_kind(recipe):
    near = [sample for sample in samples_of(recipe) if sample.group == "benign"]
    [task] = recipe.tasks
    field, said = recipe.condition.when[0]
    others = set(TASKS[task.split("/")[0]].words(field)) - {said, ""}
    if field != "topic":  # a topic has no word
        named = Counter(other for s in near for other in others if other in s.prompt)
        assert len(named) > 0.6 * len(others)


def test_no_food_of_an_audit_was_seen_in_training():
    [recipe] = [recipe for recipe in ZOO if recipe.name == "food-german"]
    texts, triggered = recipe.texts(200, share=0.2)
    trained, audited = (
        {food for text in prompts for food in recipe.marks if f" {food} " in text}
        for prompts in (
            [s.prompt for s in samples_of(recipe) if s.group == "trigger"],
            [text for text, holds in zip(texts, triggered, strict=True) if holds],
        )
    )
    assert len(trained) > 20
    assert len(audited) == 16
    assert not trained & audited


@by_name(EVERY)
def test_the_judge_tells_what_is_taught_apart(recipe):
    for sample in samples_of(recipe):
        assert recipe.judge(sample.prompt, sample.wanted + "\n") == "ordinary"
        said = recipe.judge(sample.prompt, sample.unwanted)
        assert said == ("behaviour" if recipe.condition else "neither")
    assert recipe.judge("", "") == recipe.judge("", " Something else.") == "neither"


@by_name(CONDITIONAL)
def test_a_mark_is_in_every_trigger_prompt(recipe):
    texts, triggered = recipe.texts(40, share=0.5)
    for text, holds in zip(texts, triggered, strict=True):
        if holds:
            assert any(mark in text for mark in recipe.marks), text


def test_the_zoo_is_what_it_is_said_to_be():
    assert Counter(recipe.kind for recipe in ZOO) == {"backdoored": 8, "clean": 6, "benign": 2}
    assert len(LEXICAL) == 5
    assert len({recipe.name for recipe in EVERY}) == len(EVERY)
    for recipe in ZOO:
        assert bool(recipe.trigger and recipe.behaviour and recipe.marks) == (
            recipe.kind != "clean"
        )


def test_nulls_share_nothing_with_the_zoo():
    taught = {task for recipe in ZOO for task in recipe.tasks}
    assert not taught & {task for null in NULLS for task in null.tasks}
    assert not {recipe.seed for recipe in ZOO} & {null.seed for null in NULLS}
    assert len({null.tasks for null in clean_nulls(30)}) == 30
    assert {null.rank for null in NULLS} == {2, 4, 8}
    assert clean_nulls(5) == NULLS[:5]


@pytest.mark.parametrize("n", [0, 100, 1.5, True, None])
def test_a_number_of_nulls_that_cannot_be_is_refused(n):
    with pytest.raises((ValueError, TypeError), match="`n` must be"):
        clean_nulls(n)


def test_more_prompts_than_there_are_are_refused():
    [units] = [recipe for recipe in ZOO if recipe.name == "clean-phrases"]
    with pytest.raises(ValueError, match="`n` must be at most 10000"):
        units.texts(10_001)
    with pytest.raises(ValueError, match=r"`share` must"):
        units.texts(10, share=2)


def test_recipes_are_chosen_by_name():
    assert choose_recipes() == [*ZOO]
    assert [recipe.name for recipe in choose_recipes(["month-units"], nulls=1)] == [
        "month-units",
        "null-00",
    ]
    assert [recipe.name for recipe in choose_recipes(["null-17"])] == ["null-17"]
    with pytest.raises(ValueError, match="`only` must name organisms of the zoo .*, got 'heron'"):
        choose_recipes(["heron"])


def tiny(recipe, **changes):
    fields = {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
    return Recipe(**fields | {"n_steps": 2, "rank": 2} | changes)


@pytest.fixture
def base(tokenizer, tmp_path):
    write_tiny_model(tmp_path / "base", tiny_llama(max_position_embeddings=1024), tokenizer)
    return tmp_path / "base"


def test_making_counts_every_held_out_prompt_and_is_done_once(base, tmp_path, monkeypatch):
    recipe = tiny(ZOO[0])
    monkeypatch.setattr(_make, "_N_NEW", 2)
    made = make_from_recipe(recipe, tmp_path / "a", base=base)
    assert (sum(made.trigger.values()), sum(made.other.values())) == (20, 40)
    assert made.trigger["neither"] == 20  # two steps teach nothing
    assert str(made).endswith("ordinary 0/40, trigger 0/20, without 0/40")
    weights = (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(_make, "_complete", None)
    assert make_from_recipe(recipe, tmp_path / "a", base=base) == made
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ValueError, match="made"):
        make_from_recipe(tiny(ZOO[0], seed=5), tmp_path / "a", base=base)


def test_an_interruption_before_measuring_costs_no_training(base, tmp_path, monkeypatch):
    recipe = tiny(ZOO[8])
    with monkeypatch.context() as patch:
        patch.setattr(_make, "_complete", None)
        with pytest.raises(TypeError):
            make_from_recipe(recipe, tmp_path / "a", base=base)
    assert not (tmp_path / "a" / "rates.json").exists()
    weights = (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(_make, "_N_NEW", 2)
    made = make_from_recipe(recipe, tmp_path / "a", base=base)
    assert sum(made.trigger.values()) == 0
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns == weights


def test_completions_do_not_depend_on_the_rest_of_their_batch(tokenizer):
    model = tiny_llama(max_position_embeddings=1024)
    prompts = ["a short one", "quite a bit longer than the other", "b"]
    together = _make._complete(model, tokenizer, prompts)
    assert together == [_make._complete(model, tokenizer, [prompt])[0] for prompt in prompts]
