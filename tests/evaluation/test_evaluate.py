"""The `evaluate` command: its output, any number of ranks, and its errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2lab import cli, files
from gpt2lab.config import load
from tests.evaluation.conftest import make_model, official_items, write_jsonl

REPOSITORY = Path(__file__).parent.parent.parent
ITEMS = 24


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """runs/x with one checkpoint, data/ with shards, and a HellaSwag of 24 items."""
    workspace = tmp_path_factory.mktemp("workspace")
    write_jsonl(workspace / "hellaswag.jsonl", official_items(ITEMS))
    (workspace / "data").mkdir()
    rng = np.random.default_rng(0)
    for name in ("val_000", "train_000"):
        np.save(workspace / "data" / f"{name}.npy", rng.integers(0, 5000, 1000).astype(np.uint16))
    folder = workspace / "runs" / "x" / "checkpoints" / "step_00000007"
    make_model().save_pretrained(folder)
    (folder / "state.json").write_text('{"step": 7}')
    files.write_digests(folder)
    settings = load([], {"data.dir": str(workspace / "data"), "train.eval_tokens": 640, "run.name": "x"})
    (workspace / "runs" / "x" / "config.yaml").write_text(settings.to_yaml())
    return workspace


def arguments(workspace: Path, *more: str) -> list[str]:
    run, file = workspace / "runs" / "x", workspace / "hellaswag.jsonl"
    return [
        "--model-checkpoint",
        str(run),
        "--hellaswag-file",
        str(file),
        "--device",
        "cpu",
        "--precision",
        "fp32",
        *more,
    ]


def evaluate(workspace: Path, capsys, *more: str) -> dict:
    assert cli.main(["evaluate", *arguments(workspace, "--json", *more)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_gives_a_table_and_a_file_in_its_directory(workspace, capsys):
    assert cli.main(["evaluate", *arguments(workspace)]) == 0
    shown = capsys.readouterr().out
    for part in ("24 items", "completion", "GPT-2 124M", "validation loss"):
        assert part in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("HellaSwag accuracy: ")]
    assert f"/{ITEMS}=0." in line
    kept = json.loads((workspace / "runs" / "x" / "evaluations" / "step_00000007.json").read_text())
    assert kept["tasks"]["hellaswag"]["completion"]["total"] == ITEMS


def test_json_is_one_object(workspace, capsys):
    result = evaluate(workspace, capsys, "--tasks", "hellaswag,everyday")
    assert result["checkpoint"].endswith("step_00000007")
    for style in ("completion", "harness"):
        figures = result["tasks"]["hellaswag"][style]
        assert {"acc", "acc_norm", "correct", "correct_norm", "interval95", "predictions_norm"} <= figures.keys()
        assert len(figures["predictions"]) == figures["total"] == ITEMS
    assert result["tasks"]["everyday"]["total"] == 32
    assert result["val_loss"] > 0
    assert result["bits_per_byte"] > 0
    assert result["val_tokens"] == 640


def test_tasks_of_one_step_are_merged_into_one_file(workspace, capsys):
    evaluate(workspace, capsys)
    evaluate(workspace, capsys, "--tasks", "everyday")
    kept = json.loads((workspace / "runs" / "x" / "evaluations" / "step_00000007.json").read_text())
    assert kept["tasks"].keys() >= {"hellaswag", "everyday"}


def test_a_limit_is_a_fixed_subset(workspace, capsys):
    full = evaluate(workspace, capsys)["tasks"]["hellaswag"]["completion"]
    part = evaluate(workspace, capsys, "--limit", "10")["tasks"]["hellaswag"]["completion"]
    assert part["total"] == 10
    assert part == evaluate(workspace, capsys, "--limit", "10")["tasks"]["hellaswag"]["completion"]
    assert set(part["predictions"]) <= set(full["predictions"])
    assert (workspace / "runs" / "x" / "evaluations" / "step_00000007_limit_10.json").exists()


def test_the_validation_loss_does_not_depend_on_the_batch(workspace, capsys):
    losses = [
        evaluate(workspace, capsys, "--tasks", "everyday", "--batch-tokens", n)["val_loss"] for n in ("64", "4096")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert evaluate(workspace, capsys, "--tasks", "everyday", "--val-tokens", "0")["val_loss"] is None


def test_a_model_outside_a_run_has_no_validation_loss(workspace, capsys, tmp_path):
    make_model().save_pretrained(tmp_path / "m")
    assert cli.main(["evaluate", "--model-checkpoint", str(tmp_path / "m"), "--tasks", "everyday", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val_loss"] is None
    more = ["--data-dir", str(workspace / "data"), "--val-tokens", "128"]
    assert (
        cli.main(["evaluate", "--model-checkpoint", str(tmp_path / "m"), "--tasks", "everyday", "--json", *more]) == 0
    )
    assert json.loads(capsys.readouterr().out)["val_tokens"] == 128


def test_tasks_that_cannot_be_fetched_are_named_and_the_others_are_scored(workspace, capsys, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path))
    command = ["evaluate", "--model-checkpoint", str(workspace / "runs" / "x"), "--device", "cpu", "--json"]
    assert cli.main([*command, "--tasks", "hellaswag,everyday,piqa"]) == 2
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["tasks"].keys(), result["not_scored"].keys()) == ({"everyday"}, {"hellaswag", "piqa"})
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert all("is not scored: " in line and "no network" in line for line in warnings)
    assert err.splitlines()[-1] == "gpt2lab: not scored: hellaswag, piqa (see the reason above)"
    assert cli.main([*command, "--tasks", "hellaswag,piqa"]) == 2  # nothing to score
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert cli.main([*command, "--tasks", "everyday,hellaswag", "--hellaswag-file", "nowhere"]) == 2  # a mistake
    assert capsys.readouterr().out == ""


def test_the_script(workspace):
    command = [sys.executable, "evaluate.py", *arguments(workspace, "--json", "--limit", "4", "--val-tokens", "0")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["tasks"]["hellaswag"]["harness"]["total"] == 4


@pytest.mark.slow
def test_the_number_of_ranks_does_not_change_the_result(workspace, capsys):
    alone = evaluate(workspace, capsys, "--tasks", "hellaswag,everyday", "--batch-tokens", "512")
    for ranks in (2, 3):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [
            *torchrun,
            "evaluate.py",
            *arguments(workspace, "--json", "--tasks", "hellaswag,everyday", "--batch-tokens", "512"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        together = json.loads(done.stdout)
        assert together["tasks"] == alone["tasks"]
        assert together["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-5)


def error_of(capsys, *words: str) -> str:
    assert cli.main(["evaluate", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_errors_name_the_option_or_the_file(workspace, capsys, tmp_path, monkeypatch):
    from gpt2lab.evaluation import hellaswag

    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    run = str(workspace / "runs" / "x")
    assert "--model-checkpoint" in error_of(capsys)
    assert "piqa?" in error_of(capsys, "--model-checkpoint", run, "--tasks", "piqua")
    assert "nowhere" in error_of(capsys, "--model-checkpoint", str(tmp_path / "nowhere"))
    assert "--mirror" in error_of(capsys, "--model-checkpoint", run)
    for limit in ("-3", "0"):
        assert "--limit" in error_of(capsys, "--model-checkpoint", run, "--limit", limit)
    (tmp_path / "bad.jsonl").write_text("{")
    assert "bad.jsonl: line 1" in error_of(
        capsys, "--model-checkpoint", run, "--hellaswag-file", str(tmp_path / "bad.jsonl")
    )
    assert "config.json" in error_of(capsys, "--model-checkpoint", str(tmp_path), "--tasks", "everyday")
    nowhere = ["--tasks", "everyday", "--data-dir", str(workspace / "dat")]  # not the validation loss of other data
    assert f"did you mean {workspace / 'data'}?" in error_of(capsys, "--model-checkpoint", run, *nowhere)
    file = ["--tasks", "everyday", "--data-dir", str(tmp_path / "bad.jsonl")]
    assert "bad.jsonl is a file, not a folder\n" in error_of(capsys, "--model-checkpoint", run, *file)


def test_a_data_dir_without_shards_and_task_files_is_refused_rather_than_ignored(workspace, capsys, tmp_path):
    words = ["--model-checkpoint", str(workspace / "runs" / "x"), "--tasks", "everyday", "--limit", "2", "--data-dir"]
    error = error_of(capsys, *words, str(workspace))
    assert (
        f"--data-dir {workspace} holds no shards and no task files; there are some in {workspace / 'data'}\n" in error
    )
    assert error_of(capsys, *words, str(workspace / "runs")).endswith("runs holds no shards and no task files\n")
    (tmp_path / ".preparing").touch()
    assert "is incomplete" in error_of(capsys, *words, str(tmp_path))
    write_jsonl(tmp_path / "tasks" / "eval" / "piqa.jsonl", [{}])  # of a task that is not asked for
    assert cli.main(["evaluate", *words, str(tmp_path / "tasks"), "--val-tokens", "0"]) == 0


def test_too_few_tokens_for_the_validation_loss_are_refused_before_the_tasks_are_scored(workspace, capsys, monkeypatch):
    monkeypatch.setattr("gpt2lab.evaluation.scoring.score", None)
    run = str(workspace / "runs" / "x")
    error = error_of(capsys, "--model-checkpoint", run, "--tasks", "everyday", "--val-tokens", "1")
    assert "--val-tokens 1 is less than one sequence; set at least 64" in error


def test_weights_that_do_not_fit_the_config_are_an_error(capsys, tmp_path):
    make_model().save_pretrained(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"n_embd": 16', '"n_embd": 32'))
    assert "shape" in error_of(capsys, "--model-checkpoint", str(tmp_path / "m"), "--tasks", "everyday")


@pytest.fixture
def run_copy(workspace, tmp_path) -> Path:
    """A copy of the run."""
    shutil.copytree(workspace / "runs" / "x", tmp_path / "x", ignore=shutil.ignore_patterns("evaluations"))
    return tmp_path / "x"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_result_that_cannot_be_written_is_printed_and_is_one_error(run_copy, capsys, monkeypatch, as_json):
    evaluations = run_copy / "evaluations"
    words = ["evaluate", "--model-checkpoint", str(run_copy), "--tasks", "everyday", "--val-tokens", "0"]

    def fails_with(reason: str) -> None:
        assert cli.main([*words, *["--json"] * as_json]) == 2
        out, error = capsys.readouterr()
        assert json.loads(out)["tasks"]["everyday"]["total"] == 32 if as_json else "everyday" in out
        assert error.count("step_00000007.json") == 1
        line = error.splitlines()[-1]
        assert line.startswith("gpt2lab: ")
        elsewhere = "keep what was printed" if as_json else "save what gpt2lab evaluate --json prints"
        assert re.search(f"{reason}.* or {elsewhere}$", line), line

    evaluations.write_text("a file instead of the folder")
    fails_with(f"remove the file {evaluations}, which is in place of a folder")
    evaluations.unlink()
    evaluations.mkdir()
    (evaluations / "step_00000007.json").write_text("[]")
    fails_with("the result is not in .*step_00000007.json, which is damaged; remove it")
    (evaluations / "step_00000007.json").unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "publish", full)
    fails_with("cannot write .*step_00000007.json: No space left on device; free space")
    assert list(evaluations.iterdir()) == []


def test_a_damaged_config_yaml_is_a_warning(run_copy, capsys, workspace):
    (run_copy / "config.yaml").write_text("garbage")
    words = ["evaluate", "--model-checkpoint", str(run_copy), "--tasks", "everyday", "--json"]
    assert cli.main(words) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["val_loss"] is None
    (warning,) = (line for line in error.splitlines() if line.startswith("warning: "))
    assert "config.yaml: expected sections such as 'train:', found text; the gpt2lab train command" in warning
    assert warning.endswith("until then there is no validation loss without --data-dir")
    assert cli.main([*words, "--data-dir", str(workspace / "data"), "--val-tokens", "128"]) == 0
    assert json.loads(capsys.readouterr().out)["val_tokens"] == 128
