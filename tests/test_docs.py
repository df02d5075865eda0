"""The documentation: its worked numbers are what the code gives, and its links lead somewhere."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MEASURES = sorted((DOCS / "measures").glob("*.md"))
PAGES = sorted(DOCS.rglob("*.md"))

FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_relative_link_points_to_an_existing_file(page):
    prose = CODE.sub("", page.read_text(encoding="utf-8"))
    targets = [link.partition("#")[0] for link in LINK.findall(prose) if ":" not in link]
    missing = [target for target in targets if target and not (page.parent / target).is_file()]
    assert not missing
