"""Resuming: more steps, branches, damaged checkpoints, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2lab import cli, files
from gpt2lab.config import DataConfig, load_run
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import DirectoryLock
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.resolve import list_checkpoints
from gpt2lab.system.distributed import DistContext
from gpt2lab.training import run as training_run
from gpt2lab.training.run_directory import RunDirectory
from tests.runs import STEPS, interrupted_at, learned, records, settings, tensors


def run_again(finished_run: Path, tmp_path: Path, token_folder: Path, **changes) -> Path:
    """A copy of the finished run, started again with changed settings."""
    shutil.copytree(finished_run, tmp_path / "tiny")
    training_run.run(settings(token_folder, tmp_path, **changes))
    return tmp_path / "tiny"


def test_a_finished_run_is_not_changed_by_another_start(finished_run, tmp_path, token_folder, caplog):
    caplog.set_level(logging.INFO)
    before = (finished_run / "metrics.jsonl").read_bytes()
    run = run_again(finished_run, tmp_path, token_folder)
    assert "is finished" in caplog.text
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("max_steps", [STEPS, STEPS + 1])
def test_a_damaged_config_yaml_is_written_again(finished_run, tmp_path, token_folder, caplog, max_steps):
    shutil.copytree(finished_run, tmp_path / "tiny")
    (tmp_path / "tiny" / "config.yaml").write_text("garbage")
    with pytest.raises(GPT2LabError, match="the gpt2lab train command of this run writes the file again"):
        load_run(tmp_path / "tiny")
    config = settings(token_folder, tmp_path, train__max_steps=max_steps)
    training_run.run(config)
    assert load_run(tmp_path / "tiny") == config
    assert ("config.yaml was missing or damaged" in caplog.text) == (max_steps == STEPS)


def test_a_finished_run_continues_with_more_max_steps(finished_run, tmp_path, token_folder, caplog):
    caplog.set_level(logging.INFO)
    run = run_again(finished_run, tmp_path, token_folder, train__max_steps=8)
    before, after = learned(finished_run)[6]["train/lr"], learned(run)[7]["train/lr"]
    assert f"from 6 to 8, the learning rate of the next step from {before:.1e} to {after:.1e}" in caplog.text
    assert after > before
    (event,) = records(run, "events.jsonl")
    assert (event["event"], event["train.max_steps"][:19]) == ("resumed", "changed from 6 to 8")
    assert sorted(learned(run)) == list(range(9))


def test_a_run_whose_checkpoints_cannot_be_read_does_not_start_again(finished_run, tmp_path, token_folder, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "tiny")
    metrics, checkpoints = tmp_path / "tiny" / "metrics.jsonl", tmp_path / "tiny" / "checkpoints"
    before = metrics.read_bytes()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("gpt2lab.model.resolve.os.scandir", refuse)
        with pytest.raises(GPT2LabError, match=f"^cannot read {checkpoints}: Permission denied"):
            training_run.run(settings(token_folder, tmp_path, train__max_steps=8))
    for resume in ("auto", str(tmp_path / "tiny")):
        checkpoints.rename(tmp_path / "disk")
        checkpoints.symlink_to(tmp_path / "gone")
        with pytest.raises(GPT2LabError, match=f"^{checkpoints} is a link to {tmp_path}/gone, which does not exist"):
            training_run.run(settings(token_folder, tmp_path, run__resume=resume))
        checkpoints.unlink()
        (tmp_path / "disk").rename(checkpoints)
    assert metrics.read_bytes() == before


def test_the_records_of_a_run_without_checkpoints_are_kept(finished_run, tmp_path, token_folder, caplog):
    shutil.copytree(finished_run, tmp_path / "tiny")
    run = tmp_path / "tiny"
    before = {name: (run / name).read_text() for name in ("metrics.jsonl", "samples.jsonl")}
    for start in (1, 2):
        shutil.rmtree(run / "checkpoints")
        training_run.run(settings(token_folder, tmp_path, train__max_steps=2))
        assert "moved to metrics.jsonl.bak, samples.jsonl.bak" in caplog.text
        kept = (run / "metrics.jsonl.bak").read_text()
        assert kept.startswith(before["metrics.jsonl"])
        assert kept.count("\n") == STEPS + 1 + 3 * (start - 1)
        assert (run / "samples.jsonl.bak").read_text().startswith(before["samples.jsonl"])
        assert sorted(learned(run)) == [0, 1, 2]


@pytest.mark.parametrize("max_steps", [STEPS - 2, STEPS])
def test_a_checkpoint_with_nothing_left_to_train_is_refused_for_a_branch(
    finished_run, tmp_path, token_folder, max_steps
):
    changes = {"run__resume": str(finished_run), "run__name": "branch", "train__max_steps": max_steps}
    with pytest.raises(GPT2LabError, match=rf"step_{STEPS:08d} is at step {STEPS}.* train\.max_steps {max_steps}"):
        training_run.run(settings(token_folder, tmp_path, **changes))
    assert not (tmp_path / "branch").exists()


def test_a_run_beyond_max_steps_is_not_called_finished(finished_run, tmp_path, token_folder):
    with pytest.raises(GPT2LabError, match=rf"is at step {STEPS}, beyond train\.max_steps 4"):
        run_again(finished_run, tmp_path, token_folder, train__max_steps=4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("model__n_layer", 3), ("model__n_embd", 32), ("run__seed", 1), ("train__total_batch_size", 256)],
)
def test_another_architecture_seed_or_batch_is_refused(finished_run, tmp_path, token_folder, setting, value):
    with pytest.raises(GPT2LabError, match=f"was trained with {setting.replace('__', '.')}"):
        run_again(finished_run, tmp_path, token_folder, train__max_steps=8, **{setting: value})


def test_other_data_is_refused(finished_run, tmp_path, token_folder):
    other = tmp_path / "other"
    other.mkdir()
    for file in token_folder.iterdir():
        np.save(other / file.name, np.load(file)[:-100])
    with pytest.raises(GPT2LabError, match="was trained on other data"):
        run_again(finished_run, tmp_path, token_folder, train__max_steps=8, data__dir=str(other))


def test_the_message_about_other_data_names_the_settings_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "other"):
        (tmp_path / f"{name}.txt").write_text("".join(f"The {name} number {n * 7919 % 1000}.\n" for n in range(400)))

    def train(**data):
        changes = {"model__vocab_size": 50257, "train__max_steps": 2 + 2 * bool((tmp_path / "runs").exists())}
        config = settings(tmp_path, tmp_path / "runs", train__eval_every=0, train__sample_every=0, **changes)
        training_run.run(config.model_copy(update={"data": DataConfig(**data)}))

    def error(**data):
        with pytest.raises(GPT2LabError, match="was trained on other data") as refusal:
            train(**data)
        return str(refusal.value).partition("was trained on other data ")[2].partition(", or set another run.name")[0]

    train(source="files", input="good.txt")
    assert error(source="files", input="other.txt") == (
        "(data.input good.txt) than this start names (data.input other.txt); set data.input back"
    )
    assert error(source="files", dir="data/files/other") == (
        "(data.input good.txt, no data.dir) than this start names (no data.input, data.dir data/files/other); "
        "set data.input and data.dir back"
    )
    shutil.rmtree("data/files/good")
    (tmp_path / "good.txt").write_text((tmp_path / "other.txt").read_text())
    assert error(source="files", input="good.txt") == "than there are now: good.txt has changed since; restore it"


def test_other_data_for_a_branch_is_refused_with_advice_that_applies(finished_run, tmp_path, token_folder):
    other = tmp_path / "other"
    other.mkdir()
    for file in token_folder.iterdir():
        np.save(other / file.name, np.load(file)[:-100])
    changes = {"run__resume": str(finished_run), "run__name": "branch", "data__dir": str(other)}
    with pytest.raises(
        GPT2LabError, match=rf"trained on other data .data\.dir {token_folder}.*--train\.init_from .*step_00000006"
    ) as refusal:
        training_run.run(settings(token_folder, tmp_path, **changes))
    assert "another run.name" not in str(refusal.value)
    with pytest.raises(GPT2LabError, match=r"was trained with model\.n_layer") as refusal:
        training_run.run(settings(token_folder, tmp_path, **changes, model__n_layer=1))
    assert "another run.name" not in str(refusal.value)


def test_run_resume_tells_what_a_model_without_training_state_is(finished_run, tmp_path, token_folder):
    model = tmp_path / "model"
    GPT2.from_pretrained(finished_run).save_pretrained(model)
    files.write_digests(model)  # as an export has
    for resume, message in ((str(model), "is a model without the state"), ("gpt2", "a model of the Hub")):
        with pytest.raises(
            GPT2LabError, match=rf"{message}.*to start a new one from weights: --train\.init_from {resume}$"
        ) as refusal:
            training_run.run(settings(token_folder, tmp_path, run__resume=resume))
        assert "damaged" not in str(refusal.value)
    with pytest.raises(GPT2LabError, match="absent: no such folder; give auto, never or a checkpoint's path$"):
        training_run.run(settings(token_folder, tmp_path, run__resume=str(tmp_path / "absent")))


def test_resume_never_refuses_an_existing_run(finished_run, tmp_path, token_folder):
    with pytest.raises(GPT2LabError, match=r"run\.resume is never"):
        run_again(finished_run, tmp_path, token_folder, run__resume="never")


def test_resume_from_another_run_branches_off(finished_run, tmp_path, token_folder):
    path = finished_run / "checkpoints" / "step_00000004"
    training_run.run(settings(token_folder, tmp_path, run__resume=str(path), run__name="branch"))
    assert learned(tmp_path / "branch") == learned(finished_run)
    assert tensors(tmp_path / "branch") == tensors(finished_run)


def test_resume_from_a_checkpoint_older_than_the_run_is_refused(finished_run, token_folder):
    path = finished_run / "checkpoints" / "step_00000002"
    with pytest.raises(GPT2LabError, match="has gone on to step 6"):
        training_run.run(settings(token_folder, finished_run.parent, run__resume=str(path), train__max_steps=8))


@pytest.mark.parametrize(
    ("kept", "missing"),
    [(0, "steps 1 to 6: curves begin at step 7"), (4, "steps 4 to 6: curves lack them"), (7, "")],
)
def test_a_resumed_run_says_which_records_are_gone(finished_run, tmp_path, token_folder, caplog, capsys, kept, missing):
    shutil.copytree(finished_run, tmp_path / "tiny")
    metrics = tmp_path / "tiny" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:kept]))
    assert cli.main(["report", str(tmp_path / "tiny")]) == 0
    now = missing.replace("curves begin at step 7", "there are no curves")
    warned = [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("warning: ")]
    assert warned == ([f"warning: {tmp_path / 'tiny'}: metrics.jsonl has no records of {now}"] if missing else [])
    if kept == 0:
        metrics.unlink()
    caplog.clear()
    training_run.run(settings(token_folder, tmp_path, train__max_steps=8))
    warnings = [message for message in caplog.messages if "has no records" in message]
    assert warnings[:1] == ([f"{metrics} has no records of {missing}"] if missing else [])
    assert cli.main(["report", str(tmp_path / "tiny")]) == 0
    assert missing in (tmp_path / "tiny" / "report.html").read_text()


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(finished_run, tmp_path, token_folder, caplog):
    shutil.copytree(finished_run, tmp_path / "tiny")
    (tmp_path / "tiny" / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors").write_bytes(b"")
    training_run.run(settings(token_folder, tmp_path))
    assert f"step_{STEPS:08d}/optimizer.safetensors" in caplog.text
    assert tensors(tmp_path / "tiny") == tensors(finished_run)
    assert learned(tmp_path / "tiny") == learned(finished_run)


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_again(finished_run, tmp_path, token_folder, caplog):
    shutil.copytree(finished_run, tmp_path / "tiny", ignore=shutil.ignore_patterns("step_*", "*.html", "*.png"))
    training_run.run(settings(token_folder, tmp_path))
    assert sum("starts again at step 0" in record.message for record in caplog.records) == 1
    assert learned(tmp_path / "tiny") == learned(finished_run)
    caplog.clear()
    training_run.run(settings(token_folder, tmp_path, run__name="new"))
    assert "starts again" not in caplog.text


def test_a_second_process_is_refused(token_folder, tmp_path):
    with DirectoryLock(tmp_path / "tiny"), pytest.raises(GPT2LabError, match="in use by another process"):
        training_run.run(settings(token_folder, tmp_path))


def test_a_damaged_checkpoint_is_set_aside_and_takes_no_place_of_an_intact_one(
    finished_run, tmp_path, token_folder, monkeypatch
):
    shutil.copytree(finished_run, tmp_path / "tiny")
    checkpoints = tmp_path / "tiny" / "checkpoints"
    newest = checkpoints / f"step_{STEPS:08d}"
    newest = newest.rename(checkpoints / f"step_{STEPS - 1:08d}")  # as saved by Ctrl-C: no later step writes it again
    (newest / "model.safetensors").write_bytes(b"")
    training_run.run(settings(token_folder, tmp_path, checkpoint__keep_last=2))
    assert [step for step, _ in list_checkpoints(checkpoints)] == [STEPS - 2, STEPS]
    assert (checkpoints / f"damaged_{newest.name}").is_dir()
    assert learned(tmp_path / "tiny") == learned(finished_run)


def test_the_message_of_a_stop_names_the_newest_intact_checkpoint(finished_run, tmp_path, token_folder, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "tiny")
    (tmp_path / "tiny" / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors").write_bytes(b"")
    with interrupted_at(STEPS - 1, monkeypatch):
        training_run.run(settings(token_folder, tmp_path))
    directory = RunDirectory(settings(token_folder, tmp_path).run, DistContext(0, 1, torch.device("cpu")))
    assert f"step_{STEPS - 2:08d} is kept" in directory.resume_hint()


@pytest.mark.parametrize("kill_at", [1, 5, 6])
def test_an_interrupted_branch_is_resumed_by_the_same_command(
    finished_run, tmp_path, token_folder, monkeypatch, kill_at
):
    """Its records are those of the run it left, then its own: whatever a first attempt had written."""
    changes = {"run__resume": str(finished_run / "checkpoints" / "step_00000002"), "run__name": "branch"}
    with interrupted_at(kill_at, monkeypatch):
        training_run.run(settings(token_folder, tmp_path, **changes))
    training_run.run(settings(token_folder, tmp_path, **changes))
    assert learned(tmp_path / "branch") == learned(finished_run)
    assert tensors(tmp_path / "branch") == tensors(finished_run)


def test_bf16_resumes_exactly(token_folder, tmp_path, finished_run):
    training_run.run(settings(token_folder, tmp_path / "whole", system__precision="bf16"))
    whole = tmp_path / "whole" / "tiny"
    checkpoint = str(whole / "checkpoints" / "step_00000002")
    training_run.run(settings(token_folder, tmp_path, system__precision="bf16", run__resume=checkpoint))
    assert tensors(tmp_path / "tiny") == tensors(whole)
    assert learned(tmp_path / "tiny") == learned(whole)
    assert tensors(whole) != tensors(finished_run)


def resign(folder: Path, change) -> None:
    """Change state.json and write digests that match, as a change by hand would."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(change(state)))
    files.write_digests(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {k: v for k, v in state.items() if k != "step"},
        lambda state: state | {"step": "six"},
        lambda state: state | {"fingerprint": 3},
        lambda state: {k: v for k, v in state.items() if k != "rng"},
        lambda state: state | {"rng": {"cpu": "AAAA"}},
        lambda state: state | {"rng": {"cpu": "!"}},
        lambda state: state | {"format": 99},
    ],
)
def test_a_damaged_state_is_a_user_error(finished_run, tmp_path, token_folder, change):
    shutil.copytree(finished_run, tmp_path / "tiny")
    folder = tmp_path / "tiny" / "checkpoints" / f"step_{STEPS:08d}"
    resign(folder, change)
    before = (tmp_path / "tiny" / "metrics.jsonl").read_bytes()
    with pytest.raises(GPT2LabError, match=r"state\.json"):
        training_run.run(settings(token_folder, tmp_path, run__resume=str(folder), train__max_steps=8))
    assert (tmp_path / "tiny" / "metrics.jsonl").read_bytes() == before


def test_other_validation_data_is_refused(finished_run, tmp_path, token_folder):
    other = tmp_path / "other"
    other.mkdir()
    for file in token_folder.iterdir():
        tokens = np.load(file)
        np.save(other / file.name, tokens[::-1] if file.name.startswith("val") else tokens)
    with pytest.raises(GPT2LabError, match="was trained on other data"):
        run_again(finished_run, tmp_path, token_folder, train__max_steps=8, data__dir=str(other))
