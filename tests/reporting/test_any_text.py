"""Reports, figures and tables of results whose texts are of any length and content."""

import itertools
import re
import time
from contextlib import contextmanager

import pandas as pd
import pytest
from diffsae_lens.reporting.study import plot_study, write_study
from diffsae_lens.study.tables import (
    causal_text,
    plan_text,
    score_text,
    study_markdown,
    study_tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from diffsae_lens._display import one_line, visible
from diffsae_lens.reporting import html
from diffsae_lens.reporting.effects import plot_ablation_curve, plot_year_effects
from diffsae_lens.reporting.figures import (
    plot_ablation,
    plot_tokens,
    plot_years,
    write_figures,
)
from diffsae_lens.reporting.html import render_report, write_report
from diffsae_lens.reporting.style import WIDTH, Figure, label, styled
from tests.reporting.synthetic import DICTIONARIES, cause, synthetic_results, with_texts
from tests.reporting.test_display import ANY_TEXT
from tests.reporting.test_html import Page
from tests.reporting.test_study import study_results

# A missing glyph, a legend that finds no room and the like are warnings.
pytestmark = pytest.mark.filterwarnings("error")

SCRIPT = "<script>alert('x')</script>"
HIDDEN = "a\x00b\x1b[8mc\u202ed\u2066e\u200bf\ufeffg\ud800h\ue000i\u200ej"
NASTY = (
    HIDDEN, SCRIPT, "\" onload='alert(1)' x=\"", "$\\frac{1}{$", "$", "\\$x_1$", "", "  ", "\n\n\t\n", "_",
    "_nolegend_", "שלום 2024 עולם", "السنة ٢٠٢٤", "👨‍👩‍👧 ❤️ 🇫🇷", "中文字符" * 20, "e" + "\u0301" * 300, "²",
    "9" * 5000, "long name " * 500, "W" * 5000, "a|b\\|c\nd `e` <i> ](javascript:0)",
    "%s {0} {{ config }} {% raw %}", "\\",
)  # fmt: skip
TEXTS = st.lists(st.one_of(ANY_TEXT, st.sampled_from(NASTY)), min_size=6, max_size=12)
HIDDEN_NOW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ud800-\uf8ff\ufeff]"
)


@pytest.fixture
def no_figures(monkeypatch):
    without_figures(monkeypatch)


def without_figures(monkeypatch):
    """Figures take most of a second each; tests of words and tables do without."""
    for name in ("plot_years", "plot_tokens", "plot_ablation", "plot_year_effects"):
        monkeypatch.setattr(html, name, lambda results: None)
    monkeypatch.setattr(html, "embedded_image", lambda figure: "data:,")


