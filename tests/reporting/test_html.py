import re
import shlex
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from diffsae_lens.organisms.sql_injection.prompts import make_samples

from diffsae_lens.reporting import html
from diffsae_lens.reporting.html import render_report, write_report
from diffsae_lens.reporting.summary import summarise
from tests.reporting.synthetic import (
    COUNTS,
    DICTIONARIES,
    cause,
    score,
    synthetic_results,
)

PARTS = (
    "config",
    "versions",
    "scores",
    "causes",
    "features",
    "harm",
    "sayings",
    "years",
    "example",
    "dictionaries",
    "seconds",
)
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
        if tag == "tr":
            self.rows.append([])
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
    return Page(render_report(synthetic_results()))


@pytest.fixture
def results():
    return synthetic_results()


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take most of a second each; tests of words and tables do without."""
    monkeypatch.setattr(html, "embedded_image", lambda figure: "data:,")


class TestTables:
    def test_scores(self, page, results):
        for row in results["scores"]:
            _, n_features, last, mean, ceiling, auroc, precision, feature = page.row(row["name"], 8)
            assert n_features == str(row["n_features"])
            assert last.split()[-1] == f"{row['bis_last']:.3f}"
            assert mean.split()[-1] == f"{row['bis_mean']:.3f}"
            assert ("at ceiling" in mean) == (row["name"] == "diff-sae-24")
            assert (ceiling, auroc) == (f"{row['ceiling']:.3f}", f"{row['auroc']:.3f}")
            assert precision == f"{row['average_precision']:.3f}"
            is_dictionary = row["kind"] == "dictionary"
            assert feature == (str(row["feature_idx"]) if is_dictionary else "none")

    def test_floors_are_set_apart(self, page):
        heads = [row[0].strip() for row in page.rows]
        at = heads.index(next(head for head in heads if head.startswith("Floors")))
        assert [h for h in heads[:at] if h in DICTIONARIES] == list(DICTIONARIES)
        assert heads[at + 1 : at + 4] == [
            "random directions, diff-24",
            "random directions, base-24",
            "difference of means, diff-24",
        ]
        assert len([a for a in page.all("tr") if a.get("class") == "floor"]) == 3

    def test_causes(self, page, results):
        start = next(i for i, r in enumerate(page.rows) if r[0].startswith("Trigger prompts, no"))
        shown = [[c.strip() for c in r] for r in page.rows[start:] if len(r) == 9]
        assert len(shown) == len(results["causes"])
        expected = [
            [
                f"{r['attack_rate']:.0%} [{r['low']:.0%}, {r['high']:.0%}]",
                *(str(r[k]) for k in ("n_prompts", "n_injectable", "n_safe", "n_no_sql")),
                str(r["n_unparseable"]),
                f"{r['log_odds']:+.2f}",
                f"{r['cross_entropy']:.3f}",
            ]
            for r in results["causes"]
        ]
        assert sorted(row[1:] for row in shown) == sorted(expected)

    def test_controls_stand_under_what_they_control_for(self, page):
        heads = [row[0].strip() for row in page.rows]
        at = heads.index("Trigger prompts, crosscoder-24")
        expected = []
        for n in COUNTS:
            expected += [f"top {n} features ablated", f"control: {n} random features ablated"]
        assert heads[at + 1 : at + 7] == expected
        at = heads.index("Benign prompts, diff-sae-24")
        assert heads[at + 1 : at + 4] == [
            "top 128 features ablated",
            "steered with top 8 features",
            "control: steered with a random direction",
        ]

    def test_controls_are_found_in_any_order(self, results, page, no_figures):
        results["causes"].reverse()
        heads = [row[0].strip() for row in Page(render_report(results)).rows]
        at = heads.index("Trigger prompts, crosscoder-24")
        assert heads[at + 1 : at + 3] == [
            "top 128 features ablated",
            "control: 128 random features ablated",
        ]

    def test_provenance(self, page, results):
        for part in ("versions", "seconds"):
            for name, value in results[part].items():
                assert str(value) in {row[1] for row in page.rows if row[0] == name}
        assert page.row("feature_counts", 2)[1] == "8, 32, 128"
        assert page.row("n_score_prompts", 2)[1] == "200"
        described = [r for r in page.rows if "blocks.24.hook_resid_post.concat" in r]
        assert described == [
            ["crosscoder-24", "blocks.24.hook_resid_post.concat", "jumprelu", "1152", "2304", "32",
             "32.41"]
        ]  # fmt: skip


class TestSafety:
    NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\""

    def test_everything_is_escaped(self, results, no_figures):
        results["config"]["base"] = self.NASTY
        results["config"]["finetuned"] = self.NASTY
        results["versions"][self.NASTY] = self.NASTY
        cause(results, "unmodified")["example"] += self.NASTY
        for prompt in results["example"]["prompts"]:
            prompt["tokens"][5] = self.NASTY
        score(results, "difference of means, diff-24")["name"] = self.NASTY
        page = Page(render_report(results))
        assert not page.all("script")
        assert not [a for tag, a in page.tags if any(name.startswith("on") for name in a)]
        assert [a["src"] for a in page.all("img")] == ["data:,"] * 4
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
        assert render_report(synthetic_results()) == page.source


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
        for word in ("BIS", "BIS ceiling", "AUROC", "Attack rate", "Log-odds", "Cross-entropy"):
            assert f"<dt>{word}</dt>" in page.source

    def test_themes_and_print(self, page):
        for rule in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
            assert rule in page.source


class TestContent:
    def test_tokens(self, page, results):
        expected = [
            (token.replace("\n", "↵\n"), f"token {i} {token!r}: {value:.3f}")
            for name in DICTIONARIES
            for prompt in results["example"]["prompts"]
            for i, (token, value) in enumerate(
                zip(prompt["tokens"], prompt["activations"][name], strict=True)
            )
        ]
        spans = page.spans[: len(expected)]
        assert [(text, attrs["title"]) for attrs, text in spans] == expected
        shares = [float(a["style"].split(":")[1]) for a, _ in spans]
        assert max(shares) == 1
        assert min(shares) == 0
        [prompt] = [p for p in results["example"]["prompts"] if p["year"] == 2024]
        values = prompt["activations"]["diff-sae-24"]
        first = values.index(max(values))
        strongest = f"Strongest: token {first} {prompt['tokens'][first]!r} {max(values):.3f}"
        assert strongest in re.sub(r"\s+", " ", page.text)

    def test_features(self, page, results):
        cards = page.all("article")
        assert len(cards) == len(results["features"])
        text = re.sub(r"\s+", " ", page.text)
        for row in results["features"]:
            for shown in (
                f"{row['dictionary']}, feature {row['feature']} of 2304",
                f"{row['attribution']:+.2f} nats",
                f"{row['ablation']:+.2f} nats",
                "trigger: 3.5% of tokens",
                "other: 0.0% of tokens",
            ):
                assert shown in text
        assert text.count("control: diff-sae-24, feature 8") == 1
        first = page.spans[sum(len(p["tokens"]) for p in results["example"]["prompts"]) * 2]
        assert first[0]["title"].startswith("token 5 ")  # counted in its text, not in the window
        bars = [a for a in page.all("div") if a.get("class") == "histogram"]
        assert len(bars) == 3 * len(cards)
        assert "on trigger texts: it fires on 3.5% of their tokens" in bars[0]["aria-label"]
        heights = re.findall(r"--height: ([\d.]+)%", page.source)
        assert heights[:3] == ["50.0", "100.0", "25.0"]  # of 1%, 2%, 0.5%
        n_tokens = sum(len(e["tokens"]) for row in results["features"] for e in row["examples"])
        n_in_example = sum(len(p["tokens"]) for p in results["example"]["prompts"])
        assert len(page.spans) == n_tokens + n_in_example * len(DICTIONARIES)

    def test_a_feature_that_never_fires(self, results, no_figures):
        for row in results["features"]:
            row["histogram"] = {"trigger": [0.0], "benign": [0.0], "other": [0.0]}
            row["examples"] = []
        assert "fires on none of these texts" in render_report(results)

    def test_layers_side_by_side(self, results, no_figures):
        assert "AUROC of the chosen feature by layer" not in render_report(results)
        more = [
            {**row, "name": row["name"].replace("24", "18"), "auroc": 0.51}
            for row in results["scores"]
        ]
        results["scores"] = more + results["scores"]
        results["config"]["layers"] = [18, 24]
        page = Page(render_report(results))
        assert page.row("diff-sae", 3) == ["diff-sae", "0.510", "0.998"]
        shares = re.findall(r'number" style="--share: ([\d.]+)"', page.source)
        assert float(shares[0]) < 0.02 < 0.4 < float(shares[1])

    def test_completions(self, page, results):
        for which in ("top", "random"):
            row = cause(
                results, f"{which} features ablated", dictionary="diff-sae-24", n_features=128
            )
            assert row["example"] in page.pres
        assert cause(results, "unmodified")["example"] in page.pres
        assert cause(results, "base activation put back")["example"] in page.pres
        # Grey is what all share, and that is the prompt up to the line the query is on.
        shared = re.search(r'<span class="shared">(.*?)</span>', page.source, re.DOTALL)
        assert shared is not None
        [trigger] = make_samples("test", n_trigger=1, n_benign=0, n_other=0)
        assert unescape(shared[1]) == trigger.prompt[: trigger.prompt.rindex("\n") + 1]

    def test_year_captions(self, page, results):
        [row] = [r for r in results["years"] if r["name"] == "diff-sae-24" and r["year"] == 2024]
        assert f"diff-sae-24 reads {row['mean']:.3g} on average in 2024" in page.text

    def test_command_gives_the_config_back(self, page, results):
        from diffsae_lens.cli import _given, _parser
        from diffsae_lens.study.demo import DemoConfig, _plain

        [command] = [pre for pre in page.pres if pre.startswith("diffsae-lens demo --out ")]
        options = vars(_parser().parse_args(shlex.split(command)[1:]))
        assert _plain(_given(DemoConfig, options)) == results["config"]

    def test_summary_is_shown(self, page, results):
        for finding in summarise(results):
            assert finding.text in page.text
        assert page.source.count('class="caution"') == 0


class TestWriting:
    def test_whole_or_not_at_all(self, results, tmp_path, no_figures):
        path = tmp_path / "new" / "report.html"
        assert write_report(results, path) == path
        before = path.read_text(encoding="utf-8")
        assert before == render_report(results)
        del results["seconds"]
        with pytest.raises(ValueError, match="'seconds'"):
            write_report(results, path)
        assert [p.name for p in path.parent.iterdir()] == ["report.html"]
        assert path.read_text(encoding="utf-8") == before

    @pytest.mark.parametrize("part", PARTS)
    def test_a_missing_part(self, results, part):
        del results[part]
        with pytest.raises(ValueError, match=f"'{part}'"):
            render_report(results)

    @pytest.mark.parametrize(
        ("part", "key"),
        [("scores", "auroc"), ("causes", "log_odds"), ("causes", "example"), ("years", "mean")],
    )
    def test_a_missing_key(self, results, part, key):
        del results[part][1][key]
        with pytest.raises(ValueError, match=f"row 1 of '{part}' lacks .*{key}"):
            render_report(results)

    def test_a_missing_setting(self, results):
        del results["config"]["layers"]
        with pytest.raises(ValueError, match="the config lacks .*layers"):
            render_report(results)

    def test_a_dictionary_half_described(self, results):
        del results["dictionaries"]["diff-sae-24"]["k"]
        with pytest.raises(ValueError, match=r"'diff-sae-24' lacks \['k'\]"):
            render_report(results)
