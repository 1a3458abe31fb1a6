"""What a run lives through: signals, bad steps, little memory, a compiler that fails, a rank that is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt2lab.config import GuardConfig
from gpt2lab.errors import GPT2LabError, Stopped
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.training import memory, saver
from gpt2lab.training import run as training_run
from gpt2lab.training.guard import Guard
from gpt2lab.training.trainer import Trainer, smaller_micro_batch
from tests.training.test_run import (
    REPOSITORY,
    STEPS,
    interrupted_at,
    learned,
    records,
    settings,
    straight,
    tensors,
)

__all__ = ["straight"]  # a fixture

# -- the guard


def judged(guard: Guard, losses: list[float], norm: float = 1.0) -> list[bool]:
    return [guard.judge(loss, norm) is None for loss in losses]


def test_what_is_not_finite_is_skipped_and_stays_out_of_the_window():
    guard = Guard(GuardConfig(window=8, stop_after=3))
    assert judged(guard, [5.0, float("nan"), 4.0, float("inf")]) == [True, False, True, False]
    assert guard.judge(4.0, float("nan")) is not None
    assert guard.skipped == 3
    assert guard.state()["losses"] == [5.0, 4.0]


def test_a_spike_is_skipped_and_a_new_level_is_learned():
    guard = Guard(GuardConfig(deviations=4, window=8, stop_after=9))
    level = [3.0, 3.1, 2.9, 3.05, 2.95, 3.0]
    assert all(judged(guard, level))
    assert "loss 9 is a spike" in (guard.judge(9.0, 1.0) or "")
    assert "gradient norm 50 is a spike" in (guard.judge(3.0, 50.0) or "")
    assert judged(guard, [9.0] * 8)[-1]
    assert all(judged(Guard(GuardConfig(deviations=0, window=8)), [*level, 9.0]))


def test_too_many_in_a_row_stop_the_run_and_the_memory_survives_a_restart():
    guard = Guard(GuardConfig(stop_after=3))
    assert judged(guard, [float("nan")] * 2) == [False] * 2
    other = Guard(GuardConfig(stop_after=3))
    other.load(json.loads(json.dumps(guard.state())))
    assert other.skipped == 2
    assert not other.exhausted
    other.judge(float("nan"), 1.0)
    assert other.exhausted


def test_a_plateau_does_not_make_every_ripple_a_spike():
    guard = Guard(GuardConfig(window=8))
    assert all(judged(guard, [2.0] * 8 + [2.0000001, 2.001]))


def spoil(monkeypatch, at: set[int], value: float) -> None:
    """Make the loss of some steps `value`, and with it the gradients."""
    gradients = Trainer._gradients

    def spoiled(self, step, x, y):
        loss = gradients(self, step, x, y)
        if step in at:
            for parameter in self.model.parameters():
                parameter.grad.mul_(value)
        return loss * value if step in at else loss

    monkeypatch.setattr(Trainer, "_gradients", spoiled)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_left_out_and_named(token_folder, tmp_path, straight, monkeypatch, value):
    spoil(monkeypatch, {3}, value)
    training_run.run(settings(token_folder, tmp_path))
    run = tmp_path / "tiny"
    assert [line["train/loss"] for line in records(run) if line["step"] == 3] == [None]
    (event,) = records(run, "events.jsonl")
    assert (event["step"], event["event"], len(event["sequences"])) == (3, "skipped", 8)
    assert learned(run)[STEPS]["guard/skipped"] == 1
    assert learned(run)[2] == learned(straight)[2]
    assert tensors(run, 2) == tensors(straight, 2)
    assert all(tensors(run, STEPS)[name] != tensors(straight, STEPS)[name] for name in ("weights", "optimizer"))


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_and_the_run_goes_on_from_there(token_folder, tmp_path, straight, monkeypatch, number):
    def asked(self, step, batches):
        if step == 3:  # which has an evaluation: it is made up for
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # the listener is another thread
        return train_step(self, step, batches)

    train_step = Trainer._train_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", asked)
        with pytest.raises(Stopped, match="step_00000003 is kept") as stop:
            training_run.run(settings(token_folder, tmp_path))
    assert stop.value.status == 128 + number
    training_run.run(settings(token_folder, tmp_path))
    assert learned(tmp_path / "tiny") == learned(straight)
    assert tensors(tmp_path / "tiny") == tensors(straight)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # ours are gone again


def test_a_second_signal_leaves_at_once():
    code = (
        "import os, time; from gpt2lab.system.signals import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), 15); time.sleep(0.2); os.kill(os.getpid(), 10); time.sleep(30)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 128 + signal.SIGUSR1
    assert "SIGTERM: stopping after this step" in done.stdout


# -- memory, precision, compiler


def test_out_of_memory_halves_the_micro_batch_and_goes_on(token_folder, tmp_path, straight, monkeypatch):
    forward = GPT2.forward

    def hungry(self, idx, targets=None):
        if targets is not None and self.training and len(idx) > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(self, idx, targets)

    monkeypatch.setattr(GPT2, "forward", hungry)
    training_run.run(settings(token_folder, tmp_path))
    (event,) = records(tmp_path / "tiny", "events.jsonl")
    assert (event["event"], event["was"], event["micro_batch_size"]) == ("out of memory", 4, 2)
    ours, theirs = learned(tmp_path / "tiny"), learned(straight)
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], abs=1e-4)


def test_a_smaller_micro_batch_divides_the_share():
    assert smaller_micro_batch(32, 60) == 15
    assert smaller_micro_batch(3, 9) == 1
    with pytest.raises(GPT2LabError, match="one sequence at a time"):
        smaller_micro_batch(1, 9)


def test_a_micro_batch_that_does_not_fit_is_halved_before_the_first_step(monkeypatch):
    from gpt2lab.system.distributed import DistContext

    def try_it(size):
        if size > 5:
            raise torch.OutOfMemoryError

    said = []
    alone = DistContext(0, 1, torch.device("cpu"))
    assert memory.fitting(try_it, 32, 32, 1000, alone, said.append) == 4
    assert len(said) == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_and_resume_exactly(token_folder, tmp_path, straight, monkeypatch, precision):
    """With overflows on the way, so that the loss scale and the guard's window have something to remember."""
    overflow(monkeypatch, {2, 5})
    training_run.run(settings(token_folder, tmp_path / "whole", system__precision=precision))
    with interrupted_at(5, monkeypatch):
        training_run.run(settings(token_folder, tmp_path / "parts", system__precision=precision))
    training_run.run(settings(token_folder, tmp_path / "parts", system__precision=precision))
    whole, parts = tmp_path / "whole" / "tiny", tmp_path / "parts" / "tiny"
    assert learned(whole) == learned(parts)
    assert tensors(whole) == tensors(parts)
    last = "checkpoints/step_00000006/state.json"
    states = [json.loads((run / last).read_text()) for run in (whole, parts)]
    assert states[0]["guard"] == states[1]["guard"]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert (states[0]["scaler"] != {}) == (precision == "fp16")
    assert learned(whole)[1]["train/loss"] == pytest.approx(learned(straight)[1]["train/loss"], abs=0.05)


