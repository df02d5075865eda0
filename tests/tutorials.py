"""Run the tutorials and keep what they show.

    python -m tests.tutorials [NUMBER ...]

They run in a temporary copy of `tutorials/` and share its folder `runs`: the first that needs a dictionary
trains it. Prints the seconds of each; the notebooks of the repository get the new outputs.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
SECONDS_PER_CELL = 600


def notebooks() -> list[Path]:
    """The tutorials, in their order."""
    return sorted(TUTORIALS.glob("*.ipynb"))


def run(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a folder.

    Returns:
        The notebook with its new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(content, timeout=SECONDS_PER_CELL, record_timing=False)
    return client.execute(cwd=str(folder))


def main() -> int:
    """Run the tutorials with the numbers given, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="by default all")
    numbers = parser.parse_args().numbers
    os.environ |= {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for notebook in notebooks():
            if numbers and notebook.name.partition("_")[0] not in numbers:
                continue
            start = time.perf_counter()
            content = run(Path(shutil.copy(notebook, folder)), Path(folder))
            nbformat.write(content, notebook)
            sys.stdout.write(f"{time.perf_counter() - start:4.0f} s  {notebook.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
