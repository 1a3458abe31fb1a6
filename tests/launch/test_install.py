"""launch/install.sh and install_torch.sh, with fake commands: bare machines, other drivers, old environments."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runs import REPOSITORY

(VERSION,) = re.findall(r"^torch==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
CUDA_12 = f"torch=={VERSION}+cu126 --extra-index-url https://download.pytorch.org/whl/cu126"
CPU = f"torch=={VERSION}+cpu --extra-index-url https://download.pytorch.org/whl/cpu"
DEFAULT = "install --quiet -c constraints.txt -e .[data,app]"

# A Python 3.12 with pip. It records what pip is asked for.
PYTHON = """
case "$*" in
    *"print(torch.__version__)"*) cat "$MACHINE/torch" ;;
    *"-m pip"*) echo "$*" >> "$MACHINE/pip.log"; exit "${PIP_STATUS:-0}" ;;
    *"import torch, gpt2lab"*) exit "${IMPORT_STATUS:-0}" ;;
    *"import pip"*) exit "${OLD_PYTHON:-0}" ;;
esac
"""
# Makes an environment whose Python is the one above, as new as it is.
UV = 'echo "$*" >> "$MACHINE/uv.log"; mkdir -p .venv/bin; cp "$MACHINE/python" .venv/bin/python'
# Serves a script that installs uv.
CURL = (
    'echo "$*" >> "$MACHINE/curl.log"; echo "mkdir -p \\$UV_UNMANAGED_INSTALL; cp $MACHINE/uv \\$UV_UNMANAGED_INSTALL"'
)
NVIDIA_SMI = (
    'case "$*" in *driver_version,*) echo "$GPU" ;; *driver_version*) echo "${GPU%%, *}" ;; *) echo "${GPU#* }" ;; esac'
)
NO_DRIVER = 'echo "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."; exit 9'
# What a bare machine has.
TOOLS = "bash sh env cat cksum cp dirname grep head id mkdir sed tail touch uname"


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A checkout on a bare machine: no Python 3.11, no pip, no uv, no driver. curl would install uv."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, checkout)
    shutil.copytree(REPOSITORY / "launch", checkout / "launch")
    for name in TOOLS.split():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    script(tmp_path / "bin" / "curl", CURL)
    script(tmp_path / "bin" / "python3", 'echo "ensurepip is not available" >&2; exit 1')
    script(tmp_path / "python", PYTHON)
    script(tmp_path / "uv", UV)
    for name, value in {"PATH": tmp_path / "bin", "HOME": tmp_path / "home", "MACHINE": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


def install(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "checkout" / "launch" / "install.sh"],
        env=os.environ | environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def pip_log(machine: Path) -> list[str]:
    """What pip was asked for since the last call."""
    log = machine / "pip.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_a_bare_machine_gets_a_python_of_uv(machine):
    done = install(machine)
    assert done.returncode == 0, done.stderr
    assert "astral.sh/uv/install.sh" in (machine / "curl.log").read_text()
    (made,) = (machine / "uv.log").read_text().splitlines()
    assert "--python-preference only-managed --python 3.12" in made
    assert "--seed" in made  # with pip
    assert "--clear" not in made
    torch, rest = pip_log(machine)
    assert torch.endswith(CPU)
    assert rest.endswith(DEFAULT)


def test_without_curl_and_root_it_says_what_to_install(machine):
    (machine / "bin" / "curl").unlink()
    (machine / "bin" / "id").unlink()
    script(machine / "bin" / "id", "echo 1000")
    done = install(machine)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("install uv (https://")


def test_an_environment_with_a_new_python_is_used(machine):
    shutil.copytree(machine / "bin", machine / "checkout" / ".venv" / "bin", symlinks=True)
    shutil.copy(machine / "python", machine / "checkout" / ".venv" / "bin" / "python")
    assert install(machine).returncode == 0
    assert not (machine / "uv.log").exists()
    assert install(machine, OLD_PYTHON="1").returncode == 0
    assert not (machine / "uv.log").exists()  # the mark says that all is installed
    (machine / "checkout" / ".venv" / ".installed-all").unlink()
    assert install(machine, OLD_PYTHON="1").returncode == 0
    assert (machine / "uv.log").exists()


def test_it_installs_again_when_something_is_other_or_broken(machine):
    assert install(machine, PIP_STATUS="1").returncode != 0
    pip_log(machine)
    assert install(machine).returncode == 0  # the one that failed left no mark
    assert pip_log(machine)
    assert install(machine).returncode == 0
    assert not pip_log(machine)
    script(machine / "bin" / "nvidia-smi", NVIDIA_SMI)
    for changed in ("constraints.txt", "pyproject.toml"):
        with (machine / "checkout" / changed).open("a") as file:
            file.write("# changed\n")
        assert install(machine, GPU="535.183.01, 8.0").returncode == 0
        assert pip_log(machine)[0].endswith(CUDA_12)
    assert install(machine, GPU="580.65.06, 8.0").returncode == 0
    assert [line.endswith(DEFAULT) for line in pip_log(machine)] == [True]
    assert install(machine, GPU="580.65.06, 8.0").returncode == 0
    assert not pip_log(machine)
    assert install(machine, GPU="580.65.06, 8.0", IMPORT_STATUS="1").returncode == 0
    assert pip_log(machine)


def install_torch(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "checkout" / "launch" / "install_torch.sh", machine / "python"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("580.65.06, 9.0", None),  # the default, built for CUDA 13
        ("580.65.06, 12.0", None),
        ("580.65.06, 7.5", None),
        ("580.65.06, 7.0", CUDA_12),  # CUDA 13 has dropped Volta
        ("535.183.01, 8.0", CUDA_12),
        ("525.60.13, 7.0", CUDA_12),
        ("470.57.02, 8.0", "driver 470.57.02 is too old for this GPU (compute capability 8.0): install driver 525"),
        ("570.124.06, 10.0", "driver 570.124.06 is too old for this GPU (compute capability 10.0): install driver 580"),
    ],
)
def test_torch_follows_the_driver_and_the_gpu(machine, gpu, expected):
    script(machine / "bin" / "nvidia-smi", NVIDIA_SMI)
    done = install_torch(machine, GPU=gpu)
    if expected in (None, CUDA_12):
        assert done.returncode == 0, done.stderr
        assert [line.partition("constraints.txt ")[2] for line in pip_log(machine)] == ([expected] if expected else [])
    else:
        assert done.returncode == 1
        assert expected in done.stderr
        assert not pip_log(machine)


@pytest.mark.parametrize("driver", ["absent", "failing"])
def test_without_a_driver_the_cpu_build_is_installed_unless_torch_is_there(machine, driver):
    if driver == "failing":
        script(machine / "bin" / "nvidia-smi", NO_DRIVER)
    assert install_torch(machine).returncode == 0
    assert pip_log(machine)[0].endswith("constraints.txt " + CPU)
    assert install_torch(machine, PIP_STATUS="1").returncode == 0  # its index cannot be reached: the default follows
    pip_log(machine)
    (machine / "torch").write_text(f"{VERSION}+cu130\n")
    assert install_torch(machine).returncode == 0
    assert not pip_log(machine)
    (machine / "torch").write_text("2.0.0+cpu\n")
    assert install_torch(machine).returncode == 0
    assert pip_log(machine)


def test_the_build_for_older_drivers_has_to_be_there(machine):
    script(machine / "bin" / "nvidia-smi", NVIDIA_SMI)
    assert install_torch(machine, GPU="535.183.01, 8.0", PIP_STATUS="1").returncode != 0
