"""Reports, figures and tables of results whose texts are of any length and content."""

import itertools
import re
import time
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from diffsae_lens._display import one_line, visible
from diffsae_lens.reporting._effects import plot_ablation_curve, plot_sayings
from diffsae_lens.reporting._figures import plot_ablation, plot_sweep, plot_tokens
from diffsae_lens.reporting._glance import plot_glance
from diffsae_lens.reporting._html import render_report, write_report
from diffsae_lens.reporting._style import WIDTH, Figure, label, styled
from diffsae_lens.reporting._tables import (
    effect_text,
    plan_text,
    results_markdown,
    results_tables,
    score_text,
)
from diffsae_lens.results import CurveRow, SayingRow, Table
from tests.reporting.rows import make
from tests.reporting.synthetic import (
    DICTIONARIES,
    DIFF,
    changed,
    synthetic_results,
    with_texts,
)
from tests.reporting.test_display import ANY_TEXT
from tests.reporting.test_html import FIGURES, Page
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


def words(results) -> str:
    """The report without its figures."""
    return render_report(results, figures=FIGURES)


class TestReport:
    def test_all_the_nasty_ones_at_once(self):
        source = words(nasty_results())
        page = Page(source)
        assert not HIDDEN_NOW.search(source)
        assert visible(HIDDEN) in page.text
        assert not page.all("script")
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert [tag for tag, _ in page.tags].count("img") == 4

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("effects", {"example": "TEXT"}),
            ("sayings", {"said": "TEXT"}),
            ("example", {"said": "TEXT"}),
            ("side_effects", {"name": "TEXT", "texts": "TEXT"}),
            ("dictionaries", {"hook_name": "TEXT"}),
            ("scores", {"name": "TEXT", "verdict": "TEXT"}),
            ("cards", {"decoder": {"TEXT": 1.0}}),
            ("cells", {"cell": "TEXT"}),
        ],
        ids=lambda value: value if isinstance(value, str) else "+".join(value),
    )
    @pytest.mark.parametrize("text", [HIDDEN, SCRIPT + '"onload="x'], ids=["hidden", "script"])
    def test_each_field_shows_its_text_escaped(self, part, change, text):
        new = {
            name: {text: 1.0} if isinstance(value, dict) else text for name, value in change.items()
        }
        self.check(changed(synthetic_results(), part, {}, **new), text)

    def test_an_interventions_name_is_escaped(self):
        which = {"kind": "unmodified"}
        self.check(changed(synthetic_results(), "effects", which, name=HIDDEN + SCRIPT), HIDDEN)

    @pytest.mark.parametrize("text", [HIDDEN, SCRIPT + '"onload="x'], ids=["hidden", "script"])
    def test_what_is_not_a_row_is_escaped(self, text):
        results = replace(
            synthetic_results(),
            config={"models": {"base": text}},
            versions={text: text},
            deviations=(text,),
        )
        for prompt in results.example:
            prompt.tokens[3] = text
        results.cards[0].examples[0]["tokens"][3] = text
        results.cards[0].examples[0]["group"] = text
        self.check(results, text)

    def check(self, results, text):
        source = words(results)
        page = Page(source)
        assert visible(text).lower() in page.text.lower()  # groups are capitalised
        assert not HIDDEN_NOW.search(source)
        assert not page.all("script")
        assert not [attrs for _, attrs in page.tags if "onload" in attrs]

    def test_long_names_are_whole_in_tables(self):
        long = "n" * 5000
        # The next ones end in an apostrophe.
        results = with_texts(synthetic_results(), lambda: long)
        heads = {row[0].strip() for row in Page(words(results)).rows}
        assert {row.name for row in results.dictionaries} <= heads

    def test_an_endless_completion_is_cut_with_a_note(self):
        results = synthetic_results()
        rows = tuple(
            replace(row, example=row.example + "z" * 1_000_000 + "the end")
            for row in results.effects
        )
        source = words(replace(results, effects=rows))
        assert len(source) < 2_000_000
        page = Page(source)
        notes = re.findall(r"\[\.\.\. ([\d,]+) characters left out \.\.\.\]", page.text)
        assert len(notes) >= 6
        assert all(960_000 < int(note.replace(",", "")) < 1_000_000 for note in notes)
        assert sum(pre.endswith("the end") for pre in page.pres) >= 6

    def test_endless_prompts_are_cut_with_a_note(self):
        tokens = [*"head", *["\n", "x", ""] * 10_000, *"tail", "y" * 100_000]
        activations = {name: [1.0] * len(tokens) for name in DICTIONARIES}
        results = changed(
            synthetic_results(), "example", {}, tokens=tokens, activations=activations
        )
        source = words(results)
        assert len(source) < 5_000_000
        assert source.count("tokens left out") == 4
        figure = plot_tokens(results)
        assert figure.get_figheight() * 200 < 2**16  # dots, of which matplotlib takes no more
        texts = "".join(text.get_text() for ax in figure.axes for text in ax.texts)
        assert texts.count("tokens left out") == 4

    def test_a_dictionary_without_a_name_is_a_dictionary(self):
        results = changed(synthetic_results(), "effects", {"dictionary": DIFF}, dictionary="")
        heads = [row[0].strip() for row in Page(words(results)).rows]
        assert heads.count("Trigger prompts, no dictionary") == 1
        assert heads.count("Trigger prompts,") == 1

    @settings(max_examples=6, deadline=None, database=None)
    @given(TEXTS)
    def test_any_text_makes_a_report(self, texts):
        source = words(with_texts(synthetic_results(), itertools.cycle(texts).__next__))
        assert not HIDDEN_NOW.search(source)
        assert source.encode().decode() == source
        Page(source)


