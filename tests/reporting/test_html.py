import base64
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.reporting._figures import drawings_of
from diffsae_lens.reporting._html import render_report, write_report
from diffsae_lens.reporting._lookup import rate_text, with_controls
from diffsae_lens.reporting._summary import summarise
from tests.reporting.synthetic import (
    COUNTS,
    CROSS,
    DICTIONARIES,
    DIFF,
    PLACES,
    changed,
    joined,
    moved,
    only,
    synthetic_results,
)

FIGURES = dict.fromkeys(("sweep", "tokens", "ablation", "sayings"), b"\x89PNG\r\n\x1a\n")
"""In place of figures, which take most of a second each: tests of words and tables do without."""
COMMAND = "diffsae-lens demo --out 'a b'"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a browser would make of the report, as far as the tests look at it."""

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.pres: list[str] = []
        self.spans: list[tuple[dict, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr" and "note" not in (dict(attrs).get("class") or "").split():
            self.rows.append([])  # a note stands under its row
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "pre":
            self.pres.append("")
        if tag == "span" and "title" in dict(attrs):
            self.spans.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data
        if "pre" in self._open:
            self.pres[-1] += data
            if self._open[-1] == "span" and self.tags[-1][1].get("title"):
                self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)

    def row(self, head: str, n_cells: int) -> list[str]:
        [row] = [
            [cell.strip() for cell in row]
            for row in self.rows
            if row[0].strip() == head and len(row) == n_cells
        ]
        return row

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(synthetic_results(), figures=FIGURES, command=COMMAND))


@pytest.fixture
def results():
    return synthetic_results()


def words(results) -> Page:
    """The page without its figures."""
    return Page(render_report(results, figures=FIGURES))


class TestTables:
    def test_scores_of_both_protocols_stand_beside_their_ceiling(self, page, results):
        strict = [row for row in results.scores if row.protocol == "strict"]
        for row in strict:
            cells = page.row(row.name, 10)[1:]
            assert cells[0] == str(row.n_features)
            assert cells[1] == f"{row.bis:.2f} [{row.low:.2f}, {row.high:.2f}]"
            assert cells[2].split(",")[0] == "1.00"
            assert cells[3] == f"{row.base_bis:.2f}"
            assert cells[4] == "< 0.001"
            assert cells[5:7] == [f"{row.auroc:.3f}", f"{row.average_precision:.3f}"]
            assert cells[7] == (str(row.feature_idx) if row.kind == "dictionary" else "")
            assert cells[8] == row.verdict == "isolated"
        for row in results.scores[1::2]:
            cells = page.row(row.name, 9)[1:]
            assert cells[1].startswith(f"{row.bis:.2f} [")
            assert cells[2] == ("0.40, reached" if row.bis == 0.4 else "0.40")
            assert cells[5:7] == ["0.990", "0.250"]

    def test_floors_and_other_controls_are_set_apart(self, page):
        heads = [row[0].strip() for row in page.rows]
        at = heads.index("Floors: what a dictionary has to beat")
        assert heads[at - 3 : at] == ["Dictionaries", *DICTIONARIES]
        assert heads[at + 1 : at + 4] == [
            f"untrained {DIFF}", "random directions", "principal components"
        ]  # fmt: skip
        assert heads[at + 4].startswith("Other controls")
        assert heads[at + 5 : at + 7] == ["linear probe", "text search"]

    def test_effects(self, page, results):
        start = next(i for i, r in enumerate(page.rows) if r[0].startswith("Trigger prompts, no"))
        shown = [[c.strip() for c in r] for r in page.rows[start:] if len(r) == 11]
        assert len(shown) == len(results.effects)
        expected = [
            [
                str(r.n_features or ""), rate_text(r), str(r.n_prompts), *map(str, r.counts.values()),
                f"{r.log_odds:+.2f}", f"{r.cross_entropy:.3f}", "2.5",
            ]
            for r in results.effects
        ]  # fmt: skip
        assert sorted(row[1:] for row in shown) == sorted(expected)

    def test_outcomes_are_the_behaviours_own(self, results):
        rows = tuple(replace(r, counts={"hello_there": 30, "bye": 2}) for r in results.effects)
        page = words(replace(results, effects=rows))
        [heads] = [row for row in page.rows if row[0] == "Intervention" and "Prompts" in row]
        at = heads.index("Prompts")
        assert heads[at + 1 : at + 3] == ["Hello there", "Bye"]
        assert "Hello there, Bye" in page.text

    def test_controls_stand_under_what_they_control_for(self, page):
        heads = [row[0].strip() for row in page.rows]
        at = heads.index(f"Trigger prompts, {CROSS}")
        assert (
            heads[at + 1 : at + 7] == ["top features ablated", "control: random ones ablated"] * 3
        )
        at = heads.index(f"Benign prompts, {DIFF}")
        assert heads[at + 1 : at + 4] == [
            "top features ablated",
            "steered with top features",
            "control: steered with a random direction",
        ]

    def test_controls_are_found_in_any_order(self, results):
        ordered = list(with_controls(results.effects[::-1]))
        assert len(ordered) == len(results.effects)
        for row, after in pairwise(ordered):
            if after.is_control:
                assert after.control_of == row.name
                assert (after.dictionary, after.n_features) == (row.dictionary, row.n_features)

    def test_provenance(self, page, results):
        for name, value in results.versions.items():
            assert value in {row[1] for row in page.rows if row[0] == name}
        assert page.row("tokens.k", 2)[1] == "32"
        assert page.row("layers", 2)[1] == "24"
        described = [r for r in page.rows if "blocks.24.hook_resid_post.concat" in r]
        assert described == [
            [CROSS, "crosscoder", "blocks.24.hook_resid_post.concat", "jumprelu", "1152", "2304", "32",
             "32.41"]
        ]  # fmt: skip
        assert page.row("24/scores", 3) == ["24/scores", "done", "x-0123"]
        assert COMMAND in page.pres


class TestSafety:
    NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\""

    def test_everything_is_escaped(self, results):
        results = changed(results, "effects", {"kind": "unmodified"}, example=self.NASTY)
        results = changed(results, "scores", {"kind": "control"}, name=self.NASTY)
        for prompt in results.example:
            prompt.tokens[5] = self.NASTY
        results = replace(
            results,
            config={"models": {"base": self.NASTY}},
            versions={self.NASTY: self.NASTY},
            deviations=(self.NASTY,),
        )
        page = words(results)
        assert not page.all("script")
        assert not [a for tag, a in page.tags if any(name.startswith("on") for name in a)]
        assert len(page.all("img")) == 4
        assert page.text.count(self.NASTY) >= 8
        assert sum(text == self.NASTY for _, text in page.spans) == 4
        assert all(repr(self.NASTY) in a["title"] for a, t in page.spans if t == self.NASTY)

    def test_needs_no_network_and_no_script(self, page):
        for tag, attrs in page.tags:
            assert tag not in ("script", "link", "iframe", "object", "base")
            assert "href" not in attrs
            if "src" in attrs:
                assert attrs["src"].startswith("data:image/png;base64,iVBOR")
        assert len(page.all("img")) == 4
        without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", page.source)
        for word in ("http:", "https:", "//", "@import", "url(", "javascript:"):
            assert word not in without_images

    def test_the_same_results_give_the_same_bytes(self, page):
        again = render_report(synthetic_results(), figures=FIGURES, command=COMMAND)
        assert again == page.source


class TestAccess:
    def test_structure(self, page):
        [document] = page.all("html")
        assert document["lang"] == "en"
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))
        assert all(attrs.get("scope") for attrs in page.all("th"))
        assert all(len(attrs["alt"]) > 40 for attrs in page.all("img"))
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        labels = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
        assert len(ids) == len(set(ids))
        assert set(labels) <= set(ids)
        assert all("tabindex" in a and a["aria-label"] for a in page.all("div")
                   if "scroll" in a.get("class", ""))  # fmt: skip

    def test_words_are_explained(self, page):
        for word in (
            "BIS",
            "Ceiling",
            "p-value",
            "AUROC",
            "Attack rate",
            "Log-odds",
            "Cross-entropy",
        ):
            assert f"<dt>{word}</dt>" in page.source

    def test_themes_and_print(self, page):
        for rule in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
            assert rule in page.source


class TestContent:
    def test_tokens(self, page, results):
        prompts = results.example
        expected = [
            (token.replace("\n", "↵\n"), f"token {i} {token!r}: {value:.3f}")
            for name in DICTIONARIES
            for prompt in prompts
            for i, (token, value) in enumerate(
                zip(prompt.tokens, prompt.activations[name], strict=True)
            )
        ]
        spans = page.spans[: len(expected)]
        assert [(text, attrs["title"]) for attrs, text in spans] == expected
        shares = [float(a["style"].split(":")[1]) for a, _ in spans]
        assert max(shares) == 1
        assert min(shares) == 0
        [prompt] = [p for p in prompts if p.group == "trigger"]
        values = prompt.activations[DIFF]
        first = values.index(max(values))
        strongest = f"Strongest: token {first} {prompt.tokens[first]!r} {max(values):.3f}"
        assert strongest in re.sub(r"\s+", " ", page.text)

    def test_features(self, page, results):
        cards = page.all("article")
        assert len(cards) == len(results.cards)
        text = re.sub(r"\s+", " ", page.text)
        for row in results.cards:
            for shown in (
                f"{row.dictionary}, feature {row.feature} of 2304",
                f"{row.attribution:+.2f} nats",
                f"{row.ablation:+.2f} nats",
                "trigger: 3.5% of tokens",
                "other: 0.0% of tokens",
            ):
                assert shown in text
        assert text.count(f"control: {DIFF}, feature 8") == 1
        n_in_example = sum(len(p.tokens) for p in results.example)
        first = page.spans[n_in_example * 2]
        assert first[0]["title"].startswith("token 5 ")  # counted in its text, not in the window
        bars = [a for a in page.all("div") if a.get("class") == "histogram"]
        assert len(bars) == 3 * len(cards)
        assert "on trigger texts: it fires on 3.5% of their tokens" in bars[0]["aria-label"]
        heights = re.findall(r"--height: ([\d.]+)%", page.source)
        assert heights[:3] == ["50.0", "100.0", "25.0"]  # of 1%, 2%, 0.5%
        n_tokens = sum(len(e["tokens"]) for row in results.cards for e in row.examples)
        assert len(page.spans) == n_tokens + n_in_example * len(DICTIONARIES)

    def test_a_label_is_text_and_only_there_where_there_is_one(self, page, results):
        assert "Label" not in page.text
        label = "<script>alert(1)</script>\u202e"
        labelled = words(
            changed(results, "cards", {"feature": results.cards[0].feature}, label=label)
        )
        assert r"Label (not checked): <script>alert(1)</script>\u202e" in labelled.text

    def test_a_feature_that_never_fires(self, results):
        silent = {"trigger": [0.0], "benign": [0.0], "other": [0.0]}
        assert (
            "fires on none of these texts"
            in words(changed(results, "cards", {}, histogram=silent, examples=[])).text
        )

    def test_bars_are_shares_of_the_axis(self, page, results):
        row = only(results.effects, kind="unmodified", group="benign")
        ends = f"--low: {100 * row.low:.2f}%; --at: {100 * row.attack_rate:.2f}%"
        assert ends in page.source
        # Of the ceiling, 0.40: 0.31 [0.29, 0.33].
        assert "--low: 72.50%; --at: 77.50%; --high: 82.50%" in page.source

    def test_completions(self, page, results):
        shown = [only(results.effects, kind="unmodified", group="trigger")]
        shown.append(only(results.effects, kind="swap to base"))
        shown += [
            r
            for r in results.effects
            if (r.kind, r.group, r.n_features) == ("ablation", "trigger", COUNTS[-1])
        ]
        assert len(shown) == 6
        assert all(row.example in page.pres for row in shown)
        # Grey is what all share, and that is the prompt up to the line the query is on.
        shared = re.search(r'<span class="shared">(.*?)</span>', page.source, re.DOTALL)
        assert shared is not None
        [trigger] = YEAR_TRIGGER.make_samples("test", n_trigger=1, n_benign=0, n_other=0)
        assert unescape(shared[1]) == trigger.prompt[: trigger.prompt.rindex("\n") + 1]

    def test_sweep_captions(self, page, results):
        row = only(results.sweep, dictionary=DIFF, said="2024")
        assert f"{DIFF} reads {row.mean:.3g} on average for 2024" in page.text

    def test_summary_is_shown(self, page, results):
        findings = summarise(results)
        assert len(findings) == 12
        assert all(finding.text in page.text for finding in findings)
        assert page.source.count('class="caution"') == 0

    def test_words_are_those_of_the_behaviour(self, page):
        for shown in ("the year 2024", "injectable SQL", "Activation by year", "say 2020, 2021"):
            assert shown in page.text
        general = words(replace(synthetic_results(said=PLACES), example=(), behaviour="mine"))
        prose = re.sub(r"(?s)One trigger prompt, completed.*The strongest", "", general.text)
        prose = re.sub(r"(?s)Trigger text.*?control: |Trigger text.*?Words", "", prose)
        for word in ("year", "SQL", "2024"):
            assert word not in prose.replace("quarter", "")
        general = general.text
        assert "the unwanted completion" in general


class TestParts:
    """A part that a plan does not make is empty, and the report passes over it."""

    def test_of_nothing_there_is_a_page(self, results):
        empty = {
            part: () for part in ("scores", "effects", "side_effects", "cards", "sayings", "sweep",
            "dictionaries", "cells", "deviations")
        }  # fmt: skip
        page = Page(render_report(replace(results, example=(), **empty)))
        assert not page.all("img")
        assert "Provenance" in page.text

    @pytest.mark.parametrize(
        "part", ["scores", "effects", "side_effects", "cards", "sayings", "sweep", "dictionaries"]
    )
    def test_each_can_be_missing(self, results, part):
        words(replace(results, **{part: ()}))

    def test_several_places_are_folded_under_the_tables_of_all(self, results):
        both = joined(moved(results, 18), results)
        names = [drawing.name for drawing in drawings_of(both)]
        assert names == [
            "overview", "sweep-18", "tokens-18", "ablation-18", "sayings-18", "sweep-24", "tokens-24",
            "ablation-24",
        ]  # fmt: skip
        page = Page(render_report(both, figures=dict.fromkeys(names, b"")))
        assert len(page.all("img")) == len(names)
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        assert "Layer 18" in page.text
        assert "Layer 24" in page.text
        assert [DIFF, *["0.91 [0.81, 1.00], base 0.12"] * 2] in page.rows
        assert [DIFF, "top features ablated", "8", *["62% [45%, 77%]"] * 2] in page.rows
        with pytest.raises(ValueError, match=r"of one place, got \['layer 18', 'layer 24'\]"):
            summarise(both)


class TestWriting:
    def test_whole_or_not_at_all(self, results, tmp_path):
        path = tmp_path / "new"
        cheap = replace(results, sweep=(), example=(), effects=())
        files = write_report(cheap, path, command=COMMAND)
        names = [file.relative_to(path).as_posix() for file in files]
        assert names == ["report.html", "tables.md", "figures/sayings.png"]
        before = {p: p.read_bytes() for p in files}
        header = before[files[2]][:24]
        assert header[1:4] == b"PNG"
        assert int.from_bytes(header[16:20], "big") == 1800
        assert base64.b64encode(before[files[2]]) in before[files[0]]
        # The same results give the same bytes.
        write_report(cheap, path, command=COMMAND)
        assert {p: p.read_bytes() for p in files} == before
        results.example[1].activations[CROSS].pop()
        with pytest.raises(ValueError, match="tokens but .* activations"):
            write_report(replace(results, sweep=(), effects=()), path)
        assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
