"""The notebook: valid, without outputs, and executed with the wheel. Training is shrunk to seconds."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_readme import shrink
from tests.test_wheel import environment

__all__ = ["environment"]

REPOSITORY = Path(__file__).parent.parent
NOTEBOOK = REPOSITORY / "notebooks" / "gpt2lab.ipynb"
LAST_COMMAND_SUCCEEDED = "assert not globals().get('_exit_code')"  # IPython sets it


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def shrink_cell(source: str) -> str:
    """A cell whose commands train a tiny model for one step."""
    source = source.replace("\\\n", " ")
    return re.sub(
        r"^!(gpt2lab .*)$", lambda match: f"!{shlex.join(shrink(match[1], 'runs'))}", source, flags=re.MULTILINE
    )


@pytest.fixture
def kernel(environment, tmp_path, monkeypatch) -> str:
    """The name of a kernel in the environment of the wheel, which has no package index."""
    folder = tmp_path / "jupyter" / "kernels" / "wheel"
    folder.mkdir(parents=True)
    command = [str(environment / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "wheel", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{environment / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the checkout
    return "wheel"


def test_it_is_valid_and_has_no_outputs():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_every_cell_runs_with_the_wheel(environment, kernel, tmp_path):
    (wheel,) = environment.parent.glob("gpt2lab-*.whl")
    folder = tmp_path / "notebook"
    folder.mkdir()
    shutil.copy(wheel, folder)
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = f"{LAST_COMMAND_SUCCEEDED}\n{shrink_cell(cell.source)}"
    notebook.cells.append(nbformat.v4.new_code_cell(LAST_COMMAND_SUCCEEDED))
    client = NotebookClient(notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join(output.get("text", "") for output in outputs)
    assert "Return the number of" in text
    assert "everyday" in text
    assert re.search(r"^tuned: validation loss by step \{0: ", text, re.MULTILINE)
