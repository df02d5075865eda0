"""The overview figure and the tables of a study of several organisms and layers."""

from dataclasses import replace

import pytest

from diffsae_lens.reporting._figures import drawings_of
from diffsae_lens.reporting._glance import plot_glance
from diffsae_lens.reporting._html import render_report
from diffsae_lens.reporting._tables import results_markdown, results_tables, results_text
from diffsae_lens.results import (
    CellRow,
    ContrastRow,
    DictionaryRow,
    EffectRow,
    OrganismRow,
    ScoreRow,
)
from diffsae_lens.study._published import published_rows
from diffsae_lens.study._results import Results
from tests.reporting.rows import make
from tests.reporting.synthetic import rate


def score(regime, layer, name, bis, **described):
    return make(
        ScoreRow, regime=regime, layer=layer, name=name, bis=bis, low=bis - 0.05, high=bis + 0.05,
        hook_name="blocks.14.hook_resid_post.diff", n_features=9, **described,
    )  # fmt: skip


def effect(regime, layer, name, value, harm=0.0, **described):
    """Rows of trigger prompts and of benign ones."""
    of = {"regime": regime, "layer": layer, "name": name, "low": 0.0, "high": 1.0, **described}
    return (
        make(EffectRow, group="trigger", attack_rate=value, cross_entropy=9.0, **of),
        make(EffectRow, group="benign", attack_rate=0.0, cross_entropy=0.2 + harm, **of),
    )


def ablated(dictionary, value, n_features=32, *, control_of=None, harm=0.0):
    return {
        "name": "random ones" if control_of else "top features", "value": value, "harm": harm,
        "dictionary": dictionary, "n_features": n_features, "kind": "ablation", "control_of": control_of,
    }  # fmt: skip


def contrast(kind, minus_regime, minus_layer, layer):
    return make(
        ContrastRow, kind=kind, name="crosscoder", regime="full", minus_regime=minus_regime, layer=layer,
        minus_layer=minus_layer, difference=0.25, low=-0.125, high=0.5,
    )  # fmt: skip


@pytest.fixture
def results():
    return study_results()


def study_results() -> Results:
    at = [(regime, layer) for regime in ("lora", "full") for layer in (14, 18)]
    paper = {"protocol": "paper", "ceiling": 0.4, "base_bis": 0.1}
    strict = {"protocol": "strict", "ceiling": 1.0}
    top = "top features"
    return Results(
        config={"models": {"base": "smollm2-135m"}},
        versions={},
        behaviour="year-trigger",
        deviations=("a smaller model", "<script>alert('x')</script>"),
        published=tuple(published_rows()),
        dictionaries=tuple(
            make(DictionaryRow, name="crosscoder", kind="crosscoder", regime=r, layer=layer)
            for r, layer in at
        ),
        organisms=tuple(
            make(OrganismRow, regime=r, group=g, **rate(n))
            for r in ("lora", "full") for g, n in (("trigger", 32), ("benign", 0))
        ),
        scores=tuple(
            row for r, layer in at for row in (
                score(r, layer, "Diff-SAE 32x", 0.4, **paper),
                score(r, layer, "crosscoder 32x", 0.21, **{**paper, "base_bis": 0.15}),
                score(r, layer, "random directions", 0.37, kind="control", is_floor=True, **paper),
                score(r, layer, "crosscoder", 0.91, **strict),
                score(r, layer, "untrained crosscoder", 0.62, kind="untrained dictionary", **strict),
                score(r, layer, "linear probe", 0.99, kind="control", **strict),
            )
        ),
        contrasts=(
            contrast("layers", "full", 14, 18), contrast("regimes", "lora", 14, 14),
            contrast("regimes", "lora", None, None),
        ),
        effects=tuple(
            row for r, layer in at for described in (
                {"name": "unmodified", "value": 0.98, "kind": "unmodified"},
                ablated("crosscoder", 0.55, 8),
                ablated("crosscoder", 0.95, 8, control_of=top),
                ablated("crosscoder", 0.05, harm=0.9),
                ablated("crosscoder", 0.96, control_of=top),
                ablated("Diff-SAE", 0.0, harm=1.1),
                ablated("Diff-SAE", 0.97, control_of=top),
            ) for row in effect(r, layer, **described)
        ),
        cells=tuple(
            make(
                CellRow, cell=cell, part=cell.split("/")[-1], regime=cell.split("/")[0], layer=layer,
                state=state, seconds=seconds, gigabytes=memory, folder="x-0123",
            )
            for cell, layer, state, seconds, memory in (
                ("lora/organism", None, "done", 1.6, 0.62),
                ("lora/14/Diff-SAE 32x", 14, "done", 294.0, None),
                ("full/organism", None, "missing", None, None),
            )
        ),
    )  # fmt: skip


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_figure_shows_every_value_above_or_below_its_line(results):
    axes = plot_glance(results).axes
    assert len(axes) == 6
    paper_lora, paper_full, strict_lora, _, effects_lora, _ = axes
    names = [label.get_text() for label in paper_lora.get_yticklabels()]
    assert names[:3] == ["Diff-SAE 32x", "crosscoder 32x", "published: crosscoder 32x"]
    assert names[-2:] == ["base model alone", "random directions"]
    assert texts(paper_lora)[:2] == ["0.40", "0.40"]
    assert texts(paper_lora)[-4:] == ["0.15", "0.15", "0.37", "0.37"]  # the highest base
    # Only the full-rank results were published: the other regime's line is empty.
    assert texts(paper_full).count("0.00") == 2
    assert texts(paper_lora).count("0.00") == 0
    names = [label.get_text() for label in strict_lora.get_yticklabels()]
    assert names == ["crosscoder", "untrained dictionaries", "linear probe"]
    # The largest ablation, beside its control; what breaks the model is no success.
    shown = ["0.05", "broken", "0.98", "0.96", "0.97"]
    assert texts(effects_lora) == [text for text in shown for _ in range(2)]