def cut_prompts(results):
    """With little of each prompt: a token takes as long as a label."""
    few = tuple(
        replace(
            row,
            tokens=row.tokens[:9],
            activations={name: values[:9] for name, values in row.activations.items()},
        )
        for row in results.example
    )
    return replace(results, example=few)


class TestFigures:
    @pytest.mark.parametrize("plot", [plot_sweep, plot_tokens, plot_ablation])
    @pytest.mark.parametrize(
        "text",
        ["W" * 5000, HIDDEN + "$\\frac{1}{$", "👨‍👩‍👧 中文" * 99],
        ids=["long", "hidden and mathtext", "glyphs"],
    )
    def test_names_are_cut_and_inside(self, plot, text):
        figure = plot(cut_prompts(with_texts(synthetic_results(), lambda: text)))
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
        assert drawn.xmin >= 0
        assert drawn.xmax <= WIDTH
        assert not [t for t in figure.findobj(Text) if HIDDEN_NOW.search(t.get_text())]

    def test_ways_to_say_it(self):
        texts = [*dict.fromkeys(NASTY), "2024"]
        rows = [make(SayingRow, said=text, group="other", log_odds=0.0) for text in texts]
        figure = plot_sayings(Table(tuple(rows)), said=HIDDEN)
        figure.draw_without_rendering()
        drawn = [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
        assert drawn == [label(text) for text in texts]

    def test_curves_of_any_name(self):
        rows = [
            make(CurveRow, order=name, n_features=n, group="trigger", attack_rate=1 - n / 9, high=1.0)
            for name in NASTY for n in (0, 8)
        ]  # fmt: skip
        figure = plot_ablation_curve(Table(tuple(rows)))
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts == [f"{label(name, 10)}, area {5 / 9:.2f}" for name in NASTY]
        assert not [text for text in texts if "\n" in text]
        assert figure.get_tightbbox().width <= WIDTH

    def test_the_study_with_any_names(self):
        plot_glance(nasty_study()).draw_without_rendering()

    @settings(max_examples=2, deadline=None, database=None)
    @given(TEXTS)
    def test_any_text_makes_figures(self, texts):
        results = cut_prompts(with_texts(synthetic_results(), itertools.cycle(texts).__next__))
        for figure in (plot_tokens(results), plot_ablation(results), plot_sweep(results)):
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
        scores, effects = score_text(results.scores), effect_text(results.effects)
        for table in (scores, effects):
            assert not HIDDEN_NOW.search(table)
            assert max(map(len, table.splitlines())) < 2000
        assert len(scores.split("\n")) == 5 + len(results.scores)  # titles, heads, a blank line
        assert len(effects.split("\n")) == 1 + len(results.effects)
        assert one_line(HIDDEN) in score_text([replace(results.scores[0], name=HIDDEN)])

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
        lines = results_markdown(results).split("\n")
        tables = results_tables(results)
        expected = [line for table in tables for line in (table.heads, table.heads, *table.rows)]
        shown = [line for line in lines if line.startswith("| ")]
        assert len(shown) == len(expected)
        for line, cells in zip(shown, expected, strict=True):
            bars = re.findall(r"(?<!\\)(?:\\\\)*\|", line)
            assert len(bars) == len(cells) + 1
        assert "<script" not in results_markdown(results)

    def test_markdown_shows_the_text_itself(self):
        name = "a|b\\|c\nd `e` <i> ](javascript:0) _f_ g_h &amp;"
        text = results_markdown(changed(study_results(), "scores", {}, name=name))
        assert "a\\|b\\\\\\|c\\nd \\`e\\` &lt;i> \\](javascript:0) \\_f\\_ g_h &amp;amp;" in text


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

    @pytest.mark.parametrize("name", ["report.html", "figures/sayings.png"])
    def test_no_file_is_half_written(self, name, tmp_path):
        results = replace(synthetic_results(), example=(), sweep=(), effects=())
        if name == "report.html":
            results = replace(results, sayings=())
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"before")
        with pytest.raises(OSError, match=re.escape(tmp_path.name)), self.full():
            write_report(results, tmp_path)
        left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {file: b"before"}
