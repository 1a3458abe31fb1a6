"""What a run refuses before it begins, and errors that end it."""

import subprocess
import sys

import numpy as np
import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking import report
from gpt2lab.training import run as training_run
from tests.runs import REPOSITORY, STEPS, learned, settings


def test_bad_data_is_refused_before_anything_is_written(token_folder, tmp_path):
    def broken(name: str, change) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in token_folder.iterdir():
            np.save(folder / file.name, np.load(file))
        change(folder)
        return str(folder)

    def truncate(folder):
        whole = (folder / "train_001.npy").read_bytes()
        (folder / "train_001.npy").write_bytes(whole[:-100])

    def too_large(folder):
        np.save(folder / "train_001.npy", np.full(10_000, 300, dtype=np.uint16))

    def short_val(folder):
        np.save(folder / "val_000.npy", np.zeros(16, dtype=np.uint16))

    cases = [
        (broken("truncated", truncate), "train_001.npy is truncated"),
        (broken("ids", too_large), r"train_001.npy: token 0 is 300, but model.vocab_size is 300"),
        (broken("val", short_val), "val split too short"),
        (
            broken("no_train", lambda folder: [f.unlink() for f in folder.glob("train*")]),
            "no shard of the split 'train'",
        ),
        (str(tmp_path / "absent"), "absent"),
    ]
    for folder, message in cases:
        with pytest.raises(GPT2LabError, match=message):
            training_run.run(settings(token_folder, tmp_path / "runs", data__dir=folder, data__source="fineweb-edu"))
    assert not (tmp_path / "runs").exists()


def test_a_model_too_large_for_the_machine_is_a_user_error(token_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2lab.disk_space.describe_lack", lambda _: "")  # which is refused first
    with pytest.raises(GPT2LabError, match=r"cannot make the model: its weights alone take .* GiB"):
        training_run.run(settings(token_folder, tmp_path, model__n_embd=10_000_000))
    assert not (tmp_path / "tiny" / "config.yaml").exists()


@pytest.mark.usefixtures("complete_runs")
def test_a_report_that_fails_does_not_end_the_run(token_folder, tmp_path, monkeypatch, caplog):
    def broken(run):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(report, "write", broken)
    training_run.run(settings(token_folder, tmp_path))
    assert "no fonts" in caplog.text
    assert sorted(learned(tmp_path / "tiny")) == list(range(STEPS + 1))


def test_a_sample_prompt_outside_the_vocabulary_is_refused(token_folder, tmp_path):
    with pytest.raises(GPT2LabError, match=r"train\.sample_prompt"):
        training_run.run(settings(token_folder, tmp_path, train__sample_prompt="Hello this is"))


def test_too_many_skipped_steps_stop_the_run_and_keep_the_last_checkpoint(token_folder, tmp_path):
    with pytest.raises(GPT2LabError, match=r"step \d+: loss .* not finite; too many steps in a row .* is kept"):
        training_run.run(
            settings(token_folder, tmp_path, optimizer__max_lr=1e30, optimizer__grad_clip=0, train__max_steps=30)
        )


def test_a_full_disk_leaves_no_incomplete_checkpoint(token_folder, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    path = tmp_path / "recipe.yaml"
    path.write_text(settings(token_folder, tmp_path).to_yaml())
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from gpt2lab.cli import main; sys.exit(main(['train', '--config', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "tiny" / "checkpoints").iterdir()) == []
