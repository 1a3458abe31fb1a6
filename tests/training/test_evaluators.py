"""HellaSwag while a run trains."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import hellaswag
from gpt2lab.training import run as training_run
from tests.runs import REPOSITORY, assert_same_losses, records, settings, tensors


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """A mirror whose HellaSwag has as many items as the real one, all of them short."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "hellaswag").mkdir()
    with open(folder / "hellaswag" / "hellaswag_val.jsonl", "w") as file:
        for n in range(10_042):
            endings = [f"ends {n % m} times." for m in (7, 11, 13, 17)]
            item = {"activity_label": "Ends", "ctx": f"Item {n}. it", "endings": endings, "label": n % 4}
            file.write(json.dumps(item) + "\n")
    return folder


def with_hellaswag(token_folder: Path, out_dir: Path, mirror: Path, **changes) -> Config:
    changes = {"train__hellaswag_limit": 12, "data__mirror": str(mirror), "model__vocab_size": 50257} | changes
    return settings(token_folder, out_dir, train__sample_every=0, **changes)


@pytest.mark.usefixtures("complete_runs")
def test_hellaswag_does_not_change_the_weights(token_folder, tmp_path, mirror, monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    short = {"model__block_size": 8}  # so that texts are truncated
    training_run.run(with_hellaswag(token_folder, tmp_path / "with", mirror, train__hellaswag_every=2, **short))
    shown, printed = caplog.text, capsys.readouterr().out
    caplog.clear()
    training_run.run(with_hellaswag(token_folder, tmp_path / "without", mirror, **short))
    assert tensors(tmp_path / "with" / "tiny") == tensors(tmp_path / "without" / "tiny")
    lines = {line["step"]: line for line in records(tmp_path / "with" / "tiny")}
    assert [step for step, line in lines.items() if "hellaswag/acc_norm" in line] == [0, 2, 4, 6]
    for step in (0, 6):
        assert 0 <= lines[step]["hellaswag/harness_acc_norm"] <= 1
        assert 0 < lines[step]["perf/hellaswag_seconds"] < lines[step]["perf/eval_seconds"]
        assert lines[step]["val/bits_per_byte"] > 0
    assert "mirror schema, 10,042 items" in shown
    assert len(re.findall(r"HellaSwag.*%", shown + printed)) == 4  # one line for each measurement
    assert shown.count("truncated") == 1
    assert "HellaSwag accuracy" not in shown
    assert (tmp_path / "with" / "tiny" / "hellaswag_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_processes_train_like_one_and_measure_the_same(token_folder, tmp_path, mirror):
    config = with_hellaswag(token_folder, tmp_path, mirror, train__hellaswag_every=6)
    path = tmp_path / "two.yaml"
    path.write_text(config.to_yaml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GPT2LAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*torchrun, "--config", str(path)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    both = records(tmp_path / "tiny")[0]
    training_run.run(with_hellaswag(token_folder, tmp_path / "one", mirror, train__hellaswag_every=6))
    assert_same_losses(tmp_path / "tiny", tmp_path / "one" / "tiny")
    alone = records(tmp_path / "one" / "tiny")[0]
    assert both["hellaswag/acc_norm"] == alone["hellaswag/acc_norm"]
    assert both["hellaswag/harness_acc_norm"] == alone["hellaswag/harness_acc_norm"]
    # One rank speaks.
    assert len(re.findall(r"HellaSwag.*%", done.stdout)) == 2
    assert done.stdout.count("step 1/6  loss") == 1


def test_training_goes_on_without_hellaswag_that_is_out_of_reach(token_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    training_run.run(with_hellaswag(token_folder, tmp_path / "runs", tmp_path, train__hellaswag_every=2))
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "without HellaSwag" in warning
    lines = records(tmp_path / "runs" / "tiny")
    assert "val/loss" in lines[-1]
    assert not [key for line in lines for key in line if "hellaswag" in key]
    with pytest.raises(GPT2LabError, match=r"hellaswag_val\.jsonl.*--mirror"):  # what the evaluate command does
        hellaswag.find(tmp_path)


def test_hellaswag_needs_gpt2s_vocabulary(token_folder, tmp_path, mirror, monkeypatch):
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(GPT2LabError, match=r"train\.hellaswag_every needs GPT-2's vocabulary"):
        training_run.run(
            with_hellaswag(token_folder, tmp_path / "runs", mirror, train__hellaswag_every=2, model__vocab_size=300)
        )
    assert not (tmp_path / "runs").exists()