def overflow(monkeypatch, at: set[int]) -> None:
    """Make a gradient of some steps inf, as fp16 does when the loss scale is too large."""
    gradients = Trainer._gradients

    def overflowing(self, step, x, y):
        loss = gradients(self, step, x, y)
        if step in at:
            next(self.model.parameters()).grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(Trainer, "_gradients", overflowing)


def test_an_overflow_of_fp16_is_not_the_guards_business(token_folder, tmp_path, monkeypatch):
    overflow(monkeypatch, {2, 3})
    training_run.run(settings(token_folder, tmp_path, system__precision="fp16"))
    lines = learned(tmp_path / "tiny")
    assert "guard/skipped" not in lines[STEPS]
    assert lines[1]["train/loss_scale"] == 4 * lines[3]["train/loss_scale"] == 4 * lines[STEPS]["train/loss_scale"]
    assert not (tmp_path / "tiny" / "events.jsonl").exists()


def test_tf32_is_refused_where_it_is_not(token_folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("no GPU is what this test needs")
    with pytest.raises(GPT2LabError, match=r"system\.precision tf32"):
        training_run.run(settings(token_folder, tmp_path, system__precision="tf32"))


def test_a_compiler_that_fails_is_left_out(token_folder, tmp_path, straight, monkeypatch, capsys):
    class Broken(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self._orig_mod = model

        def forward(self, *_):
            raise RuntimeError("no compiler found\nmore about it")

    monkeypatch.setattr(torch, "compile", Broken)
    training_run.run(settings(token_folder, tmp_path, system__compile="on"))
    said = capsys.readouterr().out
    assert "torch.compile does not work here, so training goes on without it (RuntimeError: no compiler found)" in said
    assert tensors(tmp_path / "tiny") == tensors(straight)


def test_activation_checkpointing_changes_nothing_but_memory(token_folder, tmp_path, straight):
    training_run.run(settings(token_folder, tmp_path, system__activation_checkpointing=True))
    assert tensors(tmp_path / "tiny") == tensors(straight)


# -- two ranks


def torchrun(code: str, arguments: list[str], ranks: int = 2, **environment: str) -> subprocess.Popen[str]:
    """`code` runs before the command line does, on every rank."""
    script = f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}\n"
    script += "from gpt2lab.cli import main; sys.exit(main(sys.argv[1:]))"
    file = Path(arguments[-1]).with_suffix(".py")
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", str(file)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def recipe(token_folder: Path, tmp_path: Path, **changes) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(settings(token_folder, tmp_path, **changes).to_yaml())
    return ["train", "--config", str(path)]


def test_sharded_ranks_train_like_one_and_leave_an_ordinary_checkpoint(token_folder, tmp_path, straight):
    process = torchrun("", recipe(token_folder, tmp_path, system__shard=True))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "sample 1 at step 3" in out
    ours, theirs = learned(tmp_path / "tiny"), learned(straight)
    assert ours[STEPS]["val/loss"] == pytest.approx(theirs[STEPS]["val/loss"], abs=1e-4)
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], abs=1e-4)
    more = {"train__max_steps": 10, "system__activation_checkpointing": True}
    shutil.copytree(tmp_path, tmp_path / "alone")  # from here on once with shards and once without
    process = torchrun("", recipe(token_folder, tmp_path, system__shard=True, **more))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    training_run.run(settings(token_folder, tmp_path / "alone", **more))
    ours, theirs = learned(tmp_path / "tiny"), learned(tmp_path / "alone" / "tiny")
    for step in range(STEPS + 1, 11):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], abs=1e-4)


