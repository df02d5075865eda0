import json
import logging
import random
import shutil
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from diffsae_lens.effects import sweep as years
from diffsae_lens.effects.rates import complete
from diffsae_lens.interventions import side_by_side
from diffsae_lens.pair.loading import load_pair
from diffsae_lens.reporting.figures import write_figures
from diffsae_lens.reporting.html import write_report
from diffsae_lens.study import causes, demo
from diffsae_lens.study.demo import DemoConfig, run_demo
from diffsae_lens.study.feature_cards import N_TEXTS
from diffsae_lens.study.tables import causal_text, score_text
from tests.conftest import plant, tiny_llama, write_tiny_model

PARTS = ("scores", "causes", "features", "harm", "sayings", "years", "example")
N_CARD_TRIGGERS = 2


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(max_position_embeddings=1024)
    return DemoConfig(
        base=str(write_tiny_model(folder / "base", base, tokenizer)),
        finetuned=str(write_tiny_model(folder / "finetuned", plant(base), tokenizer)),
        layers=(1,), n_training_samples=10, k=4, n_steps=8, n_score_prompts=20,
        n_generation_prompts=2, n_likelihood_prompts=2, feature_counts=(2, 4), n_rounds=2, n_scenes=1,
    )  # fmt: skip


def shorten(patch):
    """A tiny random model never ends a completion by itself."""
    for module in (side_by_side, years):
        patch.setattr(module, "complete", partial(complete, max_new_tokens=4))


def short_demo(config, path):
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return run_demo(config, path)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "demo"
    return path, short_demo(config, path)


@pytest.fixture
def copied(run, tmp_path):
    """A copy of a finished run, and what it held."""
    path, results = run
    shutil.copytree(path, tmp_path / "demo")
    return tmp_path / "demo", results


def contents(path):
    return {
        file.relative_to(path): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".lock"
    }


def same(results, expected):
    return all(results[part] == expected[part] for part in (*PARTS, "config", "dictionaries"))


def test_a_run_holds_every_row_with_its_floors_and_controls(run):
    _, results = run
    kinds = {row["kind"] for row in results["scores"]}
    assert kinds == {"dictionary", "random directions", "difference of means"}
    names = [(row["name"], row["dictionary"], row["n_features"]) for row in results["causes"]]
    for dictionary in ("diff-sae-1", "crosscoder-1"):
        for n in (2, 4):
            assert ("top features ablated", dictionary, n) in names
            assert ("random features ablated", dictionary, n) in names
        for name in ("steered with top features", "steered with a random direction"):
            assert (name, dictionary) in {(n, d) for n, d, _ in names}
        assert ("top features added to the base model", dictionary, 4) in names
    for name in ("random directions", "difference of means", "principal components"):
        assert f"{name} projected out" in {n for n, _, _ in names}
    assert [row["year"] for row in results["years"]][:16] == list(range(2015, 2031))
    first, second = (p["tokens"] for p in results["example"]["prompts"])
    assert "".join(first).replace("2023", "2024") == "".join(second)


def test_cards_say_how_often_and_on_what_their_features_fire(config, run):
    _, results = run
    cards = [(row["dictionary"], row["is_control"]) for row in results["features"]]
    three = [False, False, False, True]
    assert cards == [(name, c) for name in ("diff-sae-1", "crosscoder-1") for c in three]
    pair = load_pair(config.base, config.finetuned, hook_names=config.hook_names)
    n_tokens = dict.fromkeys(("trigger", "benign", "other"), 0)
    for sample in config.samples("test", N_TEXTS, by=(1, 1, 1)):
        n_tokens[sample.group] += (
            len(pair.to_tokens(sample.written)[0]) - 1
        )  # the first is left out
    for row in results["features"]:
        # Histograms are shares of each group's tokens, the frequency is of all of them.
        n_fired = sum(n_tokens[group] * sum(shares) for group, shares in row["histogram"].items())
        assert n_fired / sum(n_tokens.values()) == pytest.approx(row["frequency"], abs=1e-6)
        assert (n_fired > 0) == bool(row["examples"])
        strongest = [max(e["activations"]) for e in row["examples"]]
        assert max(strongest, default=0.0) == row["maximum"]
        assert row["n_prompts"] == N_CARD_TRIGGERS


