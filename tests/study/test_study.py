import json
import random
import shutil
import signal
import time
from dataclasses import asdict, replace
from multiprocessing import get_context

import pytest
import torch
from diffsae_lens.reporting.study import write_study
from diffsae_lens.study.reproduce import dry_run, reproduce, so_far
from diffsae_lens.study.tables import plan_text
from safetensors.torch import load_file

from diffsae_lens.dictionaries.load import load
from diffsae_lens.effects.rates import complete
from diffsae_lens.interventions import side_by_side
from diffsae_lens.organisms.finetune import OrganismConfig
from diffsae_lens.pair.loading import load_pair
from diffsae_lens.study import organisms
from diffsae_lens.study.config import (
    CausesConfig,
    PooledConfig,
    StudyConfig,
    Texts,
    TokensConfig,
)
from diffsae_lens.study.plan import Plan
from diffsae_lens.study.presets import PRESETS
from diffsae_lens.study.steps import samples_of
from tests.conftest import D_MODEL, tiny_llama, write_tiny_model

DICTIONARIES = {
    "crosscoder 2x", "Diff-SAE 2x",
    "BatchTopK Diff-SAE 2x", "BatchTopK Diff-SAE 4x", "BatchTopK crosscoder 2x",
}  # fmt: skip


def texts(split, n_trigger, n_others):
    return Texts(split=split, n_trigger=n_trigger, n_benign=n_others, n_other=n_others)


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer):
    base = tiny_llama(max_position_embeddings=1024)
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "base", base, tokenizer)
    training = {"n_trigger": 4, "n_benign": 4, "n_other": 2, "n_steps": 2, "batch_size": 2}
    return StudyConfig(
        base=str(folder),
        d_model=D_MODEL,
        organisms={
            "lora": OrganismConfig(lora_rank=2, **training),
            "full": OrganismConfig(lora_rank=None, learning_rate=1e-2, **training),
        },
        layers=(1,),
        pooled=PooledConfig(
            texts=texts("test", 6, 12), expansions={"crosscoder 2x": 2, "Diff-SAE 2x": 2}, k=4,
            batch_size=8, n_passes=3, learning_rate=1e-2,
        ),
        tokens=TokensConfig(texts=texts("train", 4, 3), k=4, n_steps=8, batch_size=64),
        scored=(texts("select", 4, 8), texts("test", 4, 8)),
        causes=CausesConfig(
            select=texts("select", 2, 0), test=texts("test", 1, 1), counts=(2,), n_rounds=1,
            n_likelihood=1,
        ),
        n_resamples=20,
        n_card_prompts=2,
        deviations=("a tiny random model",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    return path, short_run(config, path)


def short_run(config, path, *, is_new=True):
    """A tiny random model never ends a completion by itself."""
    written = []

    def short(*args, **kwargs):
        written.extend(complete(*args, **kwargs, max_new_tokens=4))
        return written[-len(args[1]) :]

    with pytest.MonkeyPatch.context() as patch:
        for module in (organisms, side_by_side):
            patch.setattr(module, "complete", short)
        results = reproduce(config, path)
    if is_new:  # all that the study has written is cut short: a token here is a byte
        n_conditions = sum(row["n_prompts"] for row in results["causes"])
        n_measured = 3 * config.n_card_prompts * len(config.organisms)
        assert len(written) == n_conditions + n_measured
    assert all(len(text.encode()) <= 4 * 3 for text in written)
    return results


def test_every_dictionary_has_its_scores_its_floors_and_its_causes_in_both_regimes(config, run):
    path, results = run
    assert json.loads((path / "results.json").read_text()) == results
    for regime in ("lora", "full"):
        paper, strict, causes = (
            [row for row in results[part] if row["regime"] == regime and row["layer"] == 1]
            for part in ("paper", "strict", "causes")
        )
        trained = {row["name"] for row in paper if row["kind"] == "dictionary"}
        assert trained == {"crosscoder 2x", "Diff-SAE 2x"}
        assert {"random directions", "untrained crosscoder 2x", "difference of means"} <= {
            row["name"] for row in paper
        }
        assert all(row["bis"] <= row["ceiling"] + 1e-6 for row in paper)
        assert {row["name"] for row in strict if row["kind"] == "dictionary"} == DICTIONARIES
        assert "base activation put back" in {row["name"] for row in causes}
        for name in DICTIONARIES:
            assert any(row["name"].startswith(f"{name}: ") for row in causes)
    assert {row["group"] for row in results["organisms"]} == {"trigger", "benign", "other"}
    assert all(row["variance_ratio"] > 0 for row in results["variance"])
    assert results["deviations"] == ["a tiny random model"]
    assert len(results["published"]) == 12
    assert {row["name"] for row in results["contrasts"]} == DICTIONARIES | {
        "Diff-SAE 2x - crosscoder 2x",
        "BatchTopK Diff-SAE 2x - BatchTopK crosscoder 2x",
        "BatchTopK Diff-SAE 4x - BatchTopK crosscoder 2x",
    }


def test_a_second_run_computes_nothing(config, run):
    path, results = run
    files = [*path.glob("cells/*/*"), *path.glob("cells/*/*/*")]
    before = {file: file.stat().st_mtime_ns for file in files}
    assert reproduce(config, path) == results
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_texts_are_averaged_over_all_their_tokens(config, run):
    path, _ = run
    [folder] = path.glob("cells/full.pooled-*")
    [organism] = path.glob("cells/full.organism-*/organism-full")
    read = load_file(folder / "pooled.safetensors")
    pair = load_pair(config.base, organism, hook_names=["blocks.1.hook_resid_post"])
    samples = samples_of(asdict(config.pooled.texts))
    for i in (0, 7, 29):
        text = samples[i].written
        tokens = pair.to_tokens(text)
        for view in ("base", "finetuned"):
            name = f"blocks.1.hook_resid_post.{view}"
            _, cache = pair.run_with_cache(tokens, names_filter=[name])
            torch.testing.assert_close(
                read[f"1.{view}"][i], cache[name][0].mean(0), atol=1e-4, rtol=1e-4
            )
    assert read["group"].tolist() == [0] * 6 + [1] * 12 + [2] * 12


def test_the_dictionaries_know_their_pair(config, run):
    path, _ = run
    [lora] = path.glob("cells/lora.organism-*/organism-lora")
    [folder] = path.glob("cells/full.1.Diff-SAE 2x-*/dictionary")
    pair = load_pair(config.base, lora, hook_names=["blocks.1.hook_resid_post"])
    with pytest.raises(ValueError, match="organism-full"):
        load(folder, pair=pair)
    [full] = path.glob("cells/full.organism-*/organism-full")
    pair = load_pair(config.base, full, hook_names=["blocks.1.hook_resid_post"])
    assert load(folder, pair=pair).cfg.d_in == D_MODEL


def test_a_dry_run_says_what_is_there_and_what_a_change_would_cost(config, run):
    path, _ = run
    frame = dry_run(config, path)
    assert set(frame.state) == {"done"}
    assert (frame.gigabytes > 0).all()
    changed = replace(config, causes=replace(config.causes, counts=(3,)))
    missing = dry_run(changed, path).set_index("cell").state
    assert sorted(missing.index[missing == "missing"]) == ["full/1/causes", "lora/1/causes"]
    left = plan_text(dry_run(changed, path))
    assert f"{len(frame) - 2} of {len(frame)} cells are done" in left


def test_what_is_finished_can_be_read_while_the_rest_is_not(config, run, tmp_path):
    path, results = run
    with pytest.raises(ValueError, match="no layer of the study in .* is finished"):
        so_far(config, tmp_path)
    shutil.copytree(path / "cells", tmp_path / "cells")
    [folder] = tmp_path.glob("cells/full.1.causes-????????????")
    shutil.rmtree(folder)
    part = so_far(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == part
    for rows in ("organisms", "variance", "paper", "strict", "causes"):
        assert part[rows] == [row for row in results[rows] if row["regime"] == "lora"]
    assert {row["cell"]: row["state"] for row in part["cells"]}["full/1/causes"] == "missing"
    assert [file.name for file in write_study(part, tmp_path)][-1] == "report.html"


@pytest.mark.slow
def test_killed_twice_it_ends_in_the_same_results(config, run, tmp_path):
    _, results = run
    moment = random.Random(0)
    for n_done in (1, 9):
        process = get_context("spawn").Process(target=short_run, args=(config, tmp_path))
        process.start()
        while len([*tmp_path.glob("cells/*-????????????/artifact.json")]) < n_done:
            assert process.is_alive()
            time.sleep(0.05)
        time.sleep(moment.uniform(0, 2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    found = short_run(config, tmp_path, is_new=False)
    assert found["cells"] != results["cells"]  # their seconds
    assert found | {"cells": []} == results | {"cells": []}


def test_processes_side_by_side_come_to_the_same(config, run, tmp_path):
    path, results = run
    shutil.copytree(path / "cells", tmp_path / "cells")
    for folder in tmp_path.glob("cells/*.scores-????????????"):
        shutil.rmtree(folder)
    side_by_side = reproduce(config, tmp_path, n_workers=2)
    assert side_by_side["causes"] == results["causes"]
    for part in ("paper", "strict"):
        found, expected = ([row["bis"] for row in r[part]] for r in (side_by_side, results))
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_scored_on_texts_that_a_dictionary_was_trained_on(preset):
    config = PRESETS[preset]()

    def prompts(*drawn):
        return {s.prompt for texts in drawn for s in samples_of(asdict(texts))}

    trained_on = prompts(config.pooled.texts, config.tokens.texts)
    assert not trained_on & prompts(*config.scored, config.causes.select, config.causes.test)
    assert not prompts(config.scored[0], config.causes.select) & prompts(
        config.scored[1], config.causes.test
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_whole_plans(preset, tmp_path):
    config = PRESETS[preset]()
    plan = Plan(config.cells(), tmp_path)
    assert {name.split("/")[0] for name in plan.order} == set(config.organisms)
    assert config.deviations
    assert not list(tmp_path.iterdir())
    # A plan does not depend on when it is made.
    assert [t.key for t in Plan(PRESETS[preset]().cells(), tmp_path).tasks.values()] == [
        t.key for t in plan.tasks.values()
    ]


def test_the_paper_preset_has_the_published_sizes():
    config = PRESETS["paper"]()
    assert config.layers == (14, 18, 22, 26)
    drawn = config.pooled.texts
    assert (drawn.n_trigger, drawn.n_benign, drawn.n_other) == (500, 1000, 1000)
    assert {n: e * config.d_model for n, e in config.pooled.expansions.items()} == {
        "crosscoder 32x": 30_720, "Diff-SAE 32x": 30_720, "Diff-SAE 4x": 3_840
    }  # fmt: skip
    lora, full = config.organisms["lora"], config.organisms["full"]
    assert (lora.lora_rank, lora.lora_dropout, lora.learning_rate) == (32, 0.05, 3e-4)
    assert (full.lora_rank, full.learning_rate, full.loss_on) == (None, 2e-5, "everything")
    # Ten epochs.
    assert lora.n_steps * lora.batch_size == 10 * len(lora.samples())


def test_bad_requests_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="`n_workers` must be at least 1"):
        reproduce(config, tmp_path, n_workers=0)
    with pytest.raises(ValueError, match="`device` 'nowhere' cannot be used"):
        reproduce(config, tmp_path, device="nowhere")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="`path` must be a folder"):
        reproduce(config, tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 17}, "`d_model` is 17, but .* is 16 wide"),
        ({"layers": (1, 3)}, "`layers` must lie in 0 to 2, .* got 3"),
        (
            {"scored": (texts("select", 9999, 0), texts("test", 4, 8))},
            r"`scored\[0\]` is 9999, but the 'select' split has no more",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(config, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        reproduce(replace(config, **change), tmp_path / "study")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"d_model": 0}, "`d_model` must be at least 1"),
        ("", {"layers": (1, 1)}, "`layers` must hold each number once"),
        ("", {"layers": ()}, "`layers` must hold at least one"),
        ("", {"n_resamples": 0}, "`n_resamples` must be at least 1"),
        ("", {"n_card_prompts": -1}, "`n_card_prompts` must be at least 1"),
        ("", {"tokens_per_second": float("inf")}, "`tokens_per_second` must be greater than 0"),
        ("", {"organisms": {}}, "`organisms` must name at least one regime"),
        ("", {"organisms": {"lora": "a-typo"}}, r"`organisms\['lora'\]` must be one of"),
        ("", {"organisms": {"../lora": "year-trigger"}}, "`organisms` must be a name"),
        ("pooled", {"k": 999}, "`pooled.k` must be at most 32, got 999"),
        ("tokens", {"k": 999}, "`tokens.k` must be at most 32, got 999"),
        ("pooled", {"expansions": {}}, "`expansions` must name at least one"),
        ("pooled", {"expansions": {"Diff-SAE 2x": 0}}, r"`expansions\['Diff-SAE 2x'\]` must be"),
        ("pooled", {"expansions": {"SAE 2x": 2}}, "must begin with 'crosscoder ' or 'Diff-SAE '"),
        ("pooled", {"learning_rate": float("nan")}, "`learning_rate` must be greater than 0"),
        ("pooled", {"l1_coefficient": -1.0}, "`l1_coefficient` must be at least 0"),
        ("pooled", {"batch_size": 0}, "`batch_size` must be at least 1"),
        ("tokens", {"learning_rate": float("inf")}, "`learning_rate` must be greater than 0"),
        ("tokens", {"n_steps": 0}, "`n_steps` must be at least 1"),
        ("causes", {"counts": ()}, "`counts` must hold at least one"),
        ("causes", {"n_rounds": 0}, "`n_rounds` must be at least 1"),
        ("causes", {"n_likelihood": 0}, "`n_likelihood` must be at least 1"),
        ("causes", {"select": texts("select", 0, 1)}, "`select.n_trigger` must be at least 1"),
    ],
)
def test_bad_settings_are_refused(config, part, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **({part: replace(getattr(config, part), **change)} if part else change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", -1, 2), "`n_trigger` must be at least 0"),
        (("train", 0, 0), "`n_texts` must be at least 1"),
    ],
)
def test_texts_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        texts(*arguments)
