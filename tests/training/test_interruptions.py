"""Signals, little memory, 16 bits, a compiler that fails, and reports while a run trains."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.generation.text import RowDecoder
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.signals import StopSignals
from gpt2lab.tracking import metrics
from gpt2lab.training import live_report, memory
from gpt2lab.training import run as training_run
from gpt2lab.training.memory import MicroStepVotes, smaller_micro_batch_size
from gpt2lab.training.trainer import Trainer
from tests.runs import STEPS, assert_same_losses, interrupted_at, learned, records, settings, tensors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_a_checkpoint_and_the_run_resumes_exactly(
    token_folder, tmp_path, finished_run, monkeypatch, number
):
    previous_handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(RunStoppedError, match="step_00000002 is kept") as stop:
        later = send_signal(patch, number, in_training=True, forward=2 * 2 + 2)  # in the third step
        training_run.run(settings(token_folder, tmp_path))
    assert stop.value.status == 128 + number
    assert later == []
    training_run.run(settings(token_folder, tmp_path))
    assert learned(tmp_path / "tiny") == learned(finished_run)
    assert tensors(tmp_path / "tiny") == tensors(finished_run)
    assert signal.getsignal(signal.SIGINT) is previous_handler


def send_signal(monkeypatch, number: signal.Signals, in_training: bool, forward: int) -> list[str]:
    """Send this process a signal in a forward pass, counted from 1, of training or validation.

    Returns:
        A list that gets an entry for each forward pass of training or validation that follows.
    """
    later: list[str] = []
    received = threading.Event()
    count, forward_pass = 0, GPT2.forward

    def counting(self, idx, targets=None):
        nonlocal count
        if received.is_set():
            later.append("training" if self.training else "validation")
        count += targets is not None and self.training == in_training
        if count == forward and not received.is_set():
            os.kill(os.getpid(), number)
            assert received.wait(60)
        return forward_pass(self, idx, targets)

    def set_received(self, name, value):
        object.__setattr__(self, name, value)
        if name == "received" and value:
            received.set()

    monkeypatch.setattr(StopSignals, "__setattr__", set_received)
    monkeypatch.setattr(GPT2, "forward", counting)
    return later


@pytest.mark.parametrize(("step", "evaluation"), [(0, 1), (3, 2), (STEPS, 3)])
def test_an_evaluation_stops_after_a_forward_pass_and_is_repeated(
    token_folder, tmp_path, finished_run, monkeypatch, caplog, step, evaluation
):
    caplog.set_level(logging.INFO)
    passes = 512 // 16 // 4  # of a validation
    with monkeypatch.context() as patch, pytest.raises(RunStoppedError, match="same command"):
        later = send_signal(patch, signal.SIGINT, in_training=False, forward=(evaluation - 1) * passes + 3)
        training_run.run(settings(token_folder, tmp_path))
    assert later == []
    assert ("stopping and saving" in caplog.text) == (step > 1)
    run = tmp_path / "tiny"
    assert max(learned(run), default=0) == max(0, step - 1)  # the step is logged with its evaluation
    training_run.run(settings(token_folder, tmp_path))
    assert learned(run) == learned(finished_run)
    assert tensors(run) == tensors(finished_run)
    caplog.clear()
    training_run.run(settings(token_folder, tmp_path))
    assert "is finished" in caplog.text


def test_sampling_stops_after_a_token_and_is_repeated(token_folder, tmp_path, finished_run, monkeypatch):
    tokens, received, decode = 0, threading.Event(), RowDecoder.decode

    def set_received(self, name, value):
        object.__setattr__(self, name, value)
        if name == "received" and value:
            received.set()

    def counting(self, token):
        nonlocal tokens
        tokens += 1
        if tokens == 2 * 4 + 3:  # the third token of the second evaluation
            os.kill(os.getpid(), signal.SIGINT)
            assert received.wait(60)
        return decode(self, token)

    with monkeypatch.context() as patch, pytest.raises(RunStoppedError):
        patch.setattr(StopSignals, "__setattr__", set_received)
        patch.setattr(RowDecoder, "decode", counting)
        training_run.run(settings(token_folder, tmp_path))
    assert tokens == 2 * 4 + 3
    run = tmp_path / "tiny"
    assert {line["step"] for line in records(run, "samples.jsonl")} == {0}
    training_run.run(settings(token_folder, tmp_path))
    assert records(run, "samples.jsonl") == records(finished_run, "samples.jsonl")
    assert learned(run) == learned(finished_run)


def test_rank_0_samples_without_a_collective(token_folder, tmp_path, monkeypatch):
    """The other ranks do not sample, and wait in the collective that follows."""
    alone, evaluate = [], Trainer._evaluate

    def evaluating(self, step):
        check_stop = self._check_stop

        def checking(*, together=True):
            alone.append(not together)
            check_stop(together=together)

        self._check_stop = checking
        return evaluate(self, step)

    monkeypatch.setattr(Trainer, "_evaluate", evaluating)
    training_run.run(settings(token_folder, tmp_path, train__max_steps=1, train__eval_every=0, train__sample_every=9))
    assert alone[: 2 * 4 + 1] == [True] * (2 * 4) + [False]


def test_a_stop_in_the_step_after_an_evaluation_keeps_its_loss_for_keep_best(token_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RunStoppedError):
        send_signal(patch, signal.SIGINT, in_training=True, forward=2 * 3 + 1)
        training_run.run(settings(token_folder, tmp_path))
    state = json.loads((tmp_path / "tiny" / "checkpoints" / "step_00000003" / "state.json").read_text())
    assert state["val_loss"] == learned(tmp_path / "tiny")[3]["val/loss"]


def test_a_second_signal_exits_at_once_and_tells_what_is_lost():
    code = (
        "import os, time; from gpt2lab import logs; from gpt2lab.system.signals import StopSignals\n"
        "logs.configure()\n"
        "with StopSignals() as signals:\n"
        "    signals.describe_loss = lambda: 'step 10 is saved, and the 7 steps since are lost'\n"
        "    os.kill(os.getpid(), 15)\n"
        "    while not signals.received: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), 10); time.sleep(600)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 128 + signal.SIGUSR1
    assert "SIGTERM" in done.stdout
    assert done.stderr == "gpt2lab: SIGUSR1 again: stopped at once; step 10 is saved, and the 7 steps since are lost\n"


def test_the_steps_lost_after_a_start_from_another_run_are_counted_from_it(
    token_folder, tmp_path, finished_run, monkeypatch
):
    told, train_step = [], Trainer._train_step

    def counting(self, step, batches):
        told.append(self.describe_loss())
        return train_step(self, step, batches)

    monkeypatch.setattr(Trainer, "_train_step", counting)
    start = {"run__resume": str(finished_run / "checkpoints" / f"step_{STEPS:08d}"), "checkpoint__every": 0}
    training_run.run(settings(token_folder, tmp_path, train__max_steps=STEPS + 3, **start))
    assert told == [
        f"step {STEPS} is saved, and only the unfinished step is lost",
        f"step {STEPS} is saved, and the 1 step since is lost",
        f"step {STEPS} is saved, and the 2 steps since are lost",
    ]


def test_a_disk_that_fills_up_says_what_is_repeated(token_folder, tmp_path, monkeypatch):
    write = metrics.JsonLines.write

    def refuse(self, record):
        if record.get("step") == 5 and "train/loss" in record:
            raise GPT2LabError("cannot write: No space left; free space and run again") from OSError(28, "No space")
        write(self, record)

    monkeypatch.setattr(metrics.JsonLines, "write", refuse)
    with pytest.raises(
        GPT2LabError,
        match=r"again; (step [24] is saved, and the . steps? since (are|is)|"
        r"nothing is saved, and the . steps since the beginning are) repeated$",
    ):
        training_run.run(settings(token_folder, tmp_path))


def test_out_of_memory_halves_the_micro_batch(token_folder, tmp_path, finished_run, monkeypatch):
    forward = GPT2.forward

    def hungry(self, idx, targets=None):
        if targets is not None and self.training and len(idx) > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(self, idx, targets)

    monkeypatch.setattr(GPT2, "forward", hungry)
    training_run.run(settings(token_folder, tmp_path))
    (event,) = records(tmp_path / "tiny", "events.jsonl")
    assert (event["event"], event["was"], event["micro_batch_size"]) == ("out of memory", 4, 2)
    assert_same_losses(tmp_path / "tiny", finished_run)


def test_a_smaller_micro_batch_size_divides_the_sequences_of_a_rank():
    assert smaller_micro_batch_size(32, 60) == 15
    assert smaller_micro_batch_size(3, 9) == 1
    with pytest.raises(GPT2LabError, match="one sequence at a time"):
        smaller_micro_batch_size(1, 9)


def test_find_micro_batch_size_halves_until_it_fits():
    def try_it(size):
        if size > 5:
            raise torch.OutOfMemoryError

    model: Any = SimpleNamespace(try_micro_step=try_it, dist=DistContext(0, 1, torch.device("cpu")))
    assert memory.find_micro_batch_size(model, 32, 32, 1000) == 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_bf16_and_fp16_resume_exactly_after_overflows(token_folder, tmp_path, finished_run, monkeypatch, precision):
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
    assert learned(whole)[1]["train/loss"] == pytest.approx(learned(finished_run)[1]["train/loss"], abs=0.05)


def overflow(monkeypatch, at: set[int]) -> None:
    """Make a gradient of some steps inf, as fp16 does when the loss scale is too large."""
    retry = MicroStepVotes.run

    def overflowing(self, step, sequences, micro_steps):
        loss = retry(self, step, sequences, micro_steps)
        if step in at:
            next(self._model.module.parameters()).grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(MicroStepVotes, "run", overflowing)


def test_an_fp16_overflow_lowers_the_loss_scale_and_is_not_counted_by_the_guard(token_folder, tmp_path, monkeypatch):
    overflow(monkeypatch, {2, 3})
    training_run.run(settings(token_folder, tmp_path, system__precision="fp16"))
    lines = learned(tmp_path / "tiny")
    assert "guard/skipped" not in lines[STEPS]
    assert lines[1]["train/loss_scale"] == 4 * lines[3]["train/loss_scale"] == 4 * lines[STEPS]["train/loss_scale"]
    assert not (tmp_path / "tiny" / "events.jsonl").exists()


def test_tf32_without_a_gpu_is_refused(token_folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("no GPU is what this test needs")
    with pytest.raises(GPT2LabError, match=r"system\.precision tf32"):
        training_run.run(settings(token_folder, tmp_path, system__precision="tf32"))


def test_training_goes_on_without_a_compiler_that_fails(token_folder, tmp_path, finished_run, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    class Broken(torch.nn.Module):
        def __init__(self, model, **_):
            super().__init__()
            self._orig_mod = model

        def forward(self, *_):
            raise RuntimeError("no compiler found\nmore about it")

    monkeypatch.setattr(torch, "compile", Broken)
    training_run.run(settings(token_folder, tmp_path, system__compile="on"))
    assert "RuntimeError: no compiler found" in caplog.text
    assert tensors(tmp_path / "tiny") == tensors(finished_run)


def test_activation_checkpointing_does_not_change_the_weights(token_folder, tmp_path, finished_run):
    training_run.run(settings(token_folder, tmp_path, system__activation_checkpointing=True))
    assert tensors(tmp_path / "tiny") == tensors(finished_run)


def test_the_report_is_drawn_in_another_process_while_the_run_trains(token_folder, tmp_path, monkeypatch, caplog):
    drawn = []

    class Drawing(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            if command[-2:] == ["report", str(tmp_path / "tiny")]:
                drawn.append(self.wait())

    monkeypatch.setattr(subprocess, "Popen", Drawing)
    monkeypatch.setattr(live_report, "REFRESH_SECONDS", 0.0)
    training_run.run(settings(token_folder, tmp_path, train__max_steps=2))
    assert drawn == [0]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    class Refused(Drawing):
        def __init__(self, command, **options):
            if "report" in command:
                raise OSError("cannot allocate memory")
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Refused)
    training_run.run(settings(token_folder, tmp_path, train__max_steps=4))
    assert "cannot allocate memory" in caplog.text
