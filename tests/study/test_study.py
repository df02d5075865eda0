import json
import logging
import random
import shutil
import signal
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from diffsae_lens.dictionaries._load import load
from diffsae_lens.organisms._behaviour import get_behaviour
from diffsae_lens.pair._loading import load_pair
from diffsae_lens.study import _causes as causes
from diffsae_lens.study import _cells as cells
from diffsae_lens.study import _step as step
from diffsae_lens.study._config import StudyConfig
from diffsae_lens.study._plan import Plan
from diffsae_lens.study._results import ROWS, Results
from diffsae_lens.study._run import dry_run, so_far
from diffsae_lens.study._run import run as run_study
from diffsae_lens.study._stages import cells_of
from tests.conftest import D_MODEL, plant, tiny_llama, write_tiny_model
from tests.study.tiny import QUACKS, draw, trained_config

PUBLISHED = {"crosscoder 2x", "Diff-SAE 2x"}
USUAL = {"BatchTopK Diff-SAE 2x", "BatchTopK crosscoder 2x"}


def without_costs(results):
    return replace(results, cells=(), versions={})


def contents(path):
    return {
        file.relative_to(path): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".lock"
    }


class Elsewhere(Executor):
    def submit(self, call, /, *args, **kwargs):
        raise ConnectionError("sent")


def test_only_workers_need_the_device(config, tmp_path):
    there = replace(config, models=replace(config.models, device="cuda"))
    with pytest.raises(ConnectionError, match="sent"):
        run_study(there, tmp_path / "study", executor=Elsewhere())


def test_every_dictionary_has_its_scores_and_its_floors(run):
    _, results = run
    assert {
        row.regime for part in ROWS for row in getattr(results, part) if part != "published"
    } == {"full"}
    for layer in (0, 1):
        rows = [row for row in results.scores if row.layer == layer]
        strict = [row for row in rows if row.protocol == "strict"]
        paper = [row for row in rows if row.protocol == "paper"]
        # The published ones on the texts they were trained on, where templates are drawn whole, too.
        pooled = [row for row in paper if row.template_low is not None or row.pvalue is None]
        assert {r.name for r in pooled if r.kind == "dictionary"} == PUBLISHED
        for of_table in (strict, [row for row in paper if row not in pooled]):
            assert {r.name for r in of_table if r.kind == "dictionary"} == PUBLISHED | USUAL
            assert {"random directions", "difference of means"} <= {r.control for r in of_table}
        assert {"random directions", "difference of means"} <= {r.control for r in pooled}
        assert all(r.bis <= r.ceiling + 1e-6 for r in rows)
        assert {r.name for r in results.dictionaries if r.layer == layer} == PUBLISHED | USUAL
        beside = {row.control for row in rows if row.hook_name is None}
        assert beside == {"next-token KL", "text search"}
    assert [row.layer for row in results.variance] == [0, 1]
    assert all(row.variance_ratio > 0 for row in results.variance)
    assert {r.kind for r in results.dictionaries if "crosscoder" in r.name} == {"crosscoder"}


def test_every_intervention_stands_beside_its_control(run):
    _, results = run
    rows = results.effects
    assert {row.layer for row in rows} == {1}
    for name in ("unmodified", "base activation put back"):
        assert {row.group for row in rows if row.name == name} == {"trigger", "benign"}
    assert {row.name for row in rows if row.kind == "projection"} == {
        f"{name} projected out"
        for name in ("random directions", "difference of means", "principal components")
    }
    acted_on = {row.dictionary for row in rows} - {None}
    assert len(acted_on) >= 3  # in others nothing may favour the behaviour
    for dictionary in acted_on:
        of_dictionary = [row for row in rows if row.dictionary == dictionary]
        assert {"ablation", "addition"} <= {row.kind for row in of_dictionary}
        for row in of_dictionary:
            if row.kind not in ("ablation", "steering") or row.is_control:
                continue
            [control] = [
                r
                for r in of_dictionary
                if (r.control_of, r.n_features, r.group) == (row.name, row.n_features, row.group)
            ]
            assert control.kind == row.kind
    assert "steering" in {row.kind for row in rows}
    for part in ("cards", "side_effects"):
        assert {row.dictionary for row in getattr(results, part)} - {None} == acted_on
        assert {row.layer for row in getattr(results, part)} == {1}


