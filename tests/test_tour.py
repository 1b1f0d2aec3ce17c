"""The notebook of the docs runs from top to bottom, and its saved outputs are those of such a run."""

from __future__ import annotations

from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parent.parent / "docs/tour.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs the extra `docs`")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_every_cell_was_run(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) >= 6
    assert NOTEBOOK.stat().st_size < 600_000


def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs the extra `docs`")
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert "SAMPLING_STEPS, TRAINING_STEPS = 25, 300" in parameters.source
    parameters.source = parameters.source.replace("= 25, 300", "= 2, 2")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs/tour/pipeline/model_index.json").exists()
