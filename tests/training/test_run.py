"""A tiny run: its files, that it learns, that it resumes exactly, and that ranks and micro batches do not matter."""

import json
import logging
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gpt2lab import progress
from gpt2lab.system.distributed import DistContext
from gpt2lab.training import build
from gpt2lab.training import run as training_run
from gpt2lab.training.run_directory import RunDirectory
from tests.runs import (
    REPOSITORY,
    STEPS,
    assert_same_losses,
    command,
    interrupted_at,
    learned,
    records,
    settings,
    tensors,
)


def test_the_files_and_records_of_a_run(finished_run):
    assert {file.name for file in finished_run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples.jsonl",
        "loss_curve.png",
        "report.html",
        "checkpoints",
    }
    assert sorted(learned(finished_run)) == list(range(STEPS + 1))
    assert [step for step, line in learned(finished_run).items() if "val/loss" in line] == [0, 3, 6]
    assert {"train/loss", "train/lr", "train/grad_norm"} <= learned(finished_run)[1].keys()
    assert {"perf/tokens_per_second", "perf/step_ms", "perf/data_ms", "perf/peak_memory_gib"} <= records(finished_run)[
        1
    ].keys()
    assert [(one["step"], one["seed"]) for one in records(finished_run, "samples.jsonl")] == [
        (step, seed) for step in (0, 3, 6) for seed in (1337, 1338)
    ]
    assert all(one["text"].startswith("a b") for one in records(finished_run, "samples.jsonl"))
    assert (finished_run / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    environment = json.loads((finished_run / "environment.json").read_text())
    assert re.fullmatch(r"\w*val\w*\.npy", environment["data"]["val_shard"])
    assert environment["versions"]["torch"]
    assert environment["hardware"]["cores"] >= 1
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert environment["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_the_loss_starts_at_chance_and_falls(finished_run):
    lines = learned(finished_run)
    assert lines[0]["val/loss"] == pytest.approx(np.log(300), abs=0.1)
    assert lines[STEPS]["val/loss"] < lines[0]["val/loss"] - 0.1


def test_a_checkpoint_opens_in_transformers(finished_run):
    import torch
    import transformers

    from gpt2lab import GPT2

    folder = finished_run / "checkpoints" / f"step_{STEPS:08d}"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    idx = torch.randint(0, 300, (2, 16))
    with torch.no_grad():
        difference = theirs(idx).logits - GPT2.from_pretrained(folder)(idx)[0]
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
def test_a_run_resumes_exactly_from_any_step(token_folder, tmp_path, finished_run, monkeypatch, kill_at):
    with interrupted_at(kill_at, monkeypatch):
        training_run.run(settings(token_folder, tmp_path))
    training_run.run(settings(token_folder, tmp_path))
    assert learned(tmp_path / "tiny") == learned(finished_run)
    assert tensors(tmp_path / "tiny") == tensors(finished_run)
    assert records(tmp_path / "tiny", "samples.jsonl") == records(finished_run, "samples.jsonl")


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_the_same_command(token_folder, tmp_path):
    steps = 60
    changes = {"train__max_steps": steps, "checkpoint__every": 5, "train__sample_every": 0}
    reference = settings(token_folder, tmp_path / "reference", **changes)
    training_run.run(reference)
    killed = command(settings(token_folder, tmp_path / "killed", **changes), tmp_path / "killed.yaml")
    process = subprocess.Popen(killed, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "tiny" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 20):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert metrics.read_bytes().count(b"\n") < steps
    with open(metrics, "a") as file:
        file.write('{"step": 21, "train/lo')  # a line cut off by the kill
    subprocess.run(killed, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    assert learned(tmp_path / "killed" / "tiny") == learned(tmp_path / "reference" / "tiny")
    assert tensors(tmp_path / "killed" / "tiny", steps) == tensors(tmp_path / "reference" / "tiny", steps)


def test_evaluation_and_samples_do_not_change_the_weights(token_folder, tmp_path, finished_run):
    training_run.run(settings(token_folder, tmp_path, train__eval_every=0, train__sample_every=0))
    assert tensors(tmp_path / "tiny") == tensors(finished_run)


def test_gradient_accumulation_does_not_change_the_losses(token_folder, tmp_path, finished_run):
    training_run.run(settings(token_folder, tmp_path, train__micro_batch_size=1))
    assert_same_losses(tmp_path / "tiny", finished_run)


def test_a_micro_batch_that_does_not_divide_is_lowered_with_a_line(token_folder, tmp_path, finished_run, caplog):
    caplog.set_level("INFO")
    training_run.run(settings(token_folder, tmp_path, train__micro_batch_size=7))
    assert "train.micro_batch_size is 4, not 7: the largest up to it that divides the 8 sequences" in caplog.text
    assert tensors(tmp_path / "tiny") == tensors(finished_run)  # whose micro batch is 4


def test_overfitting_one_batch_drives_the_loss_to_zero(token_folder, tmp_path):
    changes = {"train__overfit_batch": True, "train__max_steps": 60, "checkpoint__every": 0, "train__sample_every": 0}
    changes |= {"train__total_batch_size": 64, "train__eval_every": 0}
    config = settings(token_folder, tmp_path, model__n_embd=64, optimizer__min_lr=1e-2, **changes)
    training_run.run(config)
    assert learned(tmp_path / "tiny")[60]["train/loss"] < 0.05


def test_sinks_are_closed_if_another_one_cannot_be_opened(token_folder, tmp_path, monkeypatch, caplog):
    """The bar of the console too: it would stay below the message of the error."""
    caplog.set_level(logging.INFO)
    closed = []

    class Sink:
        def __init__(self, *_):
            pass

        def close(self):
            closed.append(True)

    def refuse(*_):
        raise OSError("refused")

    config = settings(token_folder, tmp_path)
    directory = RunDirectory(config.run, DistContext(0, 1, torch.device("cpu")))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(build, "JsonLines", Sink)
    monkeypatch.setattr(build, "Trackers", refuse)
    with (
        pytest.raises(OSError, match="refused"),
        build.open_sinks(config, directory, None, ()),
    ):
        pass
    assert closed == [True]
    assert not progress._display._phases
