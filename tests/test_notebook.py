"""In a notebook, with a real kernel: long work shows a bar, and an encoder shows itself as a table."""

from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip(
    "nbclient", reason="nbclient and ipykernel are not installed: pip install them to run this"
)
pytest.importorskip("ipykernel", reason="nbclient and ipykernel are not installed: pip install them to run this")

CELLS = (
    "from bellm import Encoder\nencoder = Encoder.from_pretrained({folder!r})",
    "vectors = encoder.encode(['Snow fell.'] * 600)",
    "vectors = encoder.encode(['Snow fell.'] * 9)",
    "encoder",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook(tiny_folder: Path) -> None:
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell.format(folder=str(tiny_folder))) for cell in CELLS]
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs: list[Any] = [cell.outputs for cell in notebook.cells]
    assert "0/600" in str(outputs[1])
    assert outputs[2] == []
    assert "<caption>Encoder</caption>" in outputs[3][0]["data"]["text/html"]
