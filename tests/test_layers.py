"""The direction of imports that `pyproject.toml` states is kept, and the linter sees what breaks it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
CONTRACTS = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]


def circles(graph: grimp.ImportGraph) -> set[tuple[str, ...]]:
    """The import chains that begin and end with the same module, each once."""
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            chain = graph.find_shortest_chain(importer=imported, imported=module)
            if chain:
                found.add(tuple(sorted(chain)))
    return found


def is_kept(folder: Path) -> bool:
    """Lint in a process of its own, since the linter silences all loggers that there are."""
    lint = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", lint], cwd=folder, capture_output=True, check=False
    )
    return done.returncode == 0


def test_the_contracts_are_kept():
    assert is_kept(PYPROJECT.parent)


def test_no_module_is_in_an_import_circle():
    graph = grimp.build_graph("diffsae_lens", cache_dir=None)
    for line in CONTRACTS[-1].get("ignore_imports", []):  # known, as the contract says
        importer, _, imported = line.partition(" -> ")
        graph.remove_import(importer=importer, imported=imported)
    assert not circles(graph)


@pytest.mark.parametrize(
    ("low", "high", "n_circles"),
    [("", "import {}.low", 0), ("import {}.high", "", 0), ("import {}.high", "import {}.low", 1)],
)
def test_the_linter_sees_what_breaks_a_contract(tmp_path, monkeypatch, low, high, n_circles):
    name = f"package_{low.count('i')}{high.count('i')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "low.py").write_text(low.format(name))
    (tmp_path / name / "high.py").write_text(high.format(name))
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.importlinter]\nroot_package = '{name}'\n[[tool.importlinter.contracts]]\n"
        f"name = 'layers'\ntype = 'layers'\ncontainers = ['{name}']\nlayers = ['high', 'low']\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert is_kept(tmp_path) == (not low)
    assert len(circles(grimp.build_graph(name, cache_dir=None))) == n_circles
