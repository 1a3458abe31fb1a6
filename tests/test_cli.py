"""The command line as people type it: real processes, exit codes, one line for a mistake."""

import os
import re
import socket
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
    "wrong type": (["--train.max_steps", "many"], "--train.max_steps: should be a whole number"),
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


def test_a_mistake_is_written_in_one_piece():
    """Else two ranks' lines mix, where Python does not buffer (PYTHONUNBUFFERED)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    command = [sys.executable, "-u", "-m", "gpt2lab", "train", "--config", "nowhere.yaml"]
    with ours, theirs:
        assert subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, check=False).returncode == 2
        line = ours.recv(10_000)
    assert line.startswith(b"gpt2lab: ")
    assert line.endswith(b"\n")


def test_unknown_verb():
    done = gpt2lab("trian")
    assert done.returncode == 2
    assert "invalid choice: 'trian'" in done.stderr


def test_flags_beat_every_config_wherever_they_stand(tmp_path, monkeypatch):
    from gpt2lab.training import run as training_run

    seen = []
    monkeypatch.setattr(training_run, "run", seen.append)
    (tmp_path / "a.yaml").write_text("train: {max_steps: 7, eval_every: 8}")
    (tmp_path / "b.yaml").write_text("train: {eval_every: 9}")
    files = ["--config", str(tmp_path / "a.yaml"), "--train.max_steps", "3", "--config", str(tmp_path / "b.yaml")]
    assert cli.main(["train", *files, "--train.overfit_batch", "--run.name", "null"]) == 0
    assert (seen[0].train.max_steps, seen[0].train.eval_every, seen[0].train.overfit_batch) == (3, 9, True)
    assert seen[0].run.name == "b"


def test_no_config_is_the_quickstart_and_says_how_to_get_the_124m(monkeypatch, capsys):
    from gpt2lab.training import run as training_run

    seen = []
    monkeypatch.setattr(training_run, "run", seen.append)
    assert cli.main(["train"]) == 0
    assert seen[0].run.name == "quickstart"
    assert "--config config/gpt2_124m.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("door", [["train.py"], ["-m", "gpt2lab", "train"]])
def test_every_door_leads_to_the_same_room(door):
    done = subprocess.run(
        [sys.executable, *door, "--train.max_stps", "3"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "did you mean train.max_steps?" in done.stderr) == (2, True)


def corpus(folder):
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text(f"Text number {number}. " * (number % 7 + 3))
    return str(folder / "*.txt")


def test_prepare_then_look_at_it(tmp_path):
    (tmp_path / "in").mkdir()
    pattern = corpus(tmp_path / "in")
    command = ["prepare", "files", "--input", pattern, "--shard-size", "0.5K", "--workers", "2"]
    done = gpt2lab(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"prepared data/files: 40 documents, 1,\d+ tokens in 3 shards in [\d.]+ s, [\d.]+ MB/s of text", done.stdout
    )
    assert gpt2lab(*command, cwd=tmp_path).stdout.startswith("data/files is complete: 40 documents")
    assert gpt2lab("data", "verify", "data/files", cwd=tmp_path).stdout.startswith("data/files is sound: 3 shards")
    assert "| Text number 0." in gpt2lab("data", "inspect", "data/files", cwd=tmp_path).stdout
    adopted = gpt2lab("prepare", "pretokenized", "--input", "data/files", "--out", "again", cwd=tmp_path)
    assert adopted.stdout.startswith("prepared again: 40 documents")


PREPARE_MISTAKES = {
    "no source": (["prepare"], "required: SOURCE"),
    "unknown source": (["prepare", "novels"], "invalid choice: 'novels'"),
    "no input": (["prepare", "files"], "needs --input"),
    "no match": (["prepare", "files", "--input", "*.nothing"], "'*.nothing' matches no file"),
    "not a number": (["prepare", "stdlib", "--shard-size", "lots"], "'lots' is not a number such as 100000 or 100M"),
    "zero": (["prepare", "stdlib", "--workers", "0"], "must be a whole number, at least 1"),
    "no such mirror": (["prepare", "fineweb-edu", "--mirror", "nowhere"], "--mirror nowhere has no sample/10BT"),
    "two folders": (["prepare", "pretokenized", "--input", "a", "b"], "takes one --input"),
    "abbreviation": (["prepare", "stdlib", "--work", "2"], "unrecognized arguments: --work"),
    "no shards": (["data", "verify", "nowhere"], "nowhere: No such file or directory"),
    "no action": (["data", "look", "nowhere"], "invalid choice: 'look'"),
}


@pytest.mark.parametrize("case", PREPARE_MISTAKES)
def test_a_mistake_in_preparing_is_one_line_too(case, tmp_path, capsys, monkeypatch):
    arguments, expected = PREPARE_MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_numbers_with_a_letter():
    assert [cli._positive(text) for text in ("100M", "1.5K", "2B", "100_000", "7")] == [
        10**8,
        1500,
        2 * 10**9,
        10**5,
        7,
    ]


def test_training_on_fineweb_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data.source", "fineweb-edu", "--data.dir", "/x y"]) == 2
    assert "make them with: gpt2lab prepare fineweb-edu --out '/x y' (or set --data.dir" in capsys.readouterr().err
