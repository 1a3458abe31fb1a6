"""Trackers have each step of metrics.jsonl once, also after interruptions; a tracker that fails does not stop a run."""

import json
import math
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2lab.config import Config, TrackingConfig
from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.tracking import trackers
from gpt2lab.tracking.metrics import JsonLines
from gpt2lab.training import run as training_run
from gpt2lab.training.trainer import Trainer
from tests.runs import REPOSITORY, STEPS, command, interrupted_at, learned, records, settings, tensors

Shown = list[tuple[str, int, float]]  # (metric, step, value) of a tracker


@pytest.fixture(autouse=True)
def _order_of_event_files(monkeypatch):
    """TensorBoard reads files in the order of their names, whose last number counts the files of a process."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))  # 9 is after 10


def recorded(run: Path) -> Shown:
    """The content of metrics.jsonl; each step once."""
    assert len(learned(run)) == len(records(run))
    return sorted((key, line["step"], line[key]) for line in records(run) for key in line if key != "step")


def in_tensorboard(run: Path) -> tuple[Shown, dict[tuple[str, int], str]]:
    """(scalars, texts) as TensorBoard reads them."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = [(tag, one.step, one.value) for tag in events.Tags()["scalars"] for one in events.Scalars(tag)]
    texts = {
        (tag.removesuffix("/text_summary"), one.step): one.tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        for one in events.Tensors(tag)
    }
    return sorted(scalars), texts


