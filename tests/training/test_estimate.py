"""The estimate of a run: before the first step, on the terminal, in environment.json, and without starting one."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2lab import cli
from gpt2lab.config import Config
from gpt2lab.planning import local
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.training import estimate
from gpt2lab.training import run as training_run
from tests.runs import settings

CPU = torch.device("cpu")


def arguments(config: Config) -> list[str]:
    """The settings of a run as options."""
    names = [*(f"model.{key}" for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"))]
    names += ["run.out_dir", "run.name", "data.dir", "train.total_batch_size", "system.device", "train.sample_prompt"]
    names += ["train.max_steps", "optimizer.max_lr", "optimizer.min_lr", "system.precision"]
    values = config.flat()
    return [word for name in names for word in (f"--{name}", str(values[name]))]


def dry_run(config: Config, *more: str) -> int:
    return cli.main(["train", "--dry-run", *arguments(config), *more])


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_dry_run_says_what_training_needs_and_writes_nothing(token_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    assert dry_run(settings(token_folder, tmp_path / "runs"), "--tracking.price_per_hour", "2") == 0
    printed = capsys.readouterr().out
    for word in ("this machine", "micro batch", "memory", "process", "tokens/s", "time", "$", "disk", "epochs"):
        assert word in printed
    assert not list_files(tmp_path)


def test_a_dry_run_does_not_prepare_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry-run"]) == 0
    assert "is not prepared" in capsys.readouterr().out
    assert not list_files(tmp_path)


def test_a_dry_run_does_not_change_a_run_and_says_what_is_left(finished_run, token_folder, capsys):
    unfinished = finished_run / "checkpoints" / ".tmp-step_00000099"
    unfinished.mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in list_files(finished_run)}
    config = settings(token_folder, finished_run.parent, train__max_steps=12)
    assert dry_run(config) == 0
    assert "after step 6" in capsys.readouterr().out
    assert dry_run(settings(token_folder, finished_run.parent)) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in list_files(finished_run)} == before
    unfinished.rmdir()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--train.total_batch_size", "100", "total_batch_size"),
        ("--data.dir", "missing", "missing"),
        ("--model.vocab_size", "7", "vocab_size"),
        ("--system.device", "cuda", "cuda"),
        ("--optimizer.max_lr", "no", "max_lr"),
        ("--run.resume", "missing", "run.resume"),
        ("--model.n_layer", "3", "n_layer"),
        ("--train.eval_tokens", "15", "train.eval_tokens 15 is less than one sequence"),
        ("--train.sample_prompt", "Hello this is", "train.sample_prompt"),
        ("--system.profile", "4-3", "system.profile"),
    ],
)
def test_a_dry_run_ends_with_the_error_that_training_has(finished_run, token_folder, capsys, option, value, message):
    assert dry_run(settings(token_folder, finished_run.parent, train__max_steps=12), option, value) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train.eval_tokens", "15"], "train.eval_tokens 15 is less than one sequence"),
        (["--train.sample_prompt", "Hello this is"], "train.sample_prompt"),
        (["--train.max_steps", "12", "--model.n_layer", "3"], "was trained with model.n_layer 2"),
    ],
)
def test_a_dry_run_makes_these_checks_before_there_is_data(finished_run, monkeypatch, tmp_path, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    words = arguments(settings(tmp_path, finished_run.parent))
    place = words.index("--data.dir")
    without_data = words[:place] + words[place + 2 :]
    assert cli.main(["train", "--dry-run", *without_data, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_looks_for_the_weights_that_training_starts_from(token_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = settings(token_folder, tmp_path)
    assert dry_run(config, "--train.init_from", "runs/nope") == 2
    assert capsys.readouterr().err.startswith("gpt2lab: train.init_from: runs/nope: no such folder")
    assert dry_run(config, "--train.init_from", "gpt2-medium") == 0
    assert "train.init_from gpt2-medium is not downloaded" in capsys.readouterr().out


def test_a_dry_run_has_the_warnings_of_training(token_folder, tmp_path, caplog):
    more = {"optimizer__warmup_steps": 500, "system__profile": "100-103", "train__eval_every": 0}
    config = settings(token_folder, tmp_path, train__max_steps=3, train__sample_every=0, **more)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "metrics.jsonl").write_text('{"step": 0}\n')
    warnings = []
    given = ["--optimizer.warmup_steps", "500", "--system.profile", "100-103"]
    for start in (lambda: dry_run(config, *given), lambda: training_run.run(config)):
        caplog.clear()
        start()
        warnings.append([line.getMessage() for line in caplog.records if line.levelname == "WARNING"])
    orphaned, warmup, profile = warnings[0]
    assert "no checkpoint: training starts again at step 0, and these records would be set aside" in orphaned
    assert "optimizer.warmup_steps 500 is beyond train.max_steps 3" in warmup
    assert "the steps 100 to 103, but this start trains 1 to 3: no trace is written" in profile
    assert len(warnings[1]) == 3
    assert {warmup, profile} < set(warnings[1])


def test_a_dry_run_for_several_processes_refuses_muon_on_a_sharded_model(token_folder, tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    config = settings(token_folder, tmp_path)
    assert dry_run(config, "--optimizer.name", "muon", "--system.shard") == 2
    assert "muon needs whole matrices" in capsys.readouterr().err
    assert dry_run(config, "--optimizer.name", "muon") == 0


def test_the_first_lines_of_a_run_have_the_estimate_and_its_folder_keeps_it(token_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    training_run.run(settings(token_folder, tmp_path, train__max_steps=1, train__sample_every=0, train__eval_every=0))
    (line,) = [message for message in caplog.messages if message.startswith("estimate: ")]
    assert len(line) <= 80
    kept = json.loads((tmp_path / "tiny" / "environment.json").read_text())["estimate"]
    rate = kept["tokens_per_second"]
    assert 0 < rate["low"] < rate["estimate"] < rate["high"]
    assert kept["hours"]["estimate"] > 0


def test_a_resumed_run_has_the_time_of_the_remaining_steps():
    config = Config()
    expected = estimate.make(config, CPU, "fp32", False, 1)
    assert expected is not None
    total, half = (
        expected.outlook.duration.total,
        estimate.remaining_hours(expected, config, config.train.max_steps // 2),
    )
    assert half.estimate == pytest.approx(total.estimate / 2, rel=1e-3)


def test_the_longest_line_has_80_columns():
    dist, precision = DistContext(0, 1, CPU), Precision("fp32", "cpu")
    model: Any = SimpleNamespace(dist=dist, precision=precision, micro_batch_size=1, compiled=False)
    for steps in (100, 19_073, 10**6):
        config = Config.model_validate({"train": {"max_steps": steps}})
        rate, line, facts = estimate.describe_run(config, model, 10**7, 0)
        assert rate is not None
        assert facts
        assert len(line) <= 80


def test_a_device_without_an_entry_has_no_estimate(monkeypatch):
    monkeypatch.setattr(local, "describe", lambda device: local.LocalDevice("Abacus", 0, None))
    assert estimate.make(Config(), CPU, "fp32", False, 1) is None