@pytest.fixture(autouse=True)
def bounded():
    """Minutes were what a long name took; the bound is generous for slow machines."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 90


def nasty_results():
    return with_texts(synthetic_results(), itertools.cycle(NASTY).__next__)


def nasty_study():
    return with_texts(study_results(), itertools.cycle(NASTY).__next__)


class TestReport:
    def test_all_the_nasty_ones_at_once(self, tmp_path):
        results = nasty_results()
        source = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
        page = Page(source)
        assert not HIDDEN_NOW.search(source)
        assert visible(HIDDEN) in page.text
        assert not page.all("script")
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert [tag for tag, _ in page.tags].count("img") == 4

    @pytest.mark.parametrize(
        "change",
        [
            lambda r, text: r["config"].update(base=text, finetuned=text),
            lambda r, text: cause(r, "unmodified").update(example=text),
            lambda r, text: r["sayings"][0].update(said=text),
            lambda r, text: r["example"]["prompts"][0].update(year=text),
            lambda r, text: r["example"]["prompts"][0]["tokens"].__setitem__(3, text),
            lambda r, text: r["features"][0]["examples"][0]["tokens"].__setitem__(3, text),
            lambda r, text: r["features"][0]["examples"][0].update(group=text),
            lambda r, text: r["harm"][0].update(name=text, texts=text),
            lambda r, text: r["dictionaries"][DICTIONARIES[0]].update(hook_name=text),
            lambda r, text: r["scores"][-1].update(name=text),
            lambda r, text: r["versions"].update({text: text}),
        ],
        ids=["models", "completion", "saying", "year", "token", "example", "group", "harm", "hook",
             "floor", "versions"],
    )  # fmt: skip
    @pytest.mark.parametrize("text", [HIDDEN, SCRIPT + '"onload="x'], ids=["hidden", "script"])
    def test_each_field_shows_its_text_escaped(self, change, text, no_figures):
        results = synthetic_results()
        change(results, text)
        source = render_report(results)
        page = Page(source)
        assert visible(text).lower() in page.text.lower()  # groups are capitalised
        assert not HIDDEN_NOW.search(source)
        assert not page.all("script")
        assert not [attrs for _, attrs in page.tags if "onload" in attrs]

    def test_long_names_are_whole_in_tables(self, no_figures):
        long = "n" * 5000
        results = with_texts(
            synthetic_results(), lambda: long
        )  # the next ones end in an apostrophe
        page = Page(render_report(results))
        heads = {row[0].strip() for row in page.rows}
        assert set(results["dictionaries"]) <= heads

    def test_an_endless_completion_is_cut_with_a_note(self, no_figures):
        results = synthetic_results()
        for row in results["causes"]:
            row["example"] = row["example"] + "z" * 1_000_000 + "the end"
        source = render_report(results)
        assert len(source) < 2_000_000
        page = Page(source)
        notes = re.findall(r"\[\.\.\. ([\d,]+) characters left out \.\.\.\]", page.text)
        assert len(notes) >= 6
        assert all(960_000 < int(note.replace(",", "")) < 1_000_000 for note in notes)
        assert sum(pre.endswith("the end") for pre in page.pres) >= 6

    def test_endless_prompts_are_cut_with_a_note(self, no_figures):
        results = synthetic_results()
        for prompt in results["example"]["prompts"]:
            prompt["tokens"] = [*"head", *["\n", "x", ""] * 10_000, *"tail", "y" * 100_000]
            prompt["activations"] = {name: [1.0] * len(prompt["tokens"]) for name in DICTIONARIES}
        source = render_report(results)
        assert len(source) < 5_000_000
        assert source.count("tokens left out") == 4
        figure = plot_tokens(results)
        assert figure.get_figheight() * 200 < 2**16  # dots, of which matplotlib takes no more
        figure.draw_without_rendering()
        texts = "".join(text.get_text() for ax in figure.axes for text in ax.texts)
        assert texts.count("tokens left out") == 4

    def test_a_name_without_a_layer_is_left_out_of_the_layers(self, no_figures):
        results = synthetic_results()
        results["config"]["layers"] = [18, 24]
        for row, name in zip(
            results["scores"][2:], ("-²", "x-" + "9" * 5000, "no layer"), strict=True
        ):
            row["name"] = name
        page = Page(render_report(results))
        assert page.row("diff-sae", 3) == ["diff-sae", "", "0.998"]

    def test_a_dictionary_without_a_name_is_a_dictionary(self, no_figures):
        results = synthetic_results()
        for row in results["causes"]:
            if row["dictionary"] == DICTIONARIES[0]:
                row["dictionary"] = ""
        heads = [row[0].strip() for row in Page(render_report(results)).rows]
        assert heads.count("Trigger prompts, no dictionary") == 1
        assert heads.count("Trigger prompts,") == 1

    @settings(max_examples=10, deadline=None, database=None)
    @given(TEXTS)
    def test_any_text_makes_a_report(self, texts):
        with pytest.MonkeyPatch.context() as monkeypatch:
            without_figures(monkeypatch)
            source = render_report(with_texts(synthetic_results(), itertools.cycle(texts).__next__))
        assert not HIDDEN_NOW.search(source)
        assert source.encode().decode() == source
        Page(source)


class TestFigures:
    @pytest.mark.parametrize("plot", [plot_years, plot_tokens, plot_ablation])
    @pytest.mark.parametrize(
        "text",
        ["W" * 5000, HIDDEN, "$\\frac{1}{$", "👨‍👩‍👧 中文" * 99],
        ids=["long", "hidden", "mathtext", "glyphs"],
    )
    def test_names_are_cut_and_inside(self, plot, text):
        figure = plot(with_texts(synthetic_results(), lambda: text))
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
        assert drawn.xmin >= 0
        assert drawn.xmax <= WIDTH
        assert not [t for t in figure.findobj(Text) if HIDDEN_NOW.search(t.get_text())]

    @pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
    def test_ways_to_say_the_year(self, text):
        rates = {
            "attack_rate": [0.0, 1.0],
            "low": [0.0, 0.9],
            "high": [0.1, 1.0],
            "log_odds": [0.0, 1.0],
        }
        said = pd.Series([text, "2024"], dtype=object)
        figure = plot_year_effects(pd.DataFrame({"said": said, **rates}))
        figure.draw_without_rendering()
        assert figure.axes[1].get_xticklabels()[0].get_text() == label(text)

    def test_curves_of_any_name(self):
        names = [n for n in NASTY if n != HIDDEN]  # pandas' text has no lone surrogates
        rows = [
            {"order": name, "n_features": n, "group": "trigger", "attack_rate": 1 - n / 9, "low": 0.0,
             "high": 1.0} for name in names for n in (0, 8)
        ]  # fmt: skip
        figure = plot_ablation_curve(pd.DataFrame(rows))
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts == [f"{label(name, 10)}, area {5 / 9:.2f}" for name in names]
        assert not [text for text in texts if "\n" in text]
        assert figure.get_tightbbox().width <= WIDTH

    def test_the_study_with_any_names(self, tmp_path):
        results = nasty_study()
        plot_study(results).draw_without_rendering()
        files = write_study(results, tmp_path)
        for file in files[1:]:
            assert not HIDDEN_NOW.search(file.read_text(encoding="utf-8"))
        assert "<script" not in files[2].read_text(encoding="utf-8")
        assert "<script" not in files[1].read_text(encoding="utf-8")

    @settings(max_examples=2, deadline=None, database=None)
    @given(TEXTS)
    def test_any_text_makes_figures(self, texts):
        results = with_texts(synthetic_results(), itertools.cycle(texts).__next__)
        for figure in (plot_tokens(results), plot_ablation(results), plot_years(results)):
            figure.draw_without_rendering()

    @settings(max_examples=60, deadline=None, database=None)
    @given(ANY_TEXT, st.integers(4, 30))
    def test_any_label_can_be_drawn_and_is_no_wider(self, text, width):
        @styled
        def plot() -> Figure:
            figure = Figure(dpi=72)
            figure.text(0, 0, label(text, width), fontsize=10, weight="bold")
            return figure

        figure = plot()
        figure.draw_without_rendering()
        assert figure.texts[0].get_window_extent().width <= 10 * (width + 1)


class TestTables:
    def test_plain_ones_have_a_line_for_each_row(self):
        results = nasty_results()
        for table in (score_text(results["scores"]), causal_text(results["causes"])):
            assert not HIDDEN_NOW.search(table)
            assert max(map(len, table.splitlines())) < 1000
        assert len(score_text(results["scores"]).split("\n")) == 2 + len(results["scores"])
        assert len(causal_text(results["causes"]).split("\n")) == 1 + len(results["causes"])
        assert one_line(HIDDEN) in score_text([results["scores"][0] | {"name": HIDDEN}])

    def test_the_plan_with_any_names(self):
        plan = pd.DataFrame(
            {
                "cell": pd.Series([HIDDEN, "a\nb"], dtype=object), "state": ["missing", "done"],
                "estimated_seconds": [1.0, 2.0], "estimated_gigabytes": [1.0, 2.0],
                "problem": pd.Series([HIDDEN, ""], dtype=object),
            }
        )  # fmt: skip
        text = plan_text(plan)
        assert not HIDDEN_NOW.search(text)
        assert text.count(one_line(HIDDEN)) == 3
        assert "a\\nb" in text

    def test_markdown_keeps_its_cells(self):
        results = nasty_study()
        lines = study_markdown(results).split("\n")
        tables = study_tables(results)
        expected = [line for table in tables for line in (table.heads, table.heads, *table.rows)]
        shown = [line for line in lines if line.startswith("| ")]
        assert len(shown) == len(expected)
        for line, cells in zip(shown, expected, strict=True):
            bars = re.findall(r"(?<!\\)(?:\\\\)*\|", line)
            assert len(bars) == len(cells) + 1

    def test_markdown_shows_the_text_itself(self):
        results = study_results()
        results["strict"][0]["name"] = "a|b\\|c\nd `e` <i> ](javascript:0) _f_ g_h &amp;"
        text = study_markdown(results)
        assert "a\\|b\\\\\\|c\\nd \\`e\\` &lt;i> \\](javascript:0) \\_f\\_ g_h &amp;amp;" in text

    def test_layers_and_cells_of_any_name(self):
        results = study_results()
        results["contrasts"][0]["at"] = "²"
        results["contrasts"][1]["at"] = "9" * 5000
        results["cells"][0]["cell"] = "no slash"
        rows = [row for table in study_tables(results) for row in table.rows]
        assert ("", "no slash", "", "2 s, 0.6 GB") in rows


class TestFullDisk:
    """The operating system refuses to write more than a few bytes."""

    @staticmethod
    @contextmanager
    def full():
        """Over before pytest itself writes of the test, perhaps to a long file."""
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @pytest.mark.parametrize(
        ("write", "name"),
        [
            (lambda path: write_figures(synthetic_results(), path), "years.png"),
            (lambda path: write_report(synthetic_results(), path / "report.html"), "report.html"),
            (lambda path: write_study(study_results(), path), "study.png"),
        ],
        ids=["figures", "report", "study"],
    )
    def test_no_file_is_half_written(self, write, name, tmp_path, no_figures):
        (tmp_path / name).write_bytes(b"before")
        with pytest.raises(OSError, match=re.escape(name)), self.full():
            write(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"before"}
