"""The report in a real browser. In CI a browser must be there; elsewhere the tests are skipped without."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from diffsae_lens.reporting._audit import write_audit_report
from diffsae_lens.reporting._html import write_report
from tests.reporting.synthetic import synthetic_results, with_texts
from tests.reporting.synthetic_audit import synthetic_audit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW = (
    "no Chromium on the PATH: `apt-get install chromium` on Debian; elsewhere install Chromium or Chrome "
    f"and put it on the PATH as one of {', '.join(NAMES)}"
)

PHONE, DESKTOP = (390, 844), (1280, 1000)


def find_chromium() -> str:
    """The browser's path; without one the test is skipped, or fails in CI."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW)
    return found


def browse(page, tmp_path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    find_chromium()  # before the work
    script = "<script>document.title = 'broken'</script>"
    results = replace(synthetic_results(), config={"models": {"base": script}})
    return write_report(results, tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def long_names(tmp_path_factory):
    """A report whose names are 1,000 characters without a space."""
    find_chromium()
    names = iter(range(10_000))
    results = with_texts(synthetic_results(), lambda: f"{next(names)}-" + "x" * 1000)
    for prompt in results.example:
        prompt.tokens[:] = [token[:6] for token in prompt.tokens]
    return write_report(results, tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """The report of an audit, with some text without a space in every place."""
    find_chromium()
    results = with_texts(synthetic_audit(), lambda: "x" * 300)
    results = replace(results, verdict="conditional behaviour found")
    return write_audit_report(results, tmp_path_factory.mktemp("audit"))[0]


class TestWithoutABrowser:
    @pytest.fixture(autouse=True)
    def nothing_on_the_path(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_it_is_skipped_with_what_to_do(self, monkeypatch):
        monkeypatch.delenv("CI", raising=False)
        with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
            find_chromium()

    def test_in_ci_it_fails(self, monkeypatch):
        monkeypatch.setenv("CI", "true")
        with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
            find_chromium()


def test_it_loads_without_a_word_on_the_console_or_the_network(report, tmp_path):
    run = browse(report, tmp_path, "--dump-dom")
    assert run.stdout.count("<article") == len(synthetic_results().cards)
    assert "<title>broken" not in run.stdout
    assert "CONSOLE" not in run.stderr
    assert "net::ERR" not in run.stderr


def test_a_script_that_got_into_the_page_would_not_run(report, tmp_path):
    html = report.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)
    assert policy is not None
    planted = html.replace("</main>", "<script>document.title = 'broken'</script></main>")
    for source, runs in ((planted, False), (planted.replace(policy[0], ""), True)):
        page = tmp_path / "planted.html"
        page.write_text(source, encoding="utf-8")
        run = browse(page, tmp_path, "--dump-dom")
        assert ("<title>broken" in run.stdout) == runs


def test_the_report_of_an_audit_loads_without_a_word_on_the_console_or_the_network(tmp_path):
    script = "<script>document.title = 'broken'</script>"
    results = synthetic_audit()
    texts = tuple(replace(row, text=script, written=script) for row in results.texts)
    [page, *_] = write_audit_report(replace(results, texts=texts), tmp_path / "audit")
    run = browse(page, tmp_path, "--dump-dom")
    assert run.stdout.count("<article") == len(results.candidates)
    assert "<title>broken" not in run.stdout
    assert "CONSOLE" not in run.stderr
    assert "net::ERR" not in run.stderr


@pytest.mark.parametrize("of", ["report", "long_names", "audit"])
def test_nothing_but_tables_and_figures_scrolls_sideways(of, request, tmp_path):
    report = request.getfixturevalue(of)
    source = json.dumps(report.read_text(encoding="utf-8")).replace("</", "<\\/")
    sizes = {"phone": PHONE, "desktop": DESKTOP}
    frames = "".join(
        f'<iframe id="{name}" style="border:0;width:{width}px;height:{height}px"></iframe>'
        for name, (width, height) in sizes.items()
    )
    probe = tmp_path / "probe.html"  # the report is one file without a script: ask from outside
    probe.write_text(
        f"{frames}<script>const source = {source};"
        "for (const f of document.querySelectorAll('iframe')) { f.srcdoc = source;"
        "f.onload = () => { const d = f.contentDocument.documentElement;"
        "document.title += f.id + ' ' + d.scrollWidth + ' of ' + d.clientWidth + ';'; } }</script>",
        encoding="utf-8",
    )
    run = browse(probe, tmp_path, "--dump-dom", "--virtual-time-budget=4000")
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title, run.stderr[-500:]
    for name, size in sizes.items():
        found = re.search(rf"{name} (\d+) of (\d+)", title[1])
        assert found, title[1]
        width, seen = map(int, found.groups())
        assert seen > size[0] - 30
        assert width <= seen
