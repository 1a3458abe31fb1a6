"""Disk space is checked before the first step."""

import logging
import shutil

import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.model import resolve
from gpt2lab.training import checkpoint
from gpt2lab.training import run as training_run
from gpt2lab.training.disk_space import plan_checkpoints
from tests.runs import settings


@pytest.mark.parametrize(
    "keep",
    [
        {"checkpoint__every": 1, "checkpoint__keep_last": 1, "checkpoint__keep_best": False},
        {"checkpoint__every": 1, "checkpoint__keep_last": 2, "checkpoint__keep_best": True},
        {"checkpoint__every": 2, "checkpoint__keep_last": 1, "checkpoint__keep_every": 4},
        {"checkpoint__every": 0},
        {"checkpoint__every": 4, "checkpoint__keep_last": 5},  # more than are written
    ],
)
def test_a_run_never_has_more_checkpoints_than_planned(token_folder, tmp_path, monkeypatch, keep):
    config = settings(token_folder, tmp_path, train__max_steps=10, train__eval_every=1, train__sample_every=0, **keep)
    plan, counts, prune = plan_checkpoints(config), [], checkpoint.prune

    def counting(folder, *arguments):
        counts.append(len(resolve.list_checkpoints(folder)))
        prune(folder, *arguments)

    monkeypatch.setattr(checkpoint, "prune", counting)
    training_run.run(config)
    checkpoints = resolve.list_checkpoints(tmp_path / "tiny" / "checkpoints")
    assert max(counts) <= plan.most
    assert plan.most - 1 <= max(counts) or "checkpoint__keep_every" in keep
    assert len(checkpoints) <= plan.kept
    for _, path in checkpoints:
        size = sum(file.stat().st_size for file in path.iterdir())
        assert size <= plan.each < size + 50_000


def test_too_many_steps_for_the_disk_are_named(token_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(GPT2LabError, match=r"records of 1,000,000,000 steps .*lower train\.max_steps$"):
        training_run.run(settings(token_folder, tmp_path, train__max_steps=10**9))


@pytest.mark.parametrize(
    ("fits", "changes", "advice"),
    [
        (2, {}, "another disk, or set checkpoint.keep_last 1 and checkpoint.keep_best false"),
        (2, {"checkpoint__keep_last": 1, "checkpoint__keep_every": 3}, "set checkpoint.keep_best false and .*every 0"),
        (1, {"checkpoint__keep_last": 1, "checkpoint__keep_best": False}, "space, or move .* another disk"),
        (1, {}, "space, or move .* another disk"),  # with the fewest, there are two while the second is written
        (0, {"checkpoint__every": 0}, "space, or move .* another disk"),
    ],
)
def test_only_settings_with_which_a_run_fits_are_advised(token_folder, tmp_path, monkeypatch, fits, changes, advice):
    changes = {"checkpoint__every": 1, "checkpoint__keep_last": 3} | changes
    config = settings(token_folder, tmp_path, train__max_steps=12, **changes)
    usage = shutil.disk_usage(tmp_path)._replace(free=fits * plan_checkpoints(config).each + 5_100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(GPT2LabError, match=rf"more checkpoint.* free; .*{advice}$"):
        training_run.run(config)


def test_a_disk_too_small_is_refused_before_the_first_step(token_folder, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    config = settings(token_folder, tmp_path, train__max_steps=12, checkpoint__every=2, checkpoint__keep_last=3)
    plan = plan_checkpoints(config)
    assert (plan.kept, plan.most) == (4, 5)  # one is the best
    usage, reserve = shutil.disk_usage(tmp_path), 5_100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4 * plan.each + reserve))
    with pytest.raises(GPT2LabError, match=r"5 more checkpoints .* free; .*checkpoint\.keep_last"):
        training_run.run(config)
    assert not (tmp_path / "tiny" / "metrics.jsonl").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * plan.each + reserve))
    training_run.run(config)
    assert "at most 4 kept, and one being written" in caplog.text
    # The checkpoints that are there take no new space.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * plan.each + reserve))
    training_run.run(settings(token_folder, tmp_path, train__max_steps=14, checkpoint__keep_last=3))


def test_an_unfinished_checkpoint_is_deleted_before_the_space_is_counted(token_folder, tmp_path, monkeypatch):
    """A process that is killed while it writes leaves it."""
    config = settings(token_folder, tmp_path, train__max_steps=2, train__eval_every=0, train__sample_every=0)
    unfinished = tmp_path / "tiny" / "checkpoints" / ".tmp-step_00000002"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(bytes(100))
    usage, enough = shutil.disk_usage(tmp_path), plan_checkpoints(config).each + 5_100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if unfinished.exists() else enough))
    training_run.run(config)
    assert not unfinished.exists()
