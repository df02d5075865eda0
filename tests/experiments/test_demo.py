import json
from functools import partial

import pytest

from diffsae_lens.experiments import causes, demo
from diffsae_lens.experiments.demo import DemoConfig, run_demo
from diffsae_lens.experiments.store import once
from diffsae_lens.experiments.tables import causal_text, score_text
from diffsae_lens.interventions import effects, side_by_side
from diffsae_lens.interventions.rates import complete
from diffsae_lens.reporting.figures import write_figures
from diffsae_lens.reporting.html import write_report
from tests.conftest import plant, tiny_llama, write_tiny_model


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
    for module in (effects, side_by_side):
        patch.setattr(module, "complete", partial(complete, max_new_tokens=4))


@pytest.fixture(scope="module")
def short_completions():
    """A tiny random model never ends a completion by itself."""
    patch = pytest.MonkeyPatch()
    shorten(patch)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def run(config, tmp_path_factory, short_completions):
    path = tmp_path_factory.mktemp("run") / "demo"
    return path, run_demo(config, path)


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
    cards = [(row["dictionary"], row["is_control"]) for row in results["features"]]
    three = [False, False, False, True]
    assert cards == [(name, c) for name in ("diff-sae-1", "crosscoder-1") for c in three]
    for row in results["features"]:
        shares = [share for shares in row["histogram"].values() for share in shares]
        assert sum(shares) == pytest.approx(sum(map(sum, row["histogram"].values())))
        assert (max(shares) > 0) == (row["frequency"] > 0) == bool(row["examples"])
        strongest = [max(e["activations"]) for e in row["examples"]]
        assert max(strongest, default=0.0) == row["maximum"]
        assert row["n_prompts"] == 2
    assert [row["year"] for row in results["years"]][:16] == list(range(2015, 2031))
    first, second = (p["tokens"] for p in results["example"]["prompts"])
    assert "".join(first).replace("2023", "2024") == "".join(second)


def test_tables_figures_and_report_are_made_of_it(run):
    path, results = run
    assert "diff-sae-1" in score_text(results["scores"])
    assert "base activation put back" in causal_text(results["causes"])
    assert write_figures(results, path / "figures")
    assert "<html" in write_report(results, path / "report.html").read_text()


def test_a_second_run_reads_and_an_interrupted_one_goes_on(config, run, tmp_path, monkeypatch):
    path, results = run
    monkeypatch.setattr(demo, "load_pair", None)
    assert run_demo(config, path) == results
    monkeypatch.undo()

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
    resumed = run_demo(config, tmp_path / "demo")
    assert len(n_cells) == 4 + len(results["causes"]) - 3  # the three finished cells were kept
    for part in ("scores", "causes", "features", "harm", "sayings", "years", "example"):
        assert resumed[part] == results[part]


def test_a_folder_of_another_run_is_refused_and_left_alone(config, run):
    path, _ = run
    before = (path / "results.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run with other settings"):
        run_demo(DemoConfig(base=config.base, finetuned=config.finetuned, layers=(0,)), path)
    assert (path / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", ()), ("layers", (-1,)), ("k", 0), ("n_score_prompts", 3), ("feature_counts", ())],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        DemoConfig(**{field: value})


def test_half_written_results_are_never_read(tmp_path, monkeypatch):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "x.json", fail)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("pathlib.Path.replace", lambda *args: fail())
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "x.json", lambda: [1])
    assert not (tmp_path / "x.json").exists()
    monkeypatch.undo()
    assert once(tmp_path / "x.json", lambda: [2]) == [2]
    assert once(tmp_path / "x.json", lambda: [3]) == [2]
    assert json.loads((tmp_path / "x.json").read_text()) == [2]