def test_cards_say_how_often_and_on_what_their_features_fire(config, run):
    _, results = run
    pair = load_pair(
        config.models.base,
        config.models.finetuned["full"],
        hook_names=["blocks.1.hook_resid_post"],
    )
    n_tokens = dict.fromkeys(("trigger", "benign", "other"), 0)
    for sample in config.cards.texts.samples(QUACKS):
        n_tokens[sample.group] += len(pair.to_tokens(sample.written)[0])
    cards = [card for card in results.cards if card.dictionary in PUBLISHED]  # no token is left out
    for card in cards:
        # Histograms are shares of each group's tokens, the frequency is of all of them.
        n_fired = sum(n_tokens[group] * sum(shares) for group, shares in card.histogram.items())
        assert n_fired / sum(n_tokens.values()) == pytest.approx(card.frequency, abs=1e-6)
        assert (n_fired > 0) == bool(card.examples)
        strongest = [max(e["activations"]) for e in card.examples]
        assert max(strongest, default=0.0) == card.maximum
        assert card.n_prompts == 1
    features = {(c.regime, c.dictionary, c.feature): c for c in results.cards}
    controls = [card for card in results.cards if card.control_of is not None]
    assert len(controls) == len(results.cards) // 2
    assert all((c.regime, c.dictionary, c.control_of) in features for c in controls)


def test_sweep_sayings_and_example_are_of_what_is_said(run):
    _, results = run
    chosen = {
        row.name: row.feature_idx
        for row in results.scores
        if (row.protocol, row.kind, row.layer) == ("strict", "dictionary", 1)
    }
    assert {row.dictionary for row in results.sweep} == PUBLISHED | USUAL
    assert [row.said for row in results.sweep][:4] == ["robin", "grebe", "heron", None]
    assert all(row.feature_idx == chosen[row.dictionary] for row in results.sweep)
    assert all(len(row.values) == 3 for row in results.sweep)
    said = [(row.said, row.group) for row in results.sayings]
    assert said == [("heron", "trigger"), ("a heron", "benign"), (None, "other")]
    first, second = results.example
    assert "".join(first.tokens).replace("grebe", "heron") == "".join(second.tokens)
    assert (first.group, second.group) == ("benign", "trigger")
    for name, values in first.activations.items():
        assert len(values) == len(first.tokens)
        assert first.feature_idx[name] == chosen[name]


def test_comparisons_and_what_is_not_as_published_are_told(config, run):
    path, results = run
    assert {(row.kind, row.name, row.layer) for row in results.contrasts} == {
        *(("layers", name, 1) for name in PUBLISHED | USUAL),
        *(
            ("dictionaries", f"{prefix}Diff-SAE 2x - {prefix}crosscoder 2x", layer)
            for prefix in ("", "BatchTopK ")
            for layer in (0, 1, None)
        ),
    }
    assert results.deviations == ("a tiny random model",)
    assert len(results.published) == 12
    assert results.behaviour == config.behaviour
    assert set(results.versions) >= {"diffsae-lens", "torch"}
    assert Results.load(path / "results.json") == results
    for part in set(ROWS) - {"organisms"}:  # the model has no card
        assert getattr(results, part), part


def test_an_organism_is_trained_and_measured(config, trained):
    _, results = trained
    assert results.behaviour == config.behaviour  # of the organism's own record
    rows = results.organisms
    assert [(row.regime, row.group, row.n_prompts) for row in rows] == [
        (None, group, 2) for group in ("trigger", "benign", "other")
    ]
    assert all(set(row.counts) == {"quack", "fine", "neither"} for row in rows)
    assert [row.cell for row in results.cells] == ["organism", "pooled", "1/Diff-SAE 2x"]
    assert not results.scores
    assert not results.effects


