"""A run that an earlier commit wrote is resumed with the sequences and losses that it would have had then."""

import json
import shutil
from pathlib import Path

import pytest

from gpt2lab.config import load
from gpt2lab.data.loader import Loader
from gpt2lab.training import run as training_run
from tests.runs import assert_same_losses, records

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_831b440"


@pytest.fixture
def old_run(tmp_path, monkeypatch) -> Path:
    """A copy of the run with its data; its paths are relative to the working directory."""
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(FIXTURE / "run", run)
    shutil.copytree(FIXTURE / "tokens", tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    return run


def test_an_old_run_resumes_with_the_same_sequences_and_losses(old_run, monkeypatch):
    sequences = {}
    batch = Loader.batch

    def recorded(self, step):
        sequences[str(step + 1)] = self.sequence_ids(step).tolist()
        return batch(self, step)

    monkeypatch.setattr(Loader, "batch", recorded)
    training_run.run(load([old_run / "config.yaml"]))  # with guard.deviations
    assert sequences == json.loads((FIXTURE / "sequences.json").read_text())
    assert_same_losses(old_run, FIXTURE / "run", tolerance=1e-5)
    (event,) = records(old_run, "events.jsonl")
    assert "guard.spike_sigma" not in event  # the checkpoint has the value under its old name
