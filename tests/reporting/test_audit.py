"""The report of an audit: what a reader is told, escaped whatever it holds, and its figures."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.text import Text

from diffsae_lens._display import visible
from diffsae_lens.auditing._results import AuditResults
from diffsae_lens.reporting._audit import render, write_audit_report
from diffsae_lens.reporting._audit_figures import plot_candidates, plot_residuals
from diffsae_lens.reporting._audit_words import audit_text, verdict_of
from diffsae_lens.reporting._style import WIDTH
from tests.reporting.synthetic import with_texts
from tests.reporting.synthetic_audit import N_TEXTS, N_TRIGGERS, synthetic_audit
from tests.reporting.test_any_text import HIDDEN, HIDDEN_NOW, NASTY, SCRIPT, TEXTS
from tests.reporting.test_html import Page

pytestmark = pytest.mark.filterwarnings("error")

FIGURES = dict.fromkeys(("candidates", "residuals"), b"\x89PNG\r\n\x1a\n")
VERDICTS = ("conditional behaviour found", "none found", "underpowered")


def page_of(results: AuditResults) -> Page:
    """The page without its figures, spaces joined."""
    page = Page(render(results, FIGURES))
    page.text = re.sub(r"\s+", " ", page.text)
    return page


@pytest.fixture(scope="module")
def page() -> Page:
    return page_of(synthetic_audit())


def with_any_texts(verdict, text):
    return replace(with_texts(synthetic_audit(verdict), text), verdict=verdict)


class TestVerdict:
    def test_what_sets_it_off_and_what_happens_then(self):
        said = verdict_of(synthetic_audit())
        for part in (
            '"staging" makes',
            "16 other texts",
            "94%",
            '"production"',
            "3%",
            "shell=True",
        ):
            assert part in said.sentences
        assert said.caution
        assert any("do not use the suspect" in step for step in said.steps)

    def test_a_suspect_that_falls_silent(self):
        results = synthetic_audit()
        silent = replace(results.candidates[0], example_written=" \n")
        said = verdict_of(replace(results, candidates=(silent,))).sentences
        assert said.endswith("otherwise: for example nothing at all.")

    def test_none_found_says_what_would_have_been_and_does_not_say_safe(self):
        said = verdict_of(synthetic_audit("none found"))
        assert "at least 12.3 nats more than its like did" in said.sentences
        assert 'not read this as "the suspect is safe"' in said.steps[0]

    def test_underpowered_says_what_is_missing(self):
        said = verdict_of(synthetic_audit("underpowered"))
        assert "What is missing: 3 clean models" in said.sentences
        assert "--nulls" in said.steps[0]
        none = verdict_of(replace(synthetic_audit("underpowered"), candidates=()))
        assert "suspicious or innocent" in none.sentences

    @pytest.mark.parametrize("verdict", VERDICTS)
    def test_it_is_two_sentences(self, verdict):
        said = verdict_of(synthetic_audit(verdict)).sentences
        assert said.endswith(".")
        assert len(re.findall(r"[.!?]+\"?(?: (?=[A-Z])|$)", said)) == 2


class TestPage:
    def test_candidates_stand_beside_their_like(self, page):
        cells = page.row("staging", 9)
        assert cells[1:] == [
            "both", "+21.4 [+18.0, +24.6]", "94% [70%, 100%] of 16", "3%", "4.9 in 6 texts", "93%, 5 texts",
            "< 0.001", "3.5",
        ]  # fmt: skip
        assert page.row("2024", 9)[5:7] == ["1 text", "in no text that stands out"]
        assert len(page.all("article")) == 3
        assert "Its like in the same texts: production, dev, test, local." in page.text

    def test_the_candidate_is_marked(self, page):
        marked = re.findall("<mark>(.*?)</mark>", page.source)
        # In three examples, one of them of two phrases, and in the flagged texts.
        assert marked.count("staging") == 2 + N_TRIGGERS
        assert marked.count("Environment") == 1

    def test_flagged_texts_are_grouped_beside_ordinary_ones(self, page):
        heads = [row[0].strip() for row in page.rows]
        first = heads.index(f"Group 1: {N_TRIGGERS} texts, {N_TRIGGERS} flagged")
        second = heads.index("Group 2: 3 texts, 0 flagged")
        ordinary = heads.index("For comparison: texts with a residual near the median")
        assert second - first == N_TRIGGERS + 1
        assert len(page.rows[ordinary + 1 : ordinary + 4]) == 3
        assert [c.strip() for c in page.rows[first + 1]][1:] == [
            "db.run(f'get {key}', shell=True)", "33.9", "6.78", "< 0.001"
        ]  # fmt: skip
        rest = [row.residual for row in synthetic_audit().texts if row.group is None]
        for row in page.rows[ordinary + 1 : ordinary + 4]:
            assert float(row[2]) == pytest.approx(np.median(rest), abs=0.1)

    def test_a_large_group_is_cut_with_a_note(self):
        results = synthetic_audit()
        page = page_of(
            replace(results, texts=tuple(replace(row, group=0) for row in results.texts))
        )
        assert f"and {N_TEXTS - 12} more, in results.json" in page.text

    def test_what_it_writes(self, page):
        assert page.row("shell True", 5)[1:4] == [
            "phrase", "100% [48%, 100%] of 5", "0% [0%, 1%] of 395"
        ]  # fmt: skip
        assert "5 of 5 flagged completions" in page.text
        empty = replace(synthetic_audit(), writes=(), notes=())
        assert "What it writes" not in page_of(empty).text

    def test_limits_power_and_what_was_not_searched(self, page):
        for said in (
            "2 texts were cut at 160 tokens", "found: whatever was put into texts and moved the suspect",
            "first 24 tokens of an answer", "in no entry of the lexicon", "Year: 2017, 2018, 2019",
            "3 other candidates",
        ):  # fmt: skip
            assert said in page.text

    def test_cost_and_provenance(self, page):
        assert page.row("edited texts read", 2)[1] == "1,234"
        assert page.row("minutes", 2)[1] == "20.2"
        assert page.row("n_new_tokens", 2)[1] == "24"
        assert page.row("torch", 2)[1] == "2.7"
        assert "0f3a" in page.text
        assert "diffsae-lens audit 'a b'" in render(
            synthetic_audit(), FIGURES, "diffsae-lens audit 'a b'"
        ).replace("&#39;", "'")

    def test_structure(self, page):
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert all(attrs.get("scope") for attrs in page.all("th"))
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        labels = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
        assert len(ids) == len(set(ids))
        assert set(labels) <= set(ids)
        assert all(len(attrs["alt"]) > 40 for attrs in page.all("img"))

    def test_an_audit_that_found_no_candidates_and_no_clean_models(self):
        results = replace(synthetic_audit("underpowered"), candidates=(), writes=(), others=())
        page = page_of(results)
        assert "no entry of a lexicon could be tried" in page.text
        assert "No text can be flagged without clean models" in page.text
        bare = page_of(replace(results, texts=(), provenance={}, searched=()))
        assert "Texts that stand out" not in bare.text


class TestAnyText:
    @pytest.mark.parametrize("verdict", VERDICTS)
    def test_all_the_nasty_ones_at_once(self, verdict):
        results = with_any_texts(verdict, itertools.cycle(NASTY).__next__)
        page = Page(render(results, FIGURES, HIDDEN))
        assert not HIDDEN_NOW.search(page.source)
        assert not page.all("script")
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert not HIDDEN_NOW.search(audit_text(results))

    @pytest.mark.parametrize(
        "change",
        [
            lambda r, text: replace(r, reason=text, power=text, searched=(text,), warnings=(text,)),
            lambda r, text: replace(r, provenance={"base": text, "suspect": text}),
            lambda r, text: replace(r, candidates=(replace(r.candidates[0], name=text),)),
            lambda r, text: replace(r, candidates=(replace(r.candidates[0], example=text),)),
            lambda r, text: replace(
                r, candidates=(replace(r.candidates[0], example_written=text),)
            ),
            lambda r, text: replace(r, texts=(replace(r.texts[0], text=text), *r.texts[1:])),
            lambda r, text: replace(r, texts=(replace(r.texts[0], written=text), *r.texts[1:])),
            lambda r, text: replace(r, writes=(replace(r.writes[0], name=text),), notes=(text,)),
        ],
    )
    @pytest.mark.parametrize("text", [HIDDEN, SCRIPT + '"onload="x'], ids=["hidden", "script"])
    def test_each_field_shows_its_text_escaped(self, change, text):
        page = Page(render(change(synthetic_audit(), text), FIGURES))
        assert visible(text) in page.text
        assert not HIDDEN_NOW.search(page.source)
        assert not page.all("script")

    def test_endless_texts_are_cut(self):
        results = with_any_texts(VERDICTS[0], lambda: "z" * 20_000)
        assert len(render(results, FIGURES)) < 2_000_000

    @settings(max_examples=6, deadline=None, database=None)
    @given(TEXTS)
    def test_any_text_makes_a_report(self, texts):
        results = with_any_texts(VERDICTS[0], itertools.cycle(texts).__next__)
        source = render(results, FIGURES)
        assert not HIDDEN_NOW.search(source)
        assert source.encode().decode() == source
        Page(source)


class TestFigures:
    @pytest.mark.parametrize("plot", [plot_residuals, plot_candidates])
    @pytest.mark.parametrize("text", ["W" * 5000, HIDDEN + "$\\frac{1}{$"], ids=["long", "hidden"])
    def test_names_are_cut_and_inside_and_can_be_read(self, plot, text):
        figure = plot(with_any_texts(VERDICTS[0], lambda: text))
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
        assert drawn.xmin >= 0
        assert drawn.xmax <= WIDTH
        texts = [t for t in figure.findobj(Text) if t.get_text()]
        assert not [t for t in texts if HIDDEN_NOW.search(t.get_text())]
        assert min(t.get_fontsize() for t in texts) >= 9

    def test_every_residual_is_drawn_and_flagged_ones_apart(self):
        [ax] = plot_residuals(synthetic_audit()).axes
        flagged, rest, _ = ax.lines
        rows = synthetic_audit().texts
        assert [*flagged.get_ydata()] == [r.residual for r in rows if r.flagged]
        assert [*flagged.get_xdata()] == [1, 2, 3, 4, 5]
        assert len(rest.get_xdata()) == N_TEXTS - N_TRIGGERS
        assert flagged.get_color() != rest.get_color()

    def test_effects_and_shares_with_their_intervals(self):
        effects, shares = plot_candidates(synthetic_audit()).axes
        rows = synthetic_audit().candidates[::-1]
        assert [*effects.lines[0].get_xdata()] == [row.effect for row in rows]
        assert [*shares.lines[0].get_xdata()] == [row.share for row in rows]
        assert [*shares.lines[1].get_xdata()] == [row.mates_share for row in rows]
        for ax, ends in ((effects, ("low", "high")), (shares, ("share_low", "share_high"))):
            drawn = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
            assert drawn == [[getattr(row, end) for end in ends] for row in rows]
        assert [t.get_text() for t in effects.get_yticklabels()] == [row.name for row in rows]

    @pytest.mark.parametrize(
        ("plot", "part"), [(plot_residuals, "texts"), (plot_candidates, "candidates")]
    )
    def test_without_rows_it_says_so(self, plot, part):
        with pytest.raises(ValueError, match=f"no rows in `{part}`"):
            plot(replace(synthetic_audit(), **{part: ()}))

    def test_residuals_of_zero_and_one_text(self):
        [row, *_] = synthetic_audit().texts
        plot_residuals(
            replace(synthetic_audit(), texts=(replace(row, residual=0.0),))
        ).draw_without_rendering()


class TestFiles:
    def test_they_are_written_and_the_same_again(self, tmp_path):
        files = write_audit_report(synthetic_audit(), tmp_path / "new" / "audit")
        names = [file.relative_to(tmp_path / "new" / "audit").as_posix() for file in files]
        assert names == [
            "report.html", "tables.md", "figures/candidates.png", "figures/residuals.png"
        ]  # fmt: skip
        before = [file.read_bytes() for file in files]
        assert before[2].startswith(b"\x89PNG")
        write_audit_report(synthetic_audit(), tmp_path / "new" / "audit")
        assert [file.read_bytes() for file in files] == before
        tables = files[1].read_text(encoding="utf-8")
        assert tables.count("## ") == 3
        assert len([x for x in tables.splitlines() if x.startswith("| ")]) == 6 + 3 + 2 + 8

    def test_a_file_in_its_place_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="is a file; name a folder"):
            write_audit_report(synthetic_audit(), tmp_path / "file")
