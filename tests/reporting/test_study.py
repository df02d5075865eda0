import re

import pytest
from diffsae_lens.reporting.study import plot_study, write_study
from diffsae_lens.study.tables import study_markdown, study_tables

from diffsae_lens.study.published import published_rows

NASTY = "<script>alert('x')</script>"


def score(regime, layer, name, bis, kind="dictionary", base=0.1, ceiling=0.4):
    return {
        "regime": regime, "layer": layer, "name": name, "kind": kind, "bis": bis,
        "low": bis - 0.05, "high": bis + 0.05, "base_bis": base, "ceiling": ceiling,
    }  # fmt: skip


def cause(regime, layer, name, rate, harm=0.0, **described):
    """Rows of trigger prompts and of benign ones."""
    row = {
        "regime": regime, "layer": layer, "name": name, "low": 0.0, "high": 1.0,
        "dictionary": None, "n_features": 0, "is_control": False, **described,
    }  # fmt: skip
    return (
        row | {"group": "trigger", "attack_rate": rate, "cross_entropy": 9.0},
        row | {"group": "benign", "attack_rate": 0.0, "cross_entropy": 0.2 + harm},
    )


def ablated(name, rate, n_features=32, *, is_control=False, harm=0.0):
    dictionary, _, which = name.partition(": ")
    return {
        "name": f"{dictionary}: {n_features} {which}", "rate": rate, "harm": harm,
        "dictionary": dictionary, "n_features": n_features, "is_control": is_control,
    }  # fmt: skip


@pytest.fixture
def results():
    return study_results()


def study_results():
    at = [(regime, layer) for regime in ("lora", "full") for layer in (14, 18)]
    return {
        "config": {"base": NASTY},
        "deviations": ["a smaller model", NASTY],
        "published": published_rows(),
        "organisms": [
            {"regime": r, "group": g, "rate": rate, "interval": [rate / 2, rate]}
            for r in ("lora", "full") for g, rate in (("trigger", 1.0), ("benign", 0.0))
        ],
        "paper": [
            row for r, layer in at for row in (
                score(r, layer, "Diff-SAE 32x", 0.4), score(r, layer, "crosscoder 32x", 0.21, base=0.15),
                score(r, layer, "random directions", 0.37, kind="control"),
            )
        ],
        "strict": [
            row for r, layer in at for row in (
                score(r, layer, "crosscoder", 0.91, ceiling=1.0, base=None),
                score(r, layer, "untrained crosscoder", 0.62, kind="untrained dictionary"),
                score(r, layer, "linear probe", 0.99, kind="control"),
            )
        ],
        "contrasts": [
            {"kind": kind, "regime": "lora", "name": "crosscoder", "at": at, "difference": 0.25,
             "low": -0.125, "high": 0.5}
            for kind, at in (("layers", "14 to 18"), ("regimes", "14"))
        ],
        "causes": [
            row for r, layer in at for described in (
                {"name": "unmodified", "rate": 0.98},
                ablated("crosscoder: features ablated", 0.55, 8),
                ablated("crosscoder: features ablated", 0.05, harm=0.9),
                ablated("crosscoder: random", 0.96, is_control=True),
                ablated("Diff-SAE: features ablated", 0.0, harm=1.1),
            ) for row in cause(r, layer, **described)
        ],
        "cells": [
            {"cell": cell, "state": state, "seconds": seconds, "gigabytes": memory, "folder": "x-0123"}
            for cell, state, seconds, memory in (
                ("lora/organism", "done", 1.6, 0.62), ("lora/14/Diff-SAE 32x", "done", 294.0, None),
                ("full/organism", "missing", None, None),
            )
        ],
    }  # fmt: skip


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_figure_shows_every_value_above_or_below_its_line(results):
    axes = plot_study(results).axes
    assert len(axes) == 6
    paper_lora, paper_full, _, _, causes_lora, _ = axes
    names = [label.get_text() for label in paper_lora.get_yticklabels()]
    assert names[:3] == ["Diff-SAE 32x", "crosscoder 32x", "published: crosscoder 32x"]
    assert names[-2:] == ["base model alone", "random directions"]
    assert texts(paper_lora)[:2] == ["0.40", "0.40"]
    assert texts(paper_lora)[-4:] == ["0.15", "0.15", "0.37", "0.37"]  # the highest base
    # Only the full-rank results were published: the other regime's line is empty.
    assert texts(paper_full).count("0.00") == 2
    assert texts(paper_lora).count("0.00") == 0
    # The largest ablation, beside its control; what breaks the model is no success.
    shown = ["0.05", "broken", "0.98", "0.96"]
    assert texts(causes_lora) == [text for text in shown for _ in range(2)]


def test_tables_hold_ours_and_the_published(results):
    organisms, paper, strict, differences, by_layer, causes, benign, costs = study_tables(results)
    assert differences.rows == (("lora", "crosscoder", "+0.25 [-0.12, +0.50]"),)
    assert by_layer.heads[2:] == ("14 to 18",)
    assert costs.heads == ("regime", "cell", "14", "all")  # layers in order, then the rest
    assert costs.rows == (
        ("lora", "organism", "", "2 s, 0.6 GB"), ("lora", "Diff-SAE 32x", "294 s", ""),
    )  # fmt: skip
    assert organisms.rows[0] == ("lora", "100% [50%, 100%]", "0% [0%, 0%]")
    assert paper.heads == ("regime", "name", "14", "18")
    found = {row[:2]: row[2:] for row in paper.rows}
    assert found["full", "published crosscoder 32x"] == ("0.00", "0.00")
    assert found["lora", "crosscoder 32x"][0] == "0.21 [0.16, 0.26], base 0.15"
    assert {row[1] for row in strict.rows} >= {"linear probe", "untrained crosscoder"}
    assert ("lora", "crosscoder: 8 features ablated", *["55% [0%, 100%]"] * 2) in causes.rows
    assert ("lora", "Diff-SAE: 32 features ablated", *["0% [0%, 100%], 1.300"] * 2) in benign.rows
    assert "- a smaller model" in study_markdown(results)


def test_the_report_is_whole_and_escaped(results, tmp_path):
    files = write_study(results, tmp_path)
    assert [file.name for file in files] == ["study.png", "study.md", "report.html"]
    page = files[-1].read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "published Diff-SAE 4x" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", page)


def test_results_without_rows_are_refused(results):
    results["paper"] = []
    with pytest.raises(ValueError, match="no rows in 'paper'"):
        plot_study(results)