def test_memory_that_one_rank_lacks_halves_the_batch_on_both(token_folder, tmp_path, straight):
    code = """
import torch
from gpt2lab.model.gpt2 import GPT2
forward = GPT2.forward
def hungry(self, idx, targets=None):
    if os.environ["RANK"] == "1" and targets is not None and self.training and len(idx) > 1:
        raise torch.OutOfMemoryError("too much")
    return forward(self, idx, targets)
GPT2.forward = hungry
"""
    process = torchrun(code, recipe(token_folder, tmp_path, train__micro_batch_size=2))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (event,) = records(tmp_path / "tiny", "events.jsonl")
    assert (event["was"], event["micro_batch_size"]) == (2, 1)
    ours, theirs = learned(tmp_path / "tiny"), learned(straight)
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], abs=1e-4)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_lost_rank_is_named_and_nobody_stays_behind(token_folder, tmp_path, how):
    code = f"""
import signal
from gpt2lab.training.trainer import Trainer
step_of = Trainer._train_step
def lost(self, step, batches):
    if step == 3:
        open({str(tmp_path)!r} + "/pid" + os.environ["RANK"], "w").write(str(os.getpid()))
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), {int(how)})
    return step_of(self, step, batches)
Trainer._train_step = lost
"""
    process = torchrun(code, recipe(token_folder, tmp_path, system__timeout=6))
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - began < 60
    pid = (tmp_path / "pid1").read_text()
    assert f"rank 1 (pid {pid} on " in err, err
    assert "[rank 0]" in err or how == signal.SIGKILL
    for rank in (0, 1):
        assert not Path(f"/proc/{(tmp_path / f'pid{rank}').read_text()}").exists()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_a_rank_that_never_starts_is_named(monkeypatch):
    from gpt2lab.system import distributed

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    with (
        pytest.raises(GPT2LabError, match=r"rank 1, 2 of 3 did not start within 0.3 s"),
        distributed.start("cpu", start_timeout=0.3),
    ):
        pass
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    with (
        pytest.raises(GPT2LabError, match=r"cannot reach the first process at 127.0.0.1:"),
        distributed.start("cpu", start_timeout=1),
    ):
        pass


def test_the_page_of_a_long_run_is_drawn_beside_it(token_folder, tmp_path, monkeypatch, capsys):
    drawn = []

    class Drawing(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            if command[-2:] == ["report", str(tmp_path / "tiny")]:
                drawn.append(self.wait())

    monkeypatch.setattr(subprocess, "Popen", Drawing)
    monkeypatch.setattr(saver, "_REPORT_SECONDS", 0.0)
    training_run.run(settings(token_folder, tmp_path, train__max_steps=2))
    assert drawn == [0]
    assert "warning" not in capsys.readouterr().out

    class Refused(Drawing):
        def __init__(self, command, **options):
            if "report" in command:
                raise OSError("cannot allocate memory")
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Refused)
    training_run.run(settings(token_folder, tmp_path, train__max_steps=4))
    assert "warning: no report this time: cannot allocate memory" in capsys.readouterr().out


def test_a_first_step_that_is_skipped_can_be_resumed_from(token_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, {1, 2}, float("nan"))
        training_run.run(settings(token_folder, tmp_path, train__max_steps=2))
    training_run.run(settings(token_folder, tmp_path))
    assert [event["step"] for event in records(tmp_path / "tiny", "events.jsonl") if event["event"] == "skipped"] == [
        1,
        2,
    ]
    assert learned(tmp_path / "tiny")[STEPS]["train/loss"] < 6