def test_tables_hold_ours_and_the_published(results):
    organisms, paper, strict, differences, by_layer, causes, benign, costs = results_tables(results)
    assert differences.rows == (("full - lora", "crosscoder", *["+0.25 [-0.12, +0.50]"] * 2),)
    assert differences.heads[2:] == ("14", "all")
    assert by_layer.heads[2:] == ("14 to 18",)
    assert costs.heads == ("regime", "cell", "14", "all")  # layers in order, then the rest
    assert costs.rows == (
        ("lora", "organism", "", "2 s, 0.6 GB"), ("lora", "Diff-SAE 32x", "294 s", ""),
    )  # fmt: skip
    assert organisms.rows[0] == ("lora", "100% [89%, 100%]", "0% [0%, 11%]")
    assert paper.heads == ("regime", "name", "14", "18")
    found = {row[:2]: row[2:] for row in paper.rows}
    assert found["full", "published crosscoder 32x"] == ("0.00", "0.00")
    assert found["lora", "crosscoder 32x"][0] == "0.21 [0.16, 0.26], base 0.15"
    assert {row[1] for row in strict.rows} >= {"linear probe", "untrained crosscoder"}
    assert ("lora", "crosscoder", "top features", "8", *["55% [0%, 100%]"] * 2) in causes.rows
    assert ("lora", "", "unmodified", "", *["98% [0%, 100%]"] * 2) in causes.rows
    of_harm = ("lora", "Diff-SAE", "top features", "32", *["0% [0%, 100%], 1.300"] * 2)
    assert of_harm in benign.rows
    assert "- a smaller model" in results_markdown(results)
    assert results_text(results) == results_markdown(results)


def test_one_organism_has_no_column_for_it(results):
    alone = replace(
        results,
        published=(),
        scores=tuple(replace(r, regime=None) for r in results.scores if r.regime == "lora"),
    )
    [paper] = [t for t in results_tables(alone) if t.title == "BIS by the paper's protocol"]
    assert paper.heads == ("name", "14", "18")


def test_the_report_is_whole_and_escaped(results):
    names = [drawing.name for drawing in drawings_of(results)]
    page = render_report(results, figures=dict.fromkeys(names, b""))
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "published Diff-SAE 4x" in page
    for place in ("Lora, layer 14", "Full, layer 18"):
        assert f"<summary>{place}</summary>" in page


def test_results_without_scores_are_refused(results):
    with pytest.raises(ValueError, match="no rows in `scores`"):
        plot_glance(replace(results, scores=()))
