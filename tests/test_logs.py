"""Messages of the command line: where they go, how they look, and what happens if they cannot be written."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from gpt2lab import cli, logs
from gpt2lab.bench import run as bench_run
from gpt2lab.bench.process import StepTimes
from gpt2lab.errors import RunStoppedError
from tests.runs import STEPS, finished_run, settings
from tests.terminal import COLUMNS, close_terminal, render, run_in_terminal

__all__ = ["finished_run"]


@pytest.fixture
def recipe(token_folder, tmp_path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(settings(token_folder, tmp_path / "runs").to_yaml())
    return file


def run_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


SCALING = ["scaling", "predict", "points.csv", "--parameters", "1M", "--tokens", "1B", "--bootstraps", "40"]


@pytest.fixture
def commands(recipe, token_folder, finished_run, tmp_path, monkeypatch) -> list[list[str]]:
    """A command for each verb that prints a result."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "points.csv").write_text(
        "parameters,tokens,loss\n"
        + "".join(f"{n},{d},{2 + 400 / n**0.3 + 400 / d**0.3}\n" for n in (1e5, 3e5, 1e6) for d in (1e7, 3e7, 1e8))
    )
    monkeypatch.setattr(bench_run, "_time_contenders", lambda names, *_: dict.fromkeys(names, StepTimes([1.0], 1.0)))
    tiny = ["--model.n_embd", "48", "--train.micro_batch_size", "1", "--rivals", "none", "--model.block_size", "64"]
    return [
        ["--help"],
        ["train", "--help"],
        ["settings"],
        ["plan", "--json"],
        ["plan", "--gpu", "h200"],
        ["data", "inspect", str(token_folder)],
        ["report", str(run)],
        ["evaluate", "--model-checkpoint", str(run), "--tasks", "", "--json"],
        ["evaluate", "--model-checkpoint", str(run), "--tasks", ""],
        SCALING,
        [*SCALING, "--json"],
        ["bench", *tiny],
        ["bench", *tiny, "--json"],
        ["train", "--config", str(recipe)],
    ]


