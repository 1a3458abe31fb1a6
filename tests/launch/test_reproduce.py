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
    "--optimizer.warmup_steps 2 --system.device cpu --system.compile off "
    "--data.source files --data.input text.txt --data.dir data/words"
)


@pytest.fixture
def machine(tmp_path, hellaswag_mirror, monkeypatch) -> Path:
    """A folder with the scripts and recipes, where the environment is installed, and a text in place of FineWeb."""
    for name in ("launch", "config"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (tmp_path / "text.txt").write_text(WORDS)
    values = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "NPROC_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
        "PRICE_PER_HOUR": "20",
        "TASKS": "everyday",
        "DATA": "files --input text.txt --out data/words",
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


def descendants(process_id: int) -> list[int]:
    """The processes that a process has started, and those that these have started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [process_id]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found[1:]


def kill_at(machine: Path, file: Path) -> None:
    """Run reproduce.sh, and kill it with all its processes as soon as a file exists."""
    process = subprocess.Popen([machine / "launch" / "reproduce.sh", *SMALL])
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for each in (process.pid, *descendants(process.pid)):
        os.kill(each, signal.SIGKILL)
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


# Records its arguments. Training waits SLOW times 20 ms for a signal, and saves for a while.
FAKE_PYTHON = """#!/bin/bash
echo "$*" >> "$LOG"
case "$*" in
    *get_path*) echo "$HEADERS" ;;
    *evaluate*) exit "${EVALUATE_STATUS:-0}" ;;
    *--dry-run*) ;;
    *" train "*)
        trap 'echo stopping >> "$LOG"; sleep 0.3; echo saved >> "$LOG"; exit 1' TERM INT HUP
        for _ in $(seq "${SLOW:-0}"); do sleep 0.02; done ;;
esac
"""


@pytest.fixture
def log(machine, monkeypatch) -> Path:
    """The log of a fake Python; commands in `machine / "bin"` are found first."""
    (machine / "bin").mkdir()
    (machine / "python").write_text(FAKE_PYTHON)
    (machine / "python").chmod(0o755)
    values = {"PYTHON": "python", "LOG": "log", "HEADERS": "include"}
    for name, value in values.items():
        monkeypatch.setenv(name, str(machine / value))
    monkeypatch.setenv("PATH", f"{machine / 'bin'}:{os.environ['PATH']}")
    return machine / "log"


def attempt(machine: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "launch" / "reproduce.sh", *settings],
        env=os.environ | environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_outside_a_checkout_it_says_where_to_run_it(machine, log):
    (machine / "pyproject.toml").unlink()
    done = attempt(machine)
    assert done.returncode == 2
    assert "checkout" in done.stderr
    assert not log.exists()


@pytest.mark.parametrize(
    ("setting", "hint"), [("--run.name", "RUN_NAME"), ("--config", "RECIPE"), ("--run.out_dir", "runs/")]
)
def test_a_setting_that_the_script_chooses_itself_is_refused(machine, log, setting, hint):
    for arguments in ((setting, "x"), (f"{setting}=x",)):
        done = attempt(machine, *arguments)
        assert done.returncode == 2
        assert hint in done.stderr
        assert done.stderr.count("\n") == 1
    assert not log.exists()


@pytest.mark.parametrize(
    ("name", "message"), [("mine", "give OWNER/NAME"), ("me/mi ne", "mi ne"), ("me/mine", "hf auth login")]
)
def test_an_upload_that_cannot_succeed_is_refused_before_the_estimate(machine, monkeypatch, name, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = attempt(machine, PUSH=name, HF_HOME=str(machine))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "estimate" not in done.stdout


def test_with_a_gpu_a_compiler_and_headers_are_required(machine, log):
    for name in ("nvidia-smi", "gcc"):
        (machine / "bin" / name).write_text("#!/bin/sh\n")
        (machine / "bin" / name).chmod(0o755)
    done = attempt(machine)
    assert done.returncode == 2
    assert f"{machine}/include/Python.h: sudo apt-get install" in done.stderr
    assert " train " not in log.read_text()
    (machine / "include").mkdir()
    (machine / "include" / "Python.h").touch()
    assert attempt(machine).returncode == 0


def test_a_missing_price_is_named(machine, log):
    assert "set PRICE_PER_HOUR" in attempt(machine, PLAN="only", PRICE_PER_HOUR="").stdout
    assert "set PRICE_PER_HOUR" not in attempt(machine, PLAN="only").stdout


def test_after_a_failed_evaluation_the_model_is_exported_and_the_status_is_kept(machine, log):
    done = attempt(machine, EVALUATE_STATUS="3")
    assert done.returncode == 3
    assert "the evaluation failed" in done.stderr
    assert "--out out/minillm" in log.read_text()
    assert "-m gpt2lab report" in log.read_text()
    assert attempt(machine).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_step_once_and_ends_the_script_after_it_has_saved(machine, log, number):
    environment = os.environ | {"SLOW": "2000"}
    process = subprocess.Popen(
        [machine / "launch" / "reproduce.sh"], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while "train" not in log_of_training(log) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # until its traps are set
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    assert process.wait(60) == 143
    assert log.read_text().splitlines()[-2:] == ["stopping", "saved"]
    assert "evaluate" not in log.read_text()


def log_of_training(log: Path) -> str:
    """The line of the training that is not a dry run, or nothing."""
    lines = log.read_text().splitlines() if log.exists() else []
    return next((line for line in lines if " train " in line and "--dry-run" not in line), "")
