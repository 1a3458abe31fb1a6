"""Checkpoints: exact, complete, checked, and kept by rule."""

import json
import random
import threading

import numpy as np
import pytest
import torch

from gpt2lab.config import CheckpointConfig, GuardConfig, RunConfig
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.resolve import list_checkpoints, newest_valid
from gpt2lab.system.distributed import DistContext
from gpt2lab.training import checkpoint
from gpt2lab.training import optimizer as optimizers
from gpt2lab.training.async_checkpointer import AsyncCheckpointer
from gpt2lab.training.guard import Guard
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.state import TrainState
from tests.training.test_optimizer import TINY, stepped


@pytest.fixture
def folder(tmp_path):
    model, adamw = stepped()
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, taken(step, model, adamw))
    return tmp_path


def state_of(model, optimizer) -> TrainState:
    return TrainState(model, [optimizer], Guard(GuardConfig()), torch.amp.GradScaler("cpu", enabled=False))


def taken(step, model, adamw, **state) -> checkpoint.Snapshot:
    details = {"fingerprint": {"data": "d", "settings": {}}} | state
    snapshot = checkpoint.copy_state(step, state_of(model, adamw), details, buffers={})
    assert snapshot is not None
    return snapshot


def test_a_checkpoint_round_trip_is_exact(tmp_path):
    model, adamw = stepped()
    random.seed(5)
    path = checkpoint.write(tmp_path, taken(3, model, adamw))
    expected_random = torch.rand(4)
    expected_others = random.random(), np.random.rand()
    other, fresh = stepped(steps=1)
    found = checkpoint.read(path)
    found.restore_weights(other)
    found.restore_optimizer(other, [fresh])
    assert (random.random(), np.random.rand()) == expected_others
    assert torch.equal(torch.rand(4), expected_random)  # the random generator goes on from where it was saved
    assert found.step == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    ours, theirs = optimizers.state_tensors(model, [adamw]), optimizers.state_tensors(other, [fresh])
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_files_of_a_checkpoint(folder):
    path = folder / "step_00000003"
    names = {file.name for file in path.iterdir()}
    assert names == {"config.json", "model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"}
    assert json.loads((path / "state.json").read_text())["step"] == 3


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_read(folder, caplog):
    weights = folder / "step_00000003" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (folder / "step_00000002" / "state.json").unlink()
    found = newest_valid(folder, checkpoint.read)
    assert found is not None
    assert found.step == 1
    warnings = [record.getMessage() for record in caplog.records]
    assert "step_00000003/model.safetensors" in warnings[0]
    assert "step_00000002/state.json" in warnings[1]


def test_only_damaged_checkpoints_are_an_error_and_no_checkpoints_are_not(folder, tmp_path):
    assert newest_valid(tmp_path / "empty", checkpoint.read) is None
    for path in folder.glob("step_*"):
        (path / "config.json").write_text("{}")
    with pytest.raises(GPT2LabError, match="no checkpoint is intact"):
        newest_valid(folder, checkpoint.read)


def test_pruning_keeps_the_newest_and_multiples_of_keep_every(tmp_path):
    for step in range(1, 11):
        (tmp_path / f"step_{step:08d}").mkdir()
    checkpoint.prune(tmp_path, keep_last=2, keep_every=4)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [4, 8, 9, 10]


def test_too_little_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    model, adamw = stepped()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(GPT2LabError, match=r"for a checkpoint needed, .* free; free space, or move"):
        checkpoint.write(tmp_path, taken(3, model, adamw))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_architecture_are_refused(folder):
    other = GPT2(TINY.model_copy(update={"n_embd": 32}))
    with pytest.raises(GPT2LabError, match="step_00000003"):
        checkpoint.read(folder / "step_00000003").restore_weights(other)


def test_pruning_keeps_the_intact_checkpoint_with_the_lowest_validation_loss(tmp_path):
    model, adamw = stepped()
    for step, loss in enumerate([3.0, 2.0, 1.0, 4.0, None, 5.0], start=1):
        checkpoint.write(tmp_path, taken(step, model, adamw, val_loss=loss))
    (tmp_path / "step_00000003" / "state.json").write_text("{")
    checkpoint.prune(tmp_path, keep_last=1, keep_every=0, keep_best=True)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 6]
    checkpoint.prune(tmp_path, keep_last=1, keep_every=0)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [6]


def checkpointer_for(model, optimizer, folder) -> AsyncCheckpointer:
    dist = DistContext(0, 1, torch.device("cpu"))
    directory = RunDirectory(RunConfig(name="tiny", out_dir=str(folder)), dist)
    directory.checkpoints.mkdir(parents=True)
    directory.metrics.touch()
    return AsyncCheckpointer(CheckpointConfig(), directory, state_of(model, optimizer), {"data": "d", "settings": {}})


def test_a_checkpoint_holds_the_weights_of_its_step_while_training_goes_on(tmp_path, monkeypatch):
    model, adamw = stepped()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    go, write = threading.Event(), checkpoint.write

    def delayed(folder, snapshot):
        go.wait()
        return write(folder, snapshot)

    monkeypatch.setattr(checkpoint, "write", delayed)
    with checkpointer_for(model, adamw, tmp_path) as checkpointer:
        checkpointer.save(1, {})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)  # training goes on
        go.set()
        checkpointer.wait()
    other, _ = stepped()
    checkpoint.read(tmp_path / "tiny" / "checkpoints" / "step_00000001").restore_weights(other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_failed_write_is_raised_once(tmp_path, monkeypatch):
    def fail(folder, snapshot):
        raise GPT2LabError("disk full")

    monkeypatch.setattr(checkpoint, "write", fail)
    model, adamw = stepped()
    with checkpointer_for(model, adamw, tmp_path) as checkpointer:
        checkpointer.save(1, {})
        with pytest.raises(GPT2LabError, match="disk full"):
            checkpointer.wait()
        assert not checkpointer.failed
        checkpointer.save(2, {})
    assert checkpointer.failed