def run_with_output(command: list[str], output: TextIO) -> int:
    """The exit status of a command in this process, with another standard output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        return cli.main(command)


@pytest.mark.skipif(sys.platform != "linux", reason="no Linux: /dev/full")
def test_a_full_disk_is_one_line_whatever_is_printed(commands, capsys):
    for command in commands:
        with open("/dev/full", "w") as full:
            status = run_with_output(command, full)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpt2lab: ")]
        assert (status, errors) == (2, ["gpt2lab: standard output: No space left on device"]), command


def test_a_closed_pipe_ends_the_command_silently(commands, capsys):
    for command in commands:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as pipe:
            status = run_with_output(command, pipe)
        assert (status, "gpt2lab: " in capsys.readouterr().err) == (141, False), command


def test_the_result_of_an_evaluation_is_kept_even_if_it_cannot_be_printed(finished_run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise BrokenPipeError

    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr(logs, "print_result", fail)
    assert cli.main(["evaluate", "--model-checkpoint", str(run), "--tasks", ""]) == 141
    assert list((run / "evaluations").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="no Linux: /dev/full")
def test_a_process_whose_streams_are_full_or_closed_ends_without_a_complaint_of_python():
    gpt2lab = f"{sys.executable} -m gpt2lab"
    done = run_shell(
        f"{gpt2lab} settings >/dev/full; echo $?; {gpt2lab} --version >/dev/full; echo $?; {gpt2lab} bogus 2>&1 | true;"
        f"echo ${{PIPESTATUS[0]}}; {gpt2lab} settings | true; echo ${{PIPESTATUS[0]}}; {gpt2lab} settings >&-; echo $?;"
        f"{gpt2lab} bogus 2>&-; echo $?"
    )
    assert done.stdout.split() == ["2", "2", "141", "141", "0", "2"]
    assert done.stderr.splitlines() == ["gpt2lab: standard output: No space left on device"] * 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logger(monkeypatch) -> logging.Logger:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    logs.configure()
    return logging.getLogger("gpt2lab.test")


def test_a_terminal_shows_warnings_in_color_and_breaks_lines_between_words(logger, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    logger.warning("the learning rate never reaches optimizer.max_lr")
    logger.info("plain")
    lines = terminal.getvalue().splitlines()
    assert lines == ["\x1b[33mwarning: the learning rate never reaches", "  optimizer.max_lr\x1b[0m", "plain"]
    monkeypatch.setenv("NO_COLOR", "1")
    logger.warning("short")
    assert terminal.getvalue().endswith("\nwarning: short\n")


def test_the_output_of_prepare_data_and_an_error_fit_on_a_terminal(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"a long line of many words {n} " * 20}) + "\n" for n in range(40)))
    gpt2lab = [sys.executable, "-m", "gpt2lab"]
    out = str(tmp_path / "out")
    for command, status in (
        (["prepare", "files", "--input", str(texts), "--out", out], 0),
        (["data", "inspect", out], 0),
        (["data", "verify", out], 0),
        (["data", "verify", str(tmp_path / "nowhere")], 2),
    ):
        ended, output = run_in_terminal([*gpt2lab, *command])
        assert ended == status, output
        # A path has no place to break.
        lines = [line.replace(str(tmp_path), "") for line in render(output)]
        assert max(map(len, lines)) <= COLUMNS, output
        assert max(map(len, lines)) > 20


@pytest.mark.parametrize("ending", [RunStoppedError(2, "long " * 30), KeyboardInterrupt("long " * 30)])
def test_what_is_printed_at_a_stop_fits_on_a_terminal(monkeypatch, ending):
    def stop(_):
        raise ending

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(cli, "_run_verb", stop)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert cli.main([]) == 130
    assert max(map(len, terminal.getvalue().splitlines())) <= 40


def test_a_pipe_gets_one_plain_line_for_a_message(logger, monkeypatch):
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    logger.warning("the learning rate never reaches optimizer.max_lr")
    assert pipe.getvalue() == "warning: the learning rate never reaches optimizer.max_lr\n"


def test_json_lines_are_alone_on_standard_output(recipe, capsys):
    renamed = ("--guard.deviations", "5")
    assert cli.main(["train", "--config", str(recipe), "--tracking.log_format", "json", *renamed]) == 0
    out, err = capsys.readouterr()
    assert "guard.spike_sigma" in err
    assert [json.loads(line)["step"] for line in out.splitlines()] == list(range(STEPS + 1))
    assert "sample 1" in err


def test_training_prints_two_samples_as_text_and_records_all(token_folder, tmp_path, capsys):
    config = settings(token_folder, tmp_path, train__sample_count=5, train__sample_prompt="a\nb")
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    assert cli.main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.count("step 6/6  sample ") == 2
    assert "\x1b" not in out  # no color in a pipe
    assert "\n  | a\n  | b" in out
    steps = [json.loads(line)["step"] for line in (tmp_path / "tiny" / "samples.jsonl").read_text().splitlines()]
    assert steps.count(6) == 5


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_whose_terminal_closes_saves_or_with_nohup_ends(recipe, ignored):
    steps = 200
    command = [sys.executable, "-m", "gpt2lab", "train", "--config", str(recipe), "--run.out_dir", str(recipe.parent)]
    command += ["--train.max_steps", str(steps), "--tracking.log_every", "1", "--train.eval_every", "0"]
    if ignored:
        command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command]
    status = close_terminal(command, "/200  loss", timeout=60)
    saved = [
        int(folder.name.removeprefix("step_")) for folder in (recipe.parent / "tiny" / "checkpoints").glob("step_*")
    ]
    assert (status, max(saved) == steps) == ((0, True) if ignored else (129, False))


@pytest.mark.slow
def test_no_line_of_a_run_on_a_terminal_is_wider_than_80_columns_and_no_bar_is_left(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)  # a long path of the run cannot be wrapped
    command = [sys.executable, "-m", "gpt2lab", "train", "--config", recipe.name, "--run.out_dir", "runs"]
    command += ["--optimizer.warmup_steps", "100"]
    status, output = run_in_terminal(command)
    lines = render(output)
    text = "\n".join(lines)
    assert status == 0
    assert max(map(len, lines)) <= COLUMNS, text
    assert "step 6/6  loss" in text
    assert "━" not in text
    assert "\x1b[33mwarning: " in output
    assert "\x1b[32mstep 6/6  val loss" in output
    assert not lines[-1]  # the prompt of the shell comes here
