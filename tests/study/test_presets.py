import pytest

from diffsae_lens.organisms._behaviour import get_behaviour
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.study import ModelSpec, StudyConfig
from diffsae_lens.study._plan import Plan
from diffsae_lens.study._presets import PRESETS, DemoOptions, demo
from diffsae_lens.study._stages import cells_of


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_scored_on_texts_that_a_dictionary_was_trained_on(preset):
    config = PRESETS[preset]()
    behaviour = get_behaviour(config.behaviour_name)

    def prompts(*names):
        draws = config.draws()
        return {s.prompt for n in names if n in draws for s in draws[n].samples(behaviour)}

    trained_on = prompts("pooled.texts", "tokens.texts")
    select = prompts(
        "scores.select", "features.select", "causes.directions", "causes.steering.scales"
    )
    test = prompts("scores.test", "causes.test", "cards.texts", "side_effects.texts")
    assert not trained_on & (select | test)
    assert not select & test
    known = {name for name in config.draws() if not name.startswith("models")}
    assert known <= {
        "pooled.texts", "tokens.texts", "scores.select", "features.select", "causes.directions",
        "causes.steering.scales", "scores.test", "causes.test", "cards.texts", "side_effects.texts",
    }  # fmt: skip


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "demo"])
def test_presets_are_whole_plans(preset, tmp_path):
    config = PRESETS[preset]()
    cells = cells_of(config)
    plan = Plan(cells, tmp_path)
    assert {cell.config.regime for cell in cells} == set(config.models.organisms)
    assert {name.split("/")[0] for name in plan.order} == set(config.models.organisms)
    assert config.deviations
    assert not list(tmp_path.iterdir())


def test_the_paper_preset_has_the_published_sizes():
    config = PRESETS["paper"]()
    assert config.layers == (14, 18, 22, 26)
    drawn = config.pooled.texts
    assert (drawn.n_trigger, drawn.n_benign, drawn.n_other) == (500, 1000, 1000)
    d_model = config.models.d_model
    assert {n: d.expansion * d_model for n, d in config.pooled.by_name.items()} == {
        "crosscoder 32x": 30_720, "Diff-SAE 32x": 30_720, "Diff-SAE 4x": 3_840
    }  # fmt: skip
    lora, full = config.models.organisms["lora"], config.models.organisms["full"]
    assert (lora.lora_rank, lora.lora_dropout, lora.learning_rate) == (32, 0.05, 3e-4)
    assert (full.lora_rank, full.learning_rate, full.loss_on) == (None, 2e-5, "everything")
    # Ten epochs.
    assert lora.n_steps * lora.batch_size == 10 * len(lora.samples())


def test_the_behaviour_is_the_organisms():
    assert demo().behaviour_name == "year-trigger"
    assert demo(DemoOptions(finetuned="clean-control")).behaviour_name == "year-trigger"
    assert PRESETS["paper"]().behaviour_name == OrganismConfig().behaviour
    silent = (
        "`behaviour` must be given, since 'someone/a-model' does not say what .*'year-trigger' or"
    )
    with pytest.raises(ValueError, match=silent):
        demo(DemoOptions(finetuned="someone/a-model"))
    several = {"a": OrganismConfig(), "b": OrganismConfig(behaviour="staging-trigger")}
    models = ModelSpec(base="smollm2-135m", finetuned=several)
    with pytest.raises(ValueError, match="trained for staging-trigger and year-trigger; give"):
        StudyConfig(models=models, layers=(14,))
    named = DemoOptions(finetuned="someone/a-model", behaviour="year-trigger")
    assert demo(named).behaviour_name == "year-trigger"
    with pytest.raises(ValueError, match="`behaviour` must be one of"):
        demo(DemoOptions(behaviour="a-typo"))
    with pytest.raises(ValueError, match="cannot be imported"):
        demo(DemoOptions(behaviour="nothing.there:QUACKS"))
    with pytest.raises(TypeError, match="must name a Behaviour, got a str"):
        demo(DemoOptions(behaviour="tests.study.tiny:HERE"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "`layers` must hold at least one"),
        ({"layers": (-1,)}, "`layers` must be at least 0"),
        ({"layers": (1, 1)}, "`layers` must hold each number once"),
        ({"k": 0}, "`k` must be at least 1"),
        ({"n_score_prompts": 3}, "`n_score_prompts` must be at least 20"),
        ({"n_training_samples": 1}, "`n_training_samples` must be at least 10"),
        ({"n_likelihood_prompts": 0}, "`n_likelihood_prompts` must be at least 1"),
        ({"n_likelihood_prompts": 21}, "`n_likelihood_prompts` must be at most 20, got 21"),
        ({"feature_counts": ()}, "`feature_counts` must hold at least one"),
        ({"feature_counts": (0,)}, "`feature_counts` must be at least 1"),
    ],
)
def test_bad_options_of_the_demo_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        demo(DemoOptions(**change))
