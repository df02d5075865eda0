"""The documentation: its worked numbers are what the code gives, and its links lead somewhere."""

import doctest
import json
import re
from pathlib import Path

import pytest

from diffsae_lens.reporting import results_markdown
from diffsae_lens.study import Results

DOCS = Path(__file__).parents[1] / "docs"
MEASURES = sorted((DOCS / "measures").glob("*.md"))
PAGES = sorted(DOCS.rglob("*.md"))
STUB = (DOCS.parent / "diffsae_lens" / "__init__.pyi").read_text(encoding="utf-8")
PACKAGES = re.findall(r"^from \. import (\w+)", STUB, re.MULTILINE)
TUTORIALS = sorted((DOCS.parent / "tutorials").glob("*.ipynb"))

FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
ABSOLUTE = re.compile(r"(?<![\w.<:/])/\w+/\w")
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXPORTED = re.compile(r"\b(\w+) as \1\b")


def worked_numbers(page: Path) -> list[doctest.DocTest]:
    """The page's fenced blocks in doctest form, each with names of its own."""
    text, parser = page.read_text(encoding="utf-8"), doctest.DocTestParser()
    return [
        parser.get_doctest(block[1], {}, page.name, str(page), text.count("\n", 0, block.start(1)))
        for block in FENCED.finditer(text)
        if block[1].startswith(">>> ")
    ]


@pytest.mark.parametrize("page", MEASURES, ids=lambda page: page.stem)
def test_the_worked_numbers_of_a_measure_are_what_the_code_gives(page):
    tests = worked_numbers(page)
    assert tests or page.stem == "index", f"{page.name} has no worked number"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    results = [runner.run(test, out=report.append) for test in tests]
    assert not any(result.failed for result in results), "".join(report)


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_hold_outputs_that_say_nothing_of_the_machine(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert len(outputs) >= 5
    shown = [v for o in outputs for k, v in o.get("data", o).items() if "image/" not in k]
    text = json.dumps(shown)
    assert not ABSOLUTE.search(text)
    for word in ("site-packages", "Traceback"):
        assert word not in text
    kinds = {output["output_type"] for output in outputs}
    assert "error" not in kinds
    sources = ["".join(cell["source"]) for cell in cells]
    assert any("## An error on purpose" in source for source in sources)
    assert any(line.lstrip().startswith("assert ") for s in sources for line in s.splitlines())


def test_the_paper_page_says_what_the_study_found():
    tables = results_markdown(Results.load(DOCS / "results" / "paper-135m.json"))
    assert (DOCS / "results" / "paper-135m.md").read_text(encoding="utf-8") == tables
    said = (DOCS / "paper.md").read_text(encoding="utf-8")
    values = re.findall(r"[-+]?\d[\d.]*%? \[[-+\d.%, ]+\]", said)
    assert len(values) > 60
    assert not [value for value in values if value not in tables]


def test_the_versions_tested_are_those_of_the_constraints():
    table = (DOCS / "upgrading.md").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^\| (\w+) \|.*\| ([\d.]+) \|$", table, re.MULTILINE))
    constraints = (DOCS.parent / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", constraints, re.MULTILINE))
    for host, package in {
        "SAELens": "sae-lens",
        "TransformerLens": "transformer-lens",
        "PyTorch": "torch",
        "transformers": "transformers",
        "PEFT": "peft",
    }.items():
        assert tested[host] == pinned[package]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_relative_link_points_to_an_existing_file(page):
    prose = CODE.sub("", page.read_text(encoding="utf-8"))
    targets = [link.partition("#")[0] for link in LINK.findall(prose) if ":" not in link]
    missing = [target for target in targets if target and not (page.parent / target).is_file()]
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_an_api_page_lists_the_public_names_of_its_package(package):
    folder = DOCS.parent / "diffsae_lens" / package
    stub = next(
        path for path in map(folder.joinpath, ("__init__.pyi", "__init__.py")) if path.is_file()
    )
    page = (DOCS / "api" / f"{package}.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^::: diffsae_lens\.{package}\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(EXPORTED.findall(stub.read_text(encoding="utf-8")))