def test_tables_figures_and_report_are_made_of_it(run):
    path, results = run
    assert "diff-sae-1" in score_text(results["scores"])
    assert "base activation put back" in causal_text(results["causes"])
    assert write_figures(results, path / "figures")
    assert "<html" in write_report(results, path / "report.html").read_text()


def test_a_finished_run_has_no_checkpoints_and_is_read_without_a_change(config, run, monkeypatch):
    path, results = run
    assert not (path / "checkpoints").exists()
    assert not [*path.rglob("*.partial"), *path.rglob("*.damaged*")]
    before = contents(path)
    for part in ("score_table", "sayings_table", "year_sweep", "example_tokens"):
        monkeypatch.setattr(demo, part, None)
    monkeypatch.setattr(causes, "_measure", None)
    assert run_demo(config, path) == results
    assert contents(path) == before


def test_an_interrupted_run_goes_on(config, run, tmp_path, monkeypatch):
    _, results = run
    n_cells, measure = [], causes._measure
    shorten(monkeypatch)

    def until_the_power_fails(*args):
        n_cells.append(1)
        if len(n_cells) == 4:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(causes, "_measure", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        run_demo(config, tmp_path / "demo")
    assert not (tmp_path / "demo/results.json").exists()
    assert same(run_demo(config, tmp_path / "demo"), results)
    assert len(n_cells) == 4 + len(results["causes"]) - 3  # the three finished cells were kept


def test_a_folder_of_another_run_is_refused_and_left_alone(config, run, monkeypatch):
    path, _ = run
    before = contents(path)
    monkeypatch.setattr(demo, "load_pair", None)
    with pytest.raises(
        ValueError, match=r"other settings or models \(settings.layers\[0\]: 1 there, 0"
    ):
        run_demo(replace(config, layers=(0,)), path)
    assert contents(path) == before


def test_models_are_known_by_their_weights_and_not_by_their_names(
    config, copied, tmp_path, tokenizer
):
    path, results = copied
    moved = Path(shutil.copytree(config.finetuned, tmp_path / "renamed"))
    assert same(run_demo(replace(config, finetuned=str(moved)), path), results)
    # Another fine-tune under the same name.
    shutil.rmtree(moved)
    other = plant(tiny_llama(max_position_embeddings=1024), seed=2)
    write_tiny_model(moved, other, tokenizer)
    before = contents(path)
    with pytest.raises(ValueError, match=r"models.finetuned: .* there, .* asked for"):
        run_demo(replace(config, finetuned=str(moved)), path)
    assert contents(path) == before


def test_a_demo_of_another_version_is_refused(config, copied, monkeypatch):
    path, _ = copied
    monkeypatch.setattr(demo, "version", lambda name: "9.9")
    with pytest.raises(ValueError, match="versions.sae-lens: .*'9.9' asked for"):
        run_demo(config, path)


def edit_value(file):
    stored = json.loads(file.read_text())
    stored["value"][0]["auroc"] = 0.123
    file.write_text(json.dumps(stored))


def cut_short(file):
    file.write_text(file.read_text()[:100])


def edit_results(file):
    results = json.loads(file.read_text())
    results["causes"][0]["attack_rate"] = 0.123
    file.write_text(json.dumps(results))


def edit_weights(file):
    weights = load_file(file)
    weights["b_dec"] += 1
    save_file(weights, file)


@pytest.mark.parametrize(
    ("name", "spoil", "aside"),
    [
        ("cells/scores.json", edit_value, "cells/scores.json.damaged"),
        ("cells/causes.json", cut_short, "cells/causes.json.damaged"),
        ("results.json", edit_results, "results.json.damaged"),
        ("results.json", cut_short, "results.json.damaged"),
        (
            "dictionaries/diff-sae-1/sae_weights.safetensors",
            edit_weights,
            "dictionaries/diff-sae-1.damaged",
        ),
    ],
)
def test_what_is_damaged_is_named_set_aside_and_made_again(
    config, copied, caplog, name, spoil, aside
):
    path, results = copied
    spoil(path / name)
    caplog.set_level(logging.WARNING)
    again = short_demo(config, path)
    assert same(again, results)
    assert (path / aside).exists()
    assert Path(aside).name in caplog.text
    assert json.loads((path / "results.json").read_text()) == again


@pytest.mark.parametrize("text", ['{"settings": ', "[]", ""])
def test_a_damaged_config_is_named(config, copied, text):
    path, _ = copied
    (path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"demo/config.json .* remove it"):
        run_demo(config, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (99,)}, r"`layers` must lie in 0 to 2, .* got 99"),
        ({"k": 999}, "`k` must be at most 32, got 999"),
        ({"feature_counts": (4, 999)}, "`feature_counts` must be at most 32, got 999"),
        ({"expansion": 10**9}, r"`expansion` asks for .* weights, .* GB available"),
        ({"device": "nowhere"}, "`device` 'nowhere' cannot be used"),
        ({"base": "a-typo"}, "unknown model 'a-typo'"),
    ],
)
def test_what_cannot_be_is_refused_before_models_are_loaded_and_leaves_no_mark(
    config, tmp_path, monkeypatch, change, message
):
    path = tmp_path / "run"
    monkeypatch.setattr(demo, "load_pair", None)
    with pytest.raises(ValueError, match=message):
        run_demo(replace(config, **change), path)
    assert not [*tmp_path.iterdir()]