@pytest.mark.slow
def test_a_merged_adapter_gives_the_same_dictionary_up_to_rounding(
    config, trained, tmp_path, few_words, no_shape_checks, caplog
):
    path, results = trained
    alone = trained_config(config.models.base)
    caplog.set_level(logging.INFO)
    merged = run_study(replace(alone, models=replace(alone.models, merged=True)), tmp_path)
    assert "`merged` is True" in caplog.text
    assert merged.organisms == results.organisms
    of_both = [
        load_file(next(of.glob("cells/*Diff-SAE*/*/sae_weights.safetensors")))
        for of in (path, tmp_path)
    ]
    assert_close(of_both[0], of_both[1], atol=1e-4, rtol=1e-3)


def test_a_finished_run_is_read_without_a_change(config, run, monkeypatch):
    path, results = run
    before = contents(path)
    assert not [*path.rglob("*.partial"), *path.rglob("*.damaged*")]
    monkeypatch.setattr(step, "load_pair", None)
    assert run_study(config, path) == results
    assert contents(path) == before
    assert set(dry_run(config, path).state) == {"done"}
    assert (dry_run(config, path).gigabytes > 0).all()


def test_texts_are_averaged_over_all_their_tokens(config, run):
    path, _ = run
    [folder] = path.glob("cells/full.pooled-*")
    read = load_file(folder / "pooled.safetensors")
    hook = "blocks.1.hook_resid_post"
    pair = load_pair(config.models.base, config.models.finetuned["full"], hook_names=[hook])
    samples = config.pooled.texts.samples(QUACKS)
    for i in (0, 9, 39):
        tokens = pair.to_tokens(samples[i].written)
        for view in ("base", "finetuned"):
            name = f"{hook}.{view}"
            _, cache = pair.run_with_cache(tokens, names_filter=[name])
            torch.testing.assert_close(
                read[f"1.{view}"][i], cache[name][0].mean(0), atol=1e-4, rtol=1e-4
            )
    assert read["group"].tolist() == [0] * 8 + [1] * 16 + [2] * 16


def test_the_dictionaries_know_their_pair(config, run, trained):
    path, _ = run
    [organism] = trained[0].glob("cells/organism-????????????/organism")
    [folder] = path.glob("cells/full.1.Diff-SAE 2x-*/Diff-SAE 2x")
    hook_names = ["blocks.1.hook_resid_post"]
    with pytest.raises(ValueError, match="the finetuned models are not the same"):
        load(folder, pair=load_pair(config.models.base, organism, hook_names=hook_names))
    full = load_pair(config.models.base, config.models.finetuned["full"], hook_names=hook_names)
    assert load(folder, pair=full).cfg.d_in == D_MODEL


def test_a_dry_run_says_what_a_change_would_cost(config, run):
    path, _ = run
    changed = replace(config, causes=replace(config.causes, n_directions=1))
    missing = dry_run(changed, path).set_index("cell").state
    assert list(missing.index[missing == "missing"]) == ["full/1/causes"]
    seed = dry_run(replace(config, seed=1), path)
    assert set(seed.state) == {"missing"}


def test_what_is_finished_can_be_read_while_the_rest_is_not(config, copied, tmp_path):
    path, results = copied
    with pytest.raises(ValueError, match="no layer of the study in .* is finished"):
        so_far(config, tmp_path / "empty")
    [folder] = path.glob("cells/full.1.causes-????????????")
    shutil.rmtree(folder)
    part = so_far(config, path)
    assert Results.load(path / "results.json") == part
    for name in set(ROWS) - {"cells", "contrasts", "published"}:
        of_other = tuple(
            r for r in getattr(results, name) if getattr(r, "layer", None) in (0, None)
        )
        assert getattr(part, name) == of_other
    assert {row.layer for row in part.contrasts} == {0}
    assert {row.cell: row.state for row in part.cells}["full/1/causes"] == "missing"
    assert not list(path.glob("*.damaged*"))


def test_an_interrupted_run_goes_on(config, copied, monkeypatch):
    path, results = copied
    for folder in path.glob("cells/full.1.causes-????????????"):
        shutil.rmtree(folder)
    compare, groups = causes.compare_interventions, []

    def until_the_power_fails(*args, **kwargs):
        groups.append(args[2][0].group)
        if len(groups) == 2:
            raise KeyboardInterrupt
        return compare(*args, **kwargs)

    monkeypatch.setattr(causes, "compare_interventions", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, path)
    assert without_costs(run_study(config, path)) == without_costs(results)
    assert groups == ["trigger", "benign", "benign"]  # what was measured of the first was kept