def in_wandb(run: Path) -> Shown:
    """What `wandb sync` would send: the only offline run, in LevelDB's log format after 7 bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    data, at, record_bytes, shown = path.read_bytes(), 7, b"", []
    while at < len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        length, block_type = struct.unpack_from("<HB", data, at + 4)
        record_bytes = (b"" if block_type in (1, 2) else record_bytes) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if block_type in (1, 4) and (record := Record.FromString(record_bytes)).HasField("history"):
            items = {item.nested_key[0]: item.value_json for item in record.history.item}
            shown += [(key, record.history.step.num, json.loads(items[key])) for key in items if "/" in key]
    return sorted(shown)


def in_trackio(folder: Path) -> Shown:
    """The content of its database."""
    rows = sqlite3.connect(folder / "gpt2lab.db").execute("select step, metrics from metrics").fetchall()
    items = [(key, step, value) for step, text in rows for key, value in json.loads(text).items()]
    return sorted((key, step, value) for key, step, value in items if "/" in key)


def assert_equal(shown: Shown, expected: Shown) -> None:
    """The same metrics at the same steps, to the precision of the event files (fp32)."""
    assert [point[:2] for point in shown] == [point[:2] for point in expected]
    assert [point[2] for point in shown] == pytest.approx([point[2] for point in expected], rel=1e-6)


@pytest.fixture(scope="module")
def straight(token_folder, tmp_path_factory) -> Path:
    """An uninterrupted run without trackers."""
    out = tmp_path_factory.mktemp("straight")
    training_run.run(settings(token_folder, out))
    return out / "tiny"


@pytest.mark.parametrize("kill_at", [1, 4, STEPS])
def test_tensorboard_has_every_step_once(token_folder, tmp_path, straight, monkeypatch, kill_at):
    """Killed before the first checkpoint, one step after a checkpoint, and at the end. The weights do not change."""
    config = settings(token_folder, tmp_path, tracking__tensorboard=True)
    with interrupted_at(kill_at, monkeypatch):
        training_run.run(config)
    training_run.run(config)
    run = tmp_path / "tiny"
    scalars, texts = in_tensorboard(run)
    assert_equal(scalars, recorded(run))
    for sample in records(run, "samples.jsonl"):
        assert "    " + sample["text"].replace("\n", "\n    ") in texts["samples", sample["step"]]
    assert "n_embd: 16" in texts["config.yaml", 0]
    assert '"torch"' in texts["environment.json", 0]
    assert tensors(run) == tensors(straight)
    assert learned(run) == learned(straight)


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_signal_and_then_a_kill_leave_every_step_once(token_folder, tmp_path, straight, monkeypatch, stop_at):
    """The step at which a signal stopped the run is recorded by the next start, which is killed before it can save."""
    config = settings(
        token_folder, tmp_path, tracking__tensorboard=True, checkpoint__every=STEPS, train__sample_every=1
    )
    train_step = Trainer._train_step

    def stopped(self, step, batches):
        if step == stop_at:
            self.signals.received = signal.SIGTERM
        return train_step(self, step, batches)

    with monkeypatch.context() as patch, pytest.raises(RunStoppedError):
        patch.setattr(Trainer, "_train_step", stopped)
        training_run.run(config)
    with interrupted_at(stop_at + 2, monkeypatch):
        training_run.run(config)
    training_run.run(config)
    run = tmp_path / "tiny"
    assert learned(run).keys() == learned(straight).keys()
    assert all(
        learned(run)[step]["train/loss"] == learned(straight)[step]["train/loss"] for step in range(1, STEPS + 1)
    )
    drawn = [(sample["step"], sample["seed"]) for sample in records(run, "samples.jsonl")]
    assert len(drawn) == len(set(drawn))
    assert {step for step, _ in drawn} == set(range(STEPS + 1))
    scalars, _ = in_tensorboard(run)
    assert_equal(scalars, recorded(run))


def test_earlier_steps_are_added_to_a_new_tracker(token_folder, tmp_path, straight):
    """A tracker that is turned on when a run is resumed, and a run that branches off another run."""
    training_run.run(settings(token_folder, tmp_path, train__max_steps=4))
    training_run.run(settings(token_folder, tmp_path, tracking__tensorboard=True))
    branch = {"run__resume": str(straight / "checkpoints" / "step_00000002"), "run__name": "branch"}
    training_run.run(settings(token_folder, tmp_path, tracking__tensorboard=True, **branch))
    for name in ("tiny", "branch"):
        scalars, texts = in_tensorboard(tmp_path / name)
        assert_equal(scalars, recorded(tmp_path / name))
        drawn = {sample["step"] for sample in records(tmp_path / name, "samples.jsonl")}
        assert {step for tag, step in texts if tag == "samples"} == drawn


def test_values_that_are_not_finite_are_recorded(tmp_path):
    config = Config.model_validate({"run": {"name": "tiny"}, "tracking": {"tensorboard": True}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": null}\n')
    sink = trackers.Trackers(config.tracking, tmp_path, 1)
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    for step, loss in ((2, math.inf), (3, 3.0)):
        for each in (metrics, sink):
            each.log(step, {"train/loss": loss})
    sink.close()
    scalars, _ = in_tensorboard(tmp_path)
    assert [point[:2] for point in scalars] == [("train/loss", step) for step in (1, 2, 3)]


@pytest.mark.slow
def test_after_a_kill_and_a_resume_all_trackers_have_every_step_once(token_folder, tmp_path):
    changes: dict[str, Any] = {
        "train__max_steps": 120,
        "checkpoint__every": 16,
        "train__sample_every": 10,
        "train__eval_every": 20,
    }
    changes |= {"tracking__tensorboard": True, "tracking__wandb": "offline", "tracking__trackio": True}
    words = command(settings(token_folder, tmp_path, **changes), tmp_path / "run.yaml")
    run, environment = tmp_path / "tiny", os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    while not ((run / "checkpoints" / "step_00000016").exists() and records(run)[-1]["step"] > 20):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(words, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert sorted(learned(run)) == list(range(121))
    assert_equal(in_tensorboard(run)[0], recorded(run))
    assert_equal(in_wandb(run), recorded(run))
    assert [point[:2] for point in in_trackio(tmp_path / "trackio")] == [point[:2] for point in recorded(run)]


@pytest.mark.parametrize("where", ["__init__", "log", "close"])
def test_a_tracker_that_fails_is_removed_with_one_warning(token_folder, tmp_path, straight, monkeypatch, caplog, where):
    def broken(self, *_):
        raise ConnectionError("no route to the tracker\nand more of it")

    monkeypatch.setattr(trackers._TensorBoard, where, broken)
    training_run.run(settings(token_folder, tmp_path, tracking__tensorboard=True))
    (warning,) = [record.message for record in caplog.records if "tracking.tensorboard" in record.message]
    assert "no route to the tracker" in warning
    assert "\n" not in warning
    assert tensors(tmp_path / "tiny") == tensors(straight)
    assert learned(tmp_path / "tiny") == learned(straight)


@pytest.mark.slow
def test_without_a_login_the_run_continues(token_folder, tmp_path):
    config = settings(token_folder, tmp_path, train__sample_every=0, tracking__wandb="online")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        command(config, tmp_path / "run.yaml"),
        cwd=REPOSITORY,
        env=environment | {"HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: tracking.wandb") == 1
    assert sorted(learned(tmp_path / "tiny")) == list(range(STEPS + 1))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_an_error_before_a_new_run(token_folder, tmp_path, monkeypatch, name):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    asked = {f"tracking__{name}": "offline" if name == "wandb" else True}
    with pytest.raises(GPT2LabError, match=rf"tracking\.{name}.*\[track\]"):
        training_run.run(settings(token_folder, tmp_path / "runs", **asked))
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_does_not_stop_a_resumed_run(token_folder, tmp_path, monkeypatch, caplog):
    training_run.run(settings(token_folder, tmp_path, train__max_steps=4))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    training_run.run(settings(token_folder, tmp_path, tracking__tensorboard=True))
    assert "tracking.tensorboard" in caplog.text
    assert sorted(learned(tmp_path / "tiny")) == list(range(STEPS + 1))


def test_a_folder_with_the_name_of_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(GPT2LabError, match=r"tracking\.wandb"):
        trackers.check_installed(TrackingConfig(wandb="online"))
