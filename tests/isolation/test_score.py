import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE

from diffsae_lens.isolation._labels import LabelledPrompts
from diffsae_lens.isolation._score import evaluate_isolation, evaluate_protocols
from diffsae_lens.isolation._table import IsolationTable
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.organisms._behaviour import get_behaviour
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.reporting._isolation import plot_isolation
from diffsae_lens.results import ScoreRow
from tests.conftest import D_MODEL, HOOKS, plant, tiny_llama

make_samples = get_behaviour("year-trigger").make_samples


def draws(n_resamples):
    return Resampling(n_resamples=n_resamples)


def dictionary(view, d_in, seed=0):
    torch.manual_seed(seed)
    return SAE.from_dict(
        {
            "architecture": "jumprelu",
            "d_in": d_in,
            "d_sae": 24,
            "dtype": "float32",
            "device": "cpu",
            "metadata": {"hook_name": f"{HOOKS[1]}.{view}"},
        }
    )


@pytest.fixture(scope="module")
def prompts():
    """Short prompts in the manner of the organism's: templates stand for scenes."""
    generator = torch.Generator().manual_seed(0)
    years = [2024, 2021, 2022, None, None]
    letters = torch.randint(97, 123, (80, 6), generator=generator)
    texts, group, cluster = [], [], []
    for i, row in enumerate(letters):
        year = years[i % 5]
        texts.append("".join(map(chr, row.tolist())) + ("" if year is None else f" {year}") + " q=")
        group.append(0 if year == 2024 else 2 if year is None else 1)
        cluster.append(i // 5)
    group = torch.tensor(group)
    return LabelledPrompts(
        texts=tuple(texts),
        is_trigger=group == 0,
        is_benign=group == 1,
        is_select=torch.arange(80) < 40,
        clusters=torch.tensor(cluster),
        trigger_text="2024",
    )


@pytest.fixture(scope="module")
def pair(tokenizer):
    base = tiny_llama()
    return HookedModelPair(
        boot_bridge(copy.deepcopy(base), tokenizer), boot_bridge(plant(base), tokenizer), HOOKS
    )


@pytest.fixture(scope="module")
def dictionaries():
    return {
        "diff-sae": dictionary("diff", D_MODEL),
        "crosscoder": dictionary("concat", 2 * D_MODEL),
        "plain": dictionary("finetuned", D_MODEL),
    }


@pytest.fixture(scope="module")
def tables(pair, dictionaries, prompts):
    """By protocol, from one reading of the prompts."""
    protocols = ("strict", "paper")
    found = evaluate_protocols(
        pair, dictionaries, prompts, protocols=protocols, resampling=draws(10)
    )
    return dict(zip(protocols, found, strict=True))


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_every_dictionary_and_control_has_a_row(dictionaries, tables, protocol):
    table = tables[protocol]
    frame = table.to_frame()
    assert list(frame.name[:3]) == list(dictionaries)
    assert set(frame.kind[:3]) == {"dictionary"}
    for control in (
        "untrained diff-sae", "random directions", "difference of means", "principal components",
        "linear probe", "next-token KL", "text search for '2024'",
    ):  # fmt: skip
        assert control in set(frame.name)
    assert ((frame.bis >= 0) & (frame.bis <= frame.ceiling + 1e-9)).all()
    assert (frame.low <= frame.high).all()
    assert frame.verdict.map(len).min() > 5
    text = frame.set_index("name").loc["text search for '2024'"]
    if protocol == "strict":
        assert text.bis == pytest.approx(1)
        assert text.excess == 0
        assert text.verdict == "not above the base model"
    else:
        # A perfect detector with ties: more prompts than may fire hold the same value, so none does.
        assert text.bis == 0
    rows = json.loads(table.to_json())["rows"]
    assert len(rows) == len(frame)
    assert table.to_markdown(["name", "bis"]).count("\n") == len(frame) + 1
    assert "<table" in table._repr_html_()
    figure = plot_isolation(table)
    drawn = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert any("diff-sae" in label for label in drawn)


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_the_same_seed_gives_the_same_table(pair, dictionaries, prompts, tables, protocol):
    again = evaluate_isolation(pair, dictionaries, prompts, protocol=protocol, resampling=draws(10))
    assert again.rows == tables[protocol].rows


@pytest.fixture(scope="module")
def base_pair(tokenizer):
    model = tiny_llama()
    return HookedModelPair(
        boot_bridge(copy.deepcopy(model), tokenizer), boot_bridge(model, tokenizer), HOOKS
    )


def test_no_difference_is_no_evidence(base_pair, dictionaries, prompts):
    frame = evaluate_isolation(base_pair, dictionaries, prompts, resampling=draws(20)).to_frame()
    assert not frame.verdict.str.startswith("isolated").any()
    assert frame.set_index("name").loc["diff-sae"].auroc == 0.5


def test_shared_texts_are_warned_of_and_shared_templates_refused(
    pair, dictionaries, prompts, caplog
):
    repeated = LabelledPrompts(**{**vars(prompts), "texts": prompts.texts[:40] * 2})
    with caplog.at_level(logging.WARNING):
        evaluate_isolation(pair, dictionaries, repeated, resampling=draws(2))
    assert "40 test prompts are selection prompts too" in caplog.text
    samples = make_samples("test", n_trigger=2, n_benign=2, n_other=2)
    with pytest.raises(ValueError, match="in both splits"):
        LabelledPrompts.from_samples(samples, samples)


def test_samples_are_labelled_where_the_organism_decides():
    select = make_samples("select", n_trigger=2, n_benign=3, n_other=1)
    test = make_samples("test", n_trigger=2, n_benign=2, n_other=2)
    labelled = LabelledPrompts.from_samples(select, test)
    assert labelled.is_trigger.sum() == 4
    assert labelled.is_benign.sum() == 5
    assert labelled.is_select.tolist() == [True] * 6 + [False] * 6
    assert labelled.texts[0] == select[0].undecided
    assert labelled.positions is None


def test_samples_are_read_where_asked():
    select = make_samples("select", n_trigger=1, n_benign=0, n_other=1)
    test = make_samples("test", n_trigger=1, n_benign=1, n_other=0)
    whole = LabelledPrompts.from_samples(select, test, read="everything")
    assert whole.texts[0] == select[0].prompt + select[0].unwanted
    assert whole.texts[1] == select[1].prompt + select[1].wanted
    assert whole.positions is None
    completions = LabelledPrompts.from_samples(select, test, read="completion")
    for sample, text, (start, end) in zip(
        [*select, *test], completions.texts, completions.positions.spans, strict=True
    ):
        assert text[start:end] == (sample.unwanted if sample.group == "trigger" else sample.wanted)
    trigger = LabelledPrompts.from_samples(select, test, read="trigger")
    lines = [t[a:b] for t, (a, b) in zip(trigger.texts, trigger.positions.spans, strict=True)]
    assert "2024" in lines[0]
    assert lines[1] == select[1].prompt.split("\n")[0]
    assert "2020" in lines[3]
    assert not any("\n" in line for line in lines)
    import inspect

    with pytest.raises(ValueError, match="`read` must be one of"):
        inspect.unwrap(LabelledPrompts.from_samples.__func__)(
            LabelledPrompts, select, test, read="year"
        )


def test_seeds_and_null_pairs_stand_in_the_same_table(pair, base_pair, prompts):
    table = evaluate_isolation(
        pair,
        {"diff-sae": [dictionary("diff", D_MODEL, seed=s) for s in range(3)]},
        prompts,
        resampling=draws(10),
        null_pairs={"base against base": base_pair},
    )
    frame = table.to_frame()
    assert frame.seed[frame.name == "diff-sae"].tolist() == [0, 1, 2]
    assert (frame.name == "untrained diff-sae").sum() == 3
    null = frame[frame.name == "diff-sae on base against base"]
    assert (null.kind == "null pair").all()
    assert (null.auroc == 0.5).all()
    assert not null.verdict.str.startswith("isolated").any()
    short = table.over_seeds().to_frame().set_index("name")
    assert short.n_seeds["diff-sae"] == 3
    assert short.n_seeds["random directions"] == 1
    scores = frame.bis[frame.name == "diff-sae"]
    assert short.bis["diff-sae"] == pytest.approx(scores.mean())
    assert short.bis_min["diff-sae"] == scores.min()
    assert short.pvalue["diff-sae"] == frame.pvalue[frame.name == "diff-sae"].max()
    assert "of 3 seeds" in short.verdict["diff-sae"]
    plot_isolation(table)
    plot_isolation(table.over_seeds())
    # All rows are scored on the same resamples, so differences are paired.
    for of in (table, table.over_seeds()):
        better = of.difference("diff-sae", "random directions")
        of_directions = table.resampled[torch.tensor(frame.name == "random directions")][0]
        scored = table.resampled[torch.tensor(frame.name == "diff-sae")].mean(0)
        torch.testing.assert_close(better.distribution, scored - of_directions)
        assert better.estimate == pytest.approx(
            scores.mean() - short.bis["random directions"], abs=1e-9
        )
        assert better.low <= better.high
    assert table.difference("diff-sae", "diff-sae").high == 0
    with pytest.raises(ValueError, match="no row is called 'sae'"):
        table.difference("diff-sae", "sae")
    with pytest.raises(ValueError, match="give it a name for each"):
        one = tuple(replace(row, name="one") for row in table)
        replace(table, rows=one).difference("one", "one")


def test_bad_arguments_are_refused(pair, dictionaries, prompts):
    with pytest.raises(ValueError, match="is empty"):
        evaluate_isolation(pair, {}, prompts)
    import inspect

    with pytest.raises(ValueError, match="one of 'paper', 'strict'"):
        inspect.unwrap(evaluate_isolation)(pair, dictionaries, prompts, protocol="lenient")


def test_empty_cells_and_bars_are_written_as_markdown_wants_them():
    row = ScoreRow(
        name="a|b", kind="control", protocol="strict", hook_name=None, layer=None, n_features=1, bis=0.0,
        low=None, high=None, ceiling=1.0, base_bis=None, pvalue=0.0004, feature_idx=0, fpr_benign=0.0,
    )  # fmt: skip
    table = IsolationTable(
        rows=(row, replace(row, low=0.5)), protocol="strict", n_prompts=1,
        resampled=torch.zeros(2, 1), resampling=draws(1),
    )  # fmt: skip
    lines = table.to_markdown(["name", "low", "pvalue"]).splitlines()
    assert lines[-2:] == [r"| a\|b |  | 0.0004 |", r"| a\|b | 0.50 | 0.0004 |"]


def test_a_pair_without_a_difference_is_scored_by_the_papers_protocol_too(
    base_pair, dictionaries, prompts
):
    table = evaluate_isolation(
        base_pair, dictionaries, prompts, protocol="paper", resampling=draws(5)
    )
    [row] = [row for row in table if row.name == "diff-sae"]
    assert (row.bis, row.high) == (0, 0)


def test_rows_say_in_fields_what_they_are(tables):
    for protocol, table in tables.items():
        assert {row.protocol for row in table} == {protocol}
    for row in tables["strict"]:
        assert row.layer == (None if row.control in ("next-token KL", "text search") else 1)
        assert row.is_floor == (
            row.control in ("untrained dictionary", "random directions", "principal components")
        )
        assert (row.dictionary is None) == (row.kind == "control")
        assert row.control_of == (row.dictionary if row.kind != "dictionary" else None)
        assert ScoreRow.from_dict(row.as_dict()) == row
