"""Every notebook runs from top to bottom, in a fresh kernel."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.py")), ids=lambda source: source.stem)
def test_notebook_runs_and_every_picture_is_drawn(source, tmp_path):
    notebook = jupytext.read(source)
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == sum(
        "plotting.plot_" in cell.source or "plt." in cell.source for cell in notebook.cells
    )
