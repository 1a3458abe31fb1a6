"""Sweeps of tiny runs: they resume exactly, a failed run is a row, signals stop them, GPUs are shared out."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from gpt2lab import cli
from gpt2lab.sweep import page, processes
from gpt2lab.sweep import run as sweep_run
from gpt2lab.training.trainer import Trainer
from tests.runs import InterruptedRunError, learned, tensors

TWO = ["--over", "run.seed=1,2"]
OVER = ["--over", "optimizer.max_lr=1e-3,1e-2", "--over", "run.seed=1,2,3"]


def sweep(recipe, *arguments) -> int:
    return cli.main(["sweep", "--config", str(recipe), *map(str, arguments)])


def read(folder):
    return {row["name"]: row for row in json.loads((folder / "sweep.json").read_text())["runs"]}


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr(page, "write", lambda folder: folder / "report.html")


def assert_same_runs(folder, reference, names):
    for name in names:
        assert learned(folder / name) == learned(reference / name)
        assert tensors(folder / name) == tensors(reference / name)


def test_an_interrupted_sweep_ends_with_the_same_runs(recipe, tmp_path, in_process, no_page, monkeypatch):
    assert sweep(recipe, *TWO, "--run.name", "undisturbed") == 0
    train_step = Trainer._train_step
    for steps in (3, 2, 4):
        steps_left = iter(range(steps))

        def interrupted(self, step, batches, steps_left=steps_left):
            if next(steps_left, None) is None:
                raise InterruptedRunError
            return train_step(self, step, batches)

        with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
            patch.setattr(Trainer, "_train_step", interrupted)
            sweep(recipe, *TWO, "--run.name", "killed")
    statuses = [row["status"] for row in read(tmp_path / "runs" / "killed").values()]
    assert statuses == ["finished", "running"]  # the first run was killed twice, the second once
    assert sweep(recipe, *TWO, "--run.name", "killed") == 0
    rows = read(tmp_path / "runs" / "killed")
    assert len(rows) == 2
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert_same_runs(tmp_path / "runs" / "killed", tmp_path / "runs" / "undisturbed", rows)


def test_finished_runs_are_skipped_and_a_changed_grid_is_said(recipe, tmp_path, in_process, no_page, capsys):
    assert sweep(recipe, "--over", "run.seed=1,2") == 0
    folder = tmp_path / "runs" / "tiny_sweep"
    before = {name: (folder / name / "metrics.jsonl").stat().st_mtime_ns for name in read(folder)}
    capsys.readouterr()
    assert sweep(recipe, "--over", "run.seed=2,3") == 0
    said = capsys.readouterr().out
    assert "1 run is new" in said
    assert "seed-1" in said
    assert "1 of 2 runs to train" in said
    assert all((folder / name / "metrics.jsonl").stat().st_mtime_ns == when for name, when in before.items())
    assert sweep(recipe, "--over", "run.seed=2,3", "--train.max_steps", 9) == 2
    assert "began with train.max_steps 6, now it is 9" in capsys.readouterr().err
    assert sweep(recipe, "--over", "run.seed=2,3", "--checkpoint.every", 3) == 0  # changes no loss


def test_a_run_does_not_take_over_the_folder_of_a_sweep_or_of_runs(recipe, tmp_path, in_process, no_page, capsys):
    assert sweep(recipe, *TWO, "--run.name", "taken") == 0
    folder, train = tmp_path / "runs" / "taken", ["train", "--config", str(recipe), "--run.name"]
    before = sorted(folder.rglob("*"))
    for dry_run in ([], ["--dry-run"]):
        assert cli.main([*train, "taken", *dry_run]) == 2
        assert f"{folder} is a sweep, not a run; give another --run.name" in capsys.readouterr().err
        (folder / "sweep.json").rename(tmp_path / "sweep.json")
        assert cli.main([*train, "taken", *dry_run]) == 2
        assert f"{folder} holds runs, such as seed-" in capsys.readouterr().err
        (tmp_path / "sweep.json").rename(folder / "sweep.json")
    assert sorted(folder.rglob("*")) == before
    assert sweep(recipe, *TWO, "--run.name", "taken") == 0


def test_a_sweep_without_a_validation_loss_is_warned_about(recipe, capsys):
    for value, warned in (("0", True), ("3", False)):
        assert sweep(recipe, *TWO, "--train.eval_every", value, "--print") == 0
        assert ("train.eval_every is 0" in "".join(capsys.readouterr())) is warned


def test_a_failed_run_is_a_row_and_the_others_go_on(recipe, tmp_path, in_process, capsys):
    over = ["--over", "train.total_batch_size=128,100,256"]
    assert sweep(recipe, *over) == 2
    assert "1 of 3 runs failed" in capsys.readouterr().err
    folder = tmp_path / "runs" / "tiny_sweep"
    rows = read(folder)
    assert [row["status"] for row in rows.values()] == ["finished", "failed", "finished"]
    error = rows["total_batch_size-100"]["error"]
    assert "not a multiple of" in error
    html = (folder / "report.html").read_text()
    assert error in html
    assert html.count("<svg") == 4  # the curves and the loss over the setting, each in two sizes
    assert "Final validation loss over train.total_batch_size" in html
    assert not re.search(r"(src|href)=\"(http|//)", html)


def test_a_signal_stops_the_run_under_way_and_the_sweep(recipe, tmp_path, no_page, monkeypatch, capsys):
    sent = []

    class Child:
        returncode = None

        def __init__(self, *_, **__):
            pass

        def poll(self):
            if self.returncode is None and not sent:
                os.kill(os.getpid(), signal.SIGINT)  # as a terminal does; the handler runs at once
            return self.returncode

        def send_signal(self, number):
            sent.append(number)
            self.returncode = 128 + number

    monkeypatch.setattr(processes, "Popen", Child)
    monkeypatch.setattr(processes, "_POLL", 0)
    assert sweep(recipe, *OVER) == 130
    assert sent == [signal.SIGINT]
    statuses = [row["status"] for row in read(tmp_path / "runs" / "tiny_sweep").values()]
    assert statuses == ["stopped"] + ["waiting"] * 5
    assert "the same command" in capsys.readouterr().err


def test_what_a_stopped_run_has_saved_is_said(tmp_path):
    stopped = sweep_run.State("stopped")
    assert sweep_run._describe_end(tmp_path / "none", stopped) == "stopped before its first step"
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    assert sweep_run._describe_end(tmp_path, stopped) == "stopped, nothing was saved"
    (tmp_path / "checkpoints" / "step_00000003").mkdir(parents=True)
    assert sweep_run._describe_end(tmp_path, stopped) == "stopped and saved"


def test_ctrl_c_while_a_run_starts_leaves_no_traceback(recipe, tmp_path, no_page, monkeypatch, capsys):
    """The signal reaches the process of the run before Python is ready for it."""
    popen = processes.Popen

    def start_and_interrupt(*arguments, **options):
        child = popen(*arguments, **options)
        child.send_signal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal, which sends it to both
        return child

    monkeypatch.setattr(processes, "Popen", start_and_interrupt)
    assert sweep(recipe, *TWO) == 130
    folder = tmp_path / "runs" / "tiny_sweep"
    assert [row["status"] for row in read(folder).values()] == ["stopped", "waiting"]
    assert next(folder.glob("*.log")).read_text() == "gpt2lab: interrupted\n"
    assert "stopped before its first step" in capsys.readouterr().out


def test_each_gpu_has_one_run_at_a_time(recipe, no_page, monkeypatch):
    active, seen = set(), []

    class Child:
        def __init__(self, *_, env, **__):
            self.device, self.polls = env["CUDA_VISIBLE_DEVICES"], 0
            assert self.device not in active
            active.add(self.device)
            seen.append(set(active))

        def poll(self):
            self.polls += 1
            if self.polls < 1 + int(self.device):
                return None
            active.discard(self.device)
            return 1

        returncode = 1

    monkeypatch.setattr(processes, "Popen", Child)
    monkeypatch.setattr(processes, "_POLL", 0)
    monkeypatch.setattr(processes, "list_devices", lambda _: ["2", "5", "7"])
    assert sweep(recipe, *OVER) == 2  # no run has left anything
    assert len(seen) == 6
    assert max(map(len, seen)) == 3


@pytest.mark.parametrize(
    ("visible", "count", "expected"), [(None, 2, ["0", "1"]), ("3,1", 2, ["3", "1"]), (None, 0, [None])]
)
def test_devices_are_the_visible_gpus(visible, count, expected, recipe, monkeypatch):
    import torch

    from gpt2lab import config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert processes.list_devices(config.load([recipe], {"system.device": "auto"})) == expected
    assert processes.list_devices(config.load([recipe], {"system.device": "cpu"})) == [None]


TWELVE = ["--over", "optimizer.max_lr=1e-3,1e-2", "--over", "run.seed=1,2,3", "--over", "model.n_layer=1,2"]


def start(recipe, over, *arguments):
    command = [sys.executable, "-m", "gpt2lab", "sweep", "--config", str(recipe), *over, *arguments]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# FULL_TESTS=1 kills a sweep of twelve runs five times, in minutes; otherwise one of two runs, twice.
FULL = bool(os.environ.get("FULL_TESTS"))


@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_with_the_same_runs(recipe, tmp_path, in_process, no_page):
    over = TWELVE if FULL else TWO
    assert sweep(recipe, *over, "--run.name", "undisturbed") == 0
    generator = random.Random(0)
    for _ in range(5 if FULL else 2):
        process = start(recipe, over, "--run.name", "killed")
        time.sleep(generator.uniform(0, 20 if FULL else 10))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(recipe, over, "--run.name", "killed").wait() == 0
    rows = read(tmp_path / "runs" / "killed")
    assert len(rows) == (12 if FULL else 2)
    assert_same_runs(tmp_path / "runs" / "killed", tmp_path / "runs" / "undisturbed", rows)


@pytest.mark.slow
def test_ctrl_c_saves_the_run_under_way(recipe, tmp_path):
    process = start(recipe, TWELVE, "--train.max_steps", "100000")
    folder = tmp_path / "runs" / "tiny_sweep"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # a stop before the first step saves nothing
        if any("train/loss" in path.read_text() for path in folder.glob("*/metrics.jsonl")):
            break
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    rows = [*read(folder).values()]
    assert [row["status"] for row in rows] == ["stopped"] + ["waiting"] * 11
    assert [*(folder / rows[0]["name"] / "checkpoints").glob("step_*/SHA256SUMS")]
