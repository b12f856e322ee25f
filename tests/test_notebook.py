"""The notebook runs from top to bottom in a kernel of its own, and shows pictures and figures."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}})
        return client.execute(env=dict(os.environ))


def outputs(notebook, kind):
    """The outputs of a MIME type, in order."""
    found = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    return [data[kind] for data in found if kind in data]


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_pictures_tables_and_figures_are_shown(executed):
    pictures = outputs(executed, "image/png")
    assert len(pictures) == 3, "teacher, student of kd, its best checkpoint"
    assert pictures[0] not in pictures[1:]
    tables = [html for html in outputs(executed, "text/html") if "<table" in html and "student, distilled" in html]
    assert len(tables) == 2 and all("FD[digits8cnn/fc64]-300" in table for table in tables)
    [compared] = [text for text in outputs(executed, "text/plain") if "'mine'" in text]
    assert "±" in compared and compared.count("NFE 1") == 2
