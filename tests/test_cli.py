"""The command line as people type it: real processes, exit codes, one line for a mistake."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2lab import cli

REPOSITORY = Path(__file__).parent.parent


def gpt2lab(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "gpt2lab", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_is_fast_and_names_the_verbs():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = gpt2lab("--help")
        times.append(time.perf_counter() - began)
    assert done.returncode == 0
    assert "train" in done.stdout
    assert min(times) < 0.5


def test_train_help_names_every_setting():
    from gpt2lab import config

    shown = gpt2lab("train", "--help").stdout
    assert all(f"--{name}" in shown for name, _ in config.leaves())
    assert "default: 19073" in shown


def test_version():
    assert gpt2lab("--version").stdout.startswith("gpt2lab 0.")


MISTAKES = {
    "abbreviation": (["--train.max_s", "3"], "unknown setting train.max_s; did you mean train.max_steps?"),
    "misspelt": (["--train.max_stps", "3"], "did you mean train.max_steps?"),
    "equals sign": (["--optimiser.max_lr=3"], "did you mean optimizer.max_lr?"),
    "wrong type": (["--train.max_steps", "many"], "--train.max_steps: should be a valid integer"),
    "out of range": (["--train.max_steps", "-1"], "--train.max_steps: should be greater than 0"),
    "value missing": (["--train.max_steps"], "--train.max_steps: expected one argument"),
    "stray word": (["quickstart"], "unexpected argument quickstart"),
    "no such recipe": (["--config", "config/nope.yaml"], "no such file or recipe"),
    "does not divide": (["--train.total_batch_size", "3000"], "the nearest that works: 2944 or 3008"),
    "no such checkpoint": (["--run.resume", "nowhere"], "nowhere: there is no such checkpoint"),
    "no such device": (["--system.device", "tpu"], "--system.device: should be 'auto', 'cpu', 'cuda' or 'mps'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(case, tmp_path, capsys, monkeypatch):
    arguments, expected = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "quickstart" / "metrics.jsonl").exists()


@pytest.mark.parametrize("case", ["misspelt", "out of range"])
def test_mistakes_of_real_commands_have_no_traceback(case, tmp_path):
    arguments, expected = MISTAKES[case]
    done = gpt2lab("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_verb():
    done = gpt2lab("trian")
    assert done.returncode == 2
    assert "invalid choice: 'trian'" in done.stderr


def test_flags_beat_every_config_wherever_they_stand(tmp_path, monkeypatch):
    from gpt2lab.training import launch

    seen = []
    monkeypatch.setattr(launch, "run", seen.append)
    (tmp_path / "a.yaml").write_text("train: {max_steps: 7, eval_every: 8}")
    (tmp_path / "b.yaml").write_text("train: {eval_every: 9}")
    files = ["--config", str(tmp_path / "a.yaml"), "--train.max_steps", "3", "--config", str(tmp_path / "b.yaml")]
    assert cli.main(["train", *files, "--train.overfit_batch", "--run.name", "null"]) == 0
    assert (seen[0].train.max_steps, seen[0].train.eval_every, seen[0].train.overfit_batch) == (3, 9, True)
    assert seen[0].run.name == "b"


def test_no_config_is_the_quickstart_and_says_how_to_get_the_124m(monkeypatch, capsys):
    from gpt2lab.training import launch

    seen = []
    monkeypatch.setattr(launch, "run", seen.append)
    assert cli.main(["train"]) == 0
    assert seen[0].run.name == "quickstart"
    assert "--config config/gpt2_124m.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("door", [["train.py"], ["-m", "gpt2lab", "train"]])
def test_every_door_leads_to_the_same_room(door):
    done = subprocess.run(
        [sys.executable, *door, "--train.max_stps", "3"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "did you mean train.max_steps?" in done.stderr) == (2, True)
