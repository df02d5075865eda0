from dataclasses import replace

import pytest

from diffsae_lens.study import DictionarySpec, Draw
from tests.study.tiny import draw


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"layers": (1, 1)}, "`layers` must hold each number once"),
        ("", {"layers": ()}, "`layers` must hold at least one"),
        ("", {"acted_on": (2,)}, "`acted_on` must be one of 0, 1, got 2"),
        ("", {"features": None}, "`causes` needs `features`, which is None"),
        ("", {"scores": None}, "`sweep` needs `scores`, which is None"),
        ("", {"pooled": None, "tokens": None}, "`scores` needs `pooled` or `tokens`"),
        ("models", {"d_model": 0}, "`d_model` must be at least 1"),
        ("models", {"n_measured": -1}, "`n_measured` must be at least 1"),
        (
            "models",
            {"tokens_per_second": float("inf")},
            "`tokens_per_second` must be greater than 0",
        ),
        ("models", {"finetuned": {}}, "`finetuned` is empty"),
        ("models", {"finetuned": {"../lora": "year-trigger"}}, "`finetuned` must be a name"),
        ("scores", {"n_resamples": 0}, "`n_resamples` must be at least 1"),
        ("scores", {"protocols": ("paper",)}, "`protocols` must hold 'strict'"),
        ("pooled", {"dictionaries": ()}, "`dictionaries` is empty"),
        ("pooled", {"learning_rate": float("nan")}, "`learning_rate` must be greater than 0"),
        ("pooled", {"l1_coefficient": -1.0}, "`l1_coefficient` must be at least 0"),
        ("pooled", {"batch_size": 0}, "`batch_size` must be at least 1"),
        ("tokens", {"learning_rate": float("inf")}, "`learning_rate` must be greater than 0"),
        ("tokens", {"n_steps": 0}, "`n_steps` must be at least 1"),
        ("features", {"counts": ()}, "`counts` must hold at least one"),
        ("features", {"n_rounds": 0}, "`n_rounds` must be at least 1"),
        ("features", {"select": draw("select", 0, 1)}, "`select.n_trigger` must be at least 1"),
        ("causes", {"n_likelihood": 0}, "`n_likelihood` must be at least 1"),
        ("causes", {"test": draw("test", 0, 1)}, "`test.n_trigger` must be at least 1"),
        ("side_effects", {"texts": draw("test", 1, 1)}, "`texts.n_trigger` must be at most 0"),
        ("sayings", {"n_scenes": 0}, "`n_scenes` must be at least 1"),
    ],
)
def test_bad_settings_are_refused(config, part, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **({part: replace(getattr(config, part), **change)} if part else change))


def test_dictionaries_that_cannot_be_are_refused(config, no_shape_checks):
    with pytest.raises(ValueError, match="`expansion` must be at least 1"):
        DictionarySpec(kind="Diff-SAE", expansion=0)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        DictionarySpec(kind="SAE", expansion=2)
    twice = (*config.pooled.dictionaries, *config.pooled.dictionaries)
    with pytest.raises(ValueError, match="`dictionaries` must hold each one once"):
        replace(config.pooled, dictionaries=twice)


@pytest.mark.parametrize(
    ("counts", "message"),
    [((-1, 2), "`n_trigger` must be at least 0"), ((0, 0), "`n_samples` must be at least 1")],
)
def test_samples_that_cannot_be_drawn_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        Draw(split="train", n_trigger=counts[0], n_benign=counts[1])
