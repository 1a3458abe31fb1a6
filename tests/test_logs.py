"""Messages of the command line: where they go, and what happens if they cannot be written."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import settings


@pytest.fixture
def recipe(token_folder, tmp_path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(settings(token_folder, tmp_path / "runs").to_yaml())
    return file


def run_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is part of Linux")
def test_a_full_disk_is_one_line(recipe):
    done = run_shell(f"{sys.executable} -m gpt2lab train --config {recipe} >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("gpt2lab: ")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_ends_the_command_silently(recipe):
    done = run_shell(f"{sys.executable} -m gpt2lab train --config {recipe} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_closed_standard_output_is_no_error(recipe):
    done = run_shell(f"{sys.executable} -m gpt2lab train --config {recipe} >&-")
    assert "Traceback" not in done.stderr
