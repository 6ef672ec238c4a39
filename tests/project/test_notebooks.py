"""Every notebook runs from start to end, and its committed outputs have no errors."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest

import tinyllm as tl
from tinyllm.files.model_file import DEMO

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_each_has_its_number():
    numbers = [path.name[0] for path in NOTEBOOKS]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_outputs_are_clean(path):
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    assert len(kinds) > 5
    names = [output.get("name") for cell in code for output in cell["outputs"]]
    assert "stderr" not in names
    assert "/tmp/" not in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    if not DEMO.exists():
        pytest.skip("the demo model is not there")
    # the kernel is another process: it must find the same tinyllm as this one
    package = str(Path(tl.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, *filter(None, sys.path)]))
    notebook = nbformat.read(path, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's client
        client = nbclient.NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        )
        client.execute()  # an error in a cell is raised here
