"""`make train` shows what pip prints only if pip fails. Python and pip are replaced by a script."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PYTHON = """#!/bin/sh
echo "WARNING: to standard output"
echo "WARNING: to standard error" >&2
case "$*" in
"-m venv .venv")
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    printf '#!/bin/sh\\necho "trained: $*"\\n' >.venv/bin/gpt2lab
    chmod +x .venv/bin/gpt2lab ;;
*"pip"*) exit "$PIP_STATUS" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("Makefile", "requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make_train(checkout: Path, pip_status: int) -> subprocess.CompletedProcess[str]:
    command = [
        "env",
        "-u",
        "MAKEFLAGS",
        "-u",
        "MAKELEVEL",
        f"PIP_STATUS={pip_status}",
        "make",
        "train",
        f"PYTHON={checkout / 'python'}",
    ]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def test_warnings_of_pip_are_not_shown(checkout):
    done = make_train(checkout, 0)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "trained: train"


def test_all_output_of_a_pip_that_fails_is_shown_and_the_next_make_tries_again(checkout):
    done = make_train(checkout, 1)
    assert done.returncode != 0
    assert "WARNING: to standard output" in done.stdout
    assert "WARNING: to standard error" in done.stdout
    assert "trained" not in done.stdout
    assert "trained" in make_train(checkout, 0).stdout
