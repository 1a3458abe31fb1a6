"""launch/reproduce.sh and speedrun.sh, in small: the estimate, a kill during training, the same command again."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, records

WORDS = "the model reads a token and predicts the next one after it in every line of this text " * 400
SMALL = shlex.split(
    "--model.n_layer 1 --model.n_head 2 --model.n_embd 16 --model.block_size 16 --model.vocab_size 50257 "
    "--train.max_steps 40 --train.total_batch_size 128 --train.micro_batch_size 4 --train.eval_every 20 "
    "--train.eval_tokens 256 --train.sample_every 0 --train.hellaswag_every 0 --checkpoint.every 5 "
    "--optimizer.warmup_steps 2 --system.device cpu --system.compile off"
)


@pytest.fixture
def machine(tmp_path, hellaswag_mirror, monkeypatch) -> Path:
    """A folder with the scripts and recipes, where the environment is installed, and a text in place of FineWeb."""
    for name in ("launch", "config"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    (tmp_path / "text.txt").write_text(WORDS)
    values = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "NPROC_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
        "PRICE_PER_HOUR": "20",
        "TASKS": "everyday",
        "DATA": "files --input text.txt --out data/edu_fineweb10B",
        "GPT2LAB_MIRROR": str(hellaswag_mirror),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def run(machine: Path, script: str, *settings: str, **environment: str) -> str:
    done = subprocess.run(
        [machine / "launch" / script, *SMALL, *settings],
        env=os.environ | environment,
        cwd="/",  # the script finds its own folder
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_at(machine: Path, file: Path) -> None:
    """Run reproduce.sh, and kill it with all its processes as soon as a file exists."""
    process = subprocess.Popen([machine / "launch" / "reproduce.sh", *SMALL], start_new_session=True)
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert file.exists()


@pytest.mark.slow
def test_from_nothing_to_an_exported_model_with_a_kill_in_between(machine):
    kill_at(machine, machine / "runs" / "minillm" / "checkpoints" / "step_00000010" / "SHA256SUMS")
    output = run(machine, "reproduce.sh")
    assert output.index("== estimate") < output.index("== data") < output.index("== training") < output.index("== done")
    folder = machine / "runs" / "minillm"
    steps = [each["step"] for each in records(folder) if "train/loss" in each]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40
    assert list((folder / "evaluations").iterdir())
    assert (folder / "report.html").exists()
    assert (machine / "out" / "minillm" / "model.safetensors").exists()
    assert (machine / "out" / "minillm-space" / "app.py").exists()


@pytest.mark.slow
def test_the_speedrun_plans_the_modern_recipe(machine):
    estimate = run(machine, "speedrun.sh", PLAN="only")
    assert "modern_124m" in estimate
    assert "cost" in estimate
    assert not (machine / "runs").exists()
    assert not (machine / "data").exists()
