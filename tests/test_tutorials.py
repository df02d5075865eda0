"""The tutorials run from a clean folder and share the dictionaries that the first of them trains."""

import os
import shutil
from pathlib import Path

import pytest

from tests.tutorials import notebooks, run

# Three wait for the dictionaries that the second trains, and what takes longest must not come last.
ORDER = "82547361"
pytestmark = [pytest.mark.tutorials, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """One for all worker processes; whatever is stored in it is locked while it is made."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tutorials"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    "notebook",
    sorted(notebooks(), key=lambda path: ORDER.index(path.stem[0])),
    ids=lambda path: path.stem,
)
def test_tutorials_run(notebook, folder):
    run(Path(shutil.copy(notebook, folder)), folder)