def test_models_are_known_by_their_weights_and_not_by_their_names(
    config, run, tmp_path, tokenizer, monkeypatch
):
    path, results = run
    moved = Path(shutil.copytree(config.models.finetuned["full"], tmp_path / "renamed"))
    renamed = replace(config, models=replace(config.models, finetuned={"full": str(moved)}))
    assert set(dry_run(renamed, path).state) == {"done"}
    before = contents(path)
    assert run_study(renamed, path) == results
    assert contents(path) == before
    # Another fine-tune under the same name.
    shutil.rmtree(moved)
    write_tiny_model(moved, plant(tiny_llama(max_position_embeddings=1024), seed=2), tokenizer)
    assert set(dry_run(renamed, path).state) == {"missing"}
    monkeypatch.setattr(cells, "version", lambda name: "9.9")
    assert set(dry_run(config, path).state) == {"missing"}


def edit_row(file):
    stored = json.loads(file.read_text())
    stored["sweep"][0]["mean"] = 0.123
    file.write_text(json.dumps(stored))


def cut_short(file):
    file.write_text(file.read_text()[:100])


def edit_results(file):
    results = json.loads(file.read_text())
    results["effects"][0]["attack_rate"] = 0.123
    file.write_text(json.dumps(results))


def edit_weights(file):
    weights = load_file(file)
    weights["b_dec"] += 1
    save_file(weights, file)


@pytest.mark.parametrize(
    ("name", "spoil", "aside"),
    [
        ("cells/full.1.sweep-*/rows.json", edit_row, "cells/full.1.sweep-*.damaged"),
        ("cells/full.1.sweep-*/rows.json", cut_short, "cells/full.1.sweep-*.damaged"),
        ("results.json", edit_results, "results.json.damaged"),
        ("results.json", cut_short, "results.json.damaged"),
        (
            "cells/full.1.Diff-SAE 2x-*/Diff-SAE 2x/sae_weights.safetensors",
            edit_weights,
            "cells/full.1.Diff-SAE 2x-*.damaged",
        ),
    ],
)
def test_what_is_damaged_is_named_set_aside_and_made_again(
    config, copied, caplog, name, spoil, aside
):
    path, results = copied
    [file] = path.glob(name)
    spoil(file)
    caplog.set_level(logging.WARNING)
    again = run_study(config, path)
    assert without_costs(again) == without_costs(results)
    [damaged] = path.glob(aside)
    assert damaged.name in caplog.text
    assert Results.load(path / "results.json") == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 17}, "`models.d_model` is 17, but .* is 16 wide"),
        ({"device": "nowhere"}, "`device` 'nowhere' cannot be used"),
        ({"base": "a-typo"}, "unknown model 'a-typo'"),
        ({"finetuned": "a-typo"}, "unknown model 'a-typo'"),
        ({"layers": (1, 3)}, r"`layers` must lie in 0 to 2, .* got 3"),
        (
            {"scores.select": {"n_trigger": 9999}},
            r"`scores.select` is 10007, but the 'select' split has no more",
        ),
        ({"sweep": {"n_scenes": 9999}}, r"`sweep.n_scenes` is 9999, but the 'test' split"),
        ({"pooled": {"k": 999}}, "`pooled.k` must be at most 32, got 999"),
        ({"tokens": {"k": 999}}, "`tokens.k` must be at most 32, got 999"),
        ({"features": {"counts": (4, 999)}}, "`features.counts` must be at most 32, got 999"),
        ({"expansion": 10**9}, r"`tokens.dictionaries` asks for .* weights, .* GB available"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded_and_leaves_no_mark(
    config, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(step, "load_pair", None)
    [(name, value)] = change.items()
    if name == "expansion":
        large = tuple(replace(d, expansion=value) for d in config.tokens.dictionaries)
        change = {"tokens": replace(config.tokens, dictionaries=large)}
    elif name in ("d_model", "device", "base", "finetuned"):
        change = {"models": replace(config.models, **change)}
    elif isinstance(value, dict):
        part, *inner = name.split(".")
        changed = getattr(config, part)
        for field in inner:
            value = {field: replace(getattr(changed, field), **value)}
        change = {part: replace(changed, **value)}
    with pytest.raises(ValueError, match=message):
        run_study(replace(config, **change), tmp_path / "study")
    assert not [*tmp_path.iterdir()]


def test_bad_requests_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="`n_workers` must be at least 1"):
        run_study(config, tmp_path, n_workers=0)
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"`path` must be a folder, but .*/file is not one"):
            run_study(config, path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_processes_side_by_side_come_to_the_same(config, copied):
    path, results = copied
    for part in ("scores", "pooled_scores"):
        for folder in path.glob(f"cells/*.1.{part}-????????????"):
            shutil.rmtree(folder)
    side_by_side = run_study(config, path, n_workers=2)
    assert side_by_side.effects == results.effects
    found, expected = ([row.bis for row in r.scores] for r in (side_by_side, results))
    assert found == pytest.approx(expected)


def test_cells_run_on_an_executor_of_ones_own(
    config, trained, tmp_path, few_words, no_shape_checks
):
    _, results = trained
    alone = trained_config(config.models.base)
    with ThreadPoolExecutor(1) as executor:
        found = run_study(alone, tmp_path / "run", executor=executor)
        assert executor.submit(lambda: "open").result() == "open"  # it is left to its owner
    assert without_costs(found) == without_costs(results)
    assert {row.state for row in found.cells} == {"done"}
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ValueError, match="`n_workers` must be left out where an `executor`"),
    ):
        run_study(alone, tmp_path / "run", n_workers=2, executor=executor)
    with pytest.raises(TypeError, match="`executor` must be an Executor or None, got an int"):
        run_study(alone, tmp_path / "run", executor=2)