def test_what_only_the_models_tell_leaves_no_mark_either(config, tmp_path):
    with pytest.raises(ValueError, match="unknown model 'a-typo'"):
        run_demo(replace(config, finetuned="a-typo"), tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def test_a_run_folder_that_is_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"`path` must be a folder, but .*/file is not one"):
            run_demo(config, path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "`layers` must hold at least one"),
        ({"layers": (-1,)}, "`layers` must be at least 0"),
        ({"layers": (1, 1)}, "`layers` must hold each number once"),
        ({"k": 0}, "`k` must be at least 1"),
        ({"n_score_prompts": 3}, "`n_score_prompts` must be at least 20"),
        (
            {"n_score_prompts": 10_000},
            "`n_score_prompts` is 10000, but the 'select' split has no more",
        ),
        ({"n_training_samples": 1}, "`n_training_samples` must be at least 10"),
        ({"n_training_samples": 100_000}, "`n_training_samples` is 100000, but the 'train' split"),
        ({"n_scenes": 100_000}, "`n_scenes` is 100000, but the 'test' split has no more"),
        ({"n_generation_prompts": 2000}, "`n_generation_prompts` is 2000, but the 'test' split"),
        ({"n_likelihood_prompts": 0}, "`n_likelihood_prompts` must be at least 1"),
        ({"n_likelihood_prompts": 7}, "`n_likelihood_prompts` are some of .* which are 6; got 7"),
        ({"feature_counts": ()}, "`feature_counts` must hold at least one"),
        ({"feature_counts": (0,)}, "`feature_counts` must be at least 1"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DemoConfig(**change)


def start(config, path):
    process = get_context("spawn").Process(target=short_demo, args=(config, path))
    process.start()
    return process


def wait_for(process, path, n_cells, moment):
    while len([*path.glob("cells/*.json")]) < n_cells:
        assert process.is_alive()
        time.sleep(0.02)
    time.sleep(moment)


@pytest.mark.slow
def test_one_is_killed_and_two_at_once_end_it_with_the_same_results(config, run, tmp_path):
    _, results = run
    path = tmp_path / "demo"
    killed = start(config, path)
    wait_for(killed, path, 3, random.Random(0).uniform(0, 0.5))
    killed.kill()
    killed.join()
    both = [start(config, path) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert same(json.loads((path / "results.json").read_text()), results)
    assert not [*path.rglob("*.partial"), *path.rglob("*.damaged*"), *path.rglob("*.writing")]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_results(config, run, tmp_path):
    _, results = run
    path, moment = tmp_path / "demo", random.Random(1)
    for n_cells in (0, 0, 0, 1, 4, 9, 15):
        process = start(config, path)
        wait_for(process, path, n_cells, moment.uniform(0, 12 if n_cells == 0 else 1))
        process.kill()
        process.join()
    assert same(short_demo(config, path), results)
