"""Every notebook runs from top to bottom, in a fresh kernel, and each cell that draws shows its picture.

The site shows what these runs gave, in `docs/notebooks/`, so nothing is executed twice.
"""

import base64
import io
import re
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from matplotlib.image import imread
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER, EXECUTED = ROOT / "notebooks", ROOT / "docs" / "notebooks"

DRAWS = re.compile(r"plotting\.plot_|plt\.(?!rcParams)")


def pictures(cell):
    """Returns the pictures that a cell shows, as arrays (height, width, colour)."""
    shown = (output.get("data", {}).get("image/png") for output in cell.get("outputs", []))
    return [imread(io.BytesIO(base64.b64decode(picture)), format="png") for picture in shown if picture]


@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.py")), ids=lambda source: source.stem)
def test_notebook_runs_and_every_picture_is_drawn(source, tmp_path):
    notebook = jupytext.read(source)
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    drawing = [cell for cell in notebook.cells if DRAWS.search(cell.source)]
    assert drawing
    for cell in notebook.cells:
        found = pictures(cell)
        assert len(found) == (cell in drawing), cell.source
        # Empty axes are black on white, curves and surfaces are not.
        assert all(np.ptp(picture[..., :3], axis=-1).max() > 0.1 for picture in found), cell.source
    for cell in drawing:  # The picture is what it shows, not the object that its last line returns.
        cell.outputs = [output for output in cell.outputs if output.output_type != "execute_result"]
    nbformat.write(notebook, EXECUTED / f"{source.stem}.ipynb")