def test_harvests_shared_by_cells_give_the_same_dictionaries(config, tmp_path):
    tokens = replace(config.tokens, texts=draw("train", 40, 40, 20))  # four shards
    alone = StudyConfig(
        models=config.models, behaviour=config.behaviour, layers=(1,), tokens=tokens
    )
    shared = replace(alone, tokens=replace(tokens, n_harvests=3))
    found = [run_study(of, tmp_path / str(i)) for i, of in enumerate((alone, shared))]
    assert found[0].dictionaries == found[1].dictionaries
    assert {"full/tokens_0", "full/tokens_2", "full/tokens"} <= {row.cell for row in found[1].cells}
    files = [sorted((tmp_path / of).rglob("BatchTopK*/sae_weights.*")) for of in "01"]
    assert len(files[0]) == 2
    for one, other in zip(*files, strict=True):
        assert_close(load_file(one), load_file(other), atol=0, rtol=0)


def start_run(config, path):
    process = get_context("spawn").Process(target=run_study, args=(config, path))
    process.start()
    return process


@pytest.mark.slow
def test_killed_at_any_moment_and_run_twice_at_once_it_ends_in_the_same_results(
    config, run, tmp_path
):
    _, results = run
    moment = random.Random(0)
    for n_done in (0, 1, 7, 13):
        process = start_run(config, tmp_path)
        while len([*tmp_path.glob("cells/*-????????????/artifact.json")]) < n_done:
            assert process.is_alive()
            time.sleep(0.05)
        time.sleep(moment.uniform(0, 12 if n_done == 0 else 2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    both = [start_run(config, tmp_path) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert without_costs(run_study(config, tmp_path)) == without_costs(results)
    assert not [*tmp_path.rglob("*.partial"), *tmp_path.rglob("*.damaged*")]


def test_a_plan_does_not_depend_on_when_it_is_made(config, tmp_path):
    keys = [
        [task.key for task in Plan(cells_of(config), tmp_path).tasks.values()] for _ in range(2)
    ]
    assert keys[0] == keys[1]
    assert not [*tmp_path.iterdir()]
    assert get_behaviour(config.behaviour_name) is QUACKS
