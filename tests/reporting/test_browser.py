"""The report in a real browser, where there is one."""

import json
import re
import shutil
import subprocess

import pytest

from diffsae_lens.reporting.html import write_report
from tests.reporting.synthetic import synthetic_results

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

PHONE, DESKTOP = (390, 844), (1280, 1000)


def browse(page, tmp_path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = synthetic_results()
    results["config"]["finetuned"] = "<script>document.title = 'broken'</script>"
    return write_report(results, tmp_path_factory.mktemp("report") / "report.html")


def test_it_loads_without_a_word_on_the_console_or_the_network(report, tmp_path):
    run = browse(report, tmp_path, "--dump-dom")
    assert run.stdout.count("<article") == len(synthetic_results()["features"])
    assert "<title>broken" not in run.stdout
    assert "CONSOLE" not in run.stderr
    assert "net::ERR" not in run.stderr


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_but_tables_and_figures_scrolls_sideways(report, tmp_path, size):
    probe = tmp_path / "probe.html"  # the report is one file without a script: ask from outside
    probe.write_text(
        f'<iframe id="f" style="border:0;width:{size[0]}px;height:{size[1]}px"></iframe><script>'
        f"const f = document.getElementById('f'); f.srcdoc = {json.dumps(report.read_text())};"
        "f.onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = d.scrollWidth + ' of ' + d.clientWidth; }</script>",
        encoding="utf-8",
    )
    run = browse(probe, tmp_path, "--dump-dom", "--virtual-time-budget=4000")
    found = re.search(r"<title>(\d+) of (\d+)</title>", run.stdout)
    assert found, run.stderr[-500:]
    width, seen = map(int, found.groups())
    assert seen > size[0] - 30
    assert width <= seen
