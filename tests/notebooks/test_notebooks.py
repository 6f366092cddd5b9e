"""The notebooks run from top to bottom, and what is stored in them is what they give."""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from tests.tiny import ROOT

FOLDER = ROOT / "notebooks"
EXACT = ("quickstart", "extending")  # what they give does not depend on the machine's speed
TIMED = ("own_data", "inversion")
LARGEST = 300_000  # bytes, pictures included


def test_the_list_is_whole() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*EXACT, *TIMED}


@pytest.mark.waits
@pytest.mark.parametrize(
    "name", [*EXACT, *(pytest.param(name, marks=pytest.mark.slow) for name in TIMED)]
)
def test_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FOLDER / f"{name}.ipynb"
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    assert path.stat().st_size < LARGEST
    executed = run(stored, tmp_path, monkeypatch)
    assert kinds(executed) == kinds(stored)
    assert any(kinds(stored))
    if name in EXACT:
        compare(results(executed), results(stored))


def run(stored: NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """The notebook as it is after a run in a folder, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this tree's, where another one is installed
    commands = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    notebook = nbformat.from_dict(stored)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=900, startup_timeout=300, resources=where).execute()
    return notebook


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """What each cell puts out, in order: kinds of data, or "stdout" for any number of lines."""
    return [
        list(
            dict.fromkeys(
                ",".join(sorted(output.get("data", {}))) or output.name
                for output in cell.get("outputs", [])
                if output.get("name") != "stderr"  # progress
            )
        )
        for cell in notebook.cells
    ]


def results(notebook: NotebookNode) -> list[Any]:
    """Values of cells: texts, and pictures as pixels."""
    data = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    return [pixels(one["image/png"]) if "image/png" in one else one["text/plain"] for one in data]


def pixels(png: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        return np.asarray(picture, dtype=float)


def compare(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, str):
            assert one == other
        else:
            assert one.shape == other.shape
            assert np.abs(one - other).mean() < 2
