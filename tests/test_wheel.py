"""The wheel: installed in an environment of its own, outside the checkout, it trains, samples and plans."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder, without the checkout on its path; its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with the wheel. It finds the dependencies in the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPOSITORY, folder=folder)
    (wheel,) = folder.glob("gpt2lab-*.whl")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(*PIP, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv"


@pytest.mark.slow
def test_the_wheel_contains_the_recipes(environment, tmp_path):
    code = "import gpt2lab; from gpt2lab import config as c; print(gpt2lab.__file__, c.find_recipe('quickstart'))"
    for file in run(environment / "bin" / "python", "-c", code, folder=tmp_path).split():
        assert Path(file).is_relative_to(environment)
        assert Path(file).exists()


@pytest.mark.slow
def test_the_wheel_contains_every_file_of_the_package(environment):
    """And no other: `gpt2lab/recipes` is `config`."""
    listed = run("git", "ls-files", "gpt2lab", "config", folder=REPOSITORY).splitlines()
    package = next(environment.glob("lib/*/site-packages")) / "gpt2lab"
    files = {path.relative_to(package.parent) for path in package.rglob("*") if path.is_file()}
    expected = {Path(re.sub("^config/", "gpt2lab/recipes/", name)) for name in listed}
    assert {path for path in files if path.suffix != ".pyc"} == expected


@pytest.mark.slow
def test_the_wheel_trains_samples_and_plans(environment, tmp_path):
    gpt2lab = environment / "bin" / "gpt2lab"
    settings = {"max_steps": 10, "eval_every": 10, "eval_tokens": 1024, "sample_every": 0}
    options = [*(f"--train.{name}={value}" for name, value in settings.items()), "--optimizer.warmup_steps=2"]
    run(gpt2lab, "train", *options, folder=tmp_path)
    checkpoint = tmp_path / "runs" / "quickstart" / "checkpoints" / "step_00000010"
    assert (checkpoint / "model.safetensors").exists()
    sample = ["--prompt", "Return the", "--max-new-tokens", "4", "--seed", "1"]
    text = run(gpt2lab, "sample", "--model-checkpoint", "runs/quickstart", *sample, folder=tmp_path)
    assert text.startswith("Return the")
    assert len(text.strip()) > len("Return the")
    plan = run(gpt2lab, "plan", "--config", "minigpt", "--gpu", "a100-40gb", "--gpus", "6", "--json", folder=tmp_path)
    assert json.loads(plan)
