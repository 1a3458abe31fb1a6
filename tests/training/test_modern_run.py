"""Runs of the modern architecture with Muon: exact resumption, and branches that decay from one trunk."""

import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.training import run as training_run
from tests.runs import interrupted_at, learned, settings, tensors

MODERN = {
    "model__architecture": "modern",
    "optimizer__name": "muon",
    "optimizer__schedule": "linear",
    "optimizer__decay_fraction": 0.5,
    "optimizer__embedding_lr": 0.1,
    "optimizer__head_lr": 0.01,
    "optimizer__warmup_steps": 1,
    "train__eval_every": 100,
    "train__sample_every": 0,
}


@pytest.fixture(scope="module")
def modern_run(token_folder, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("modern")
    training_run.run(settings(token_folder, out_dir, **MODERN))
    return out_dir / "tiny"


@pytest.mark.parametrize("kill_at", [3, 4])
def test_an_interrupted_run_resumes_exactly(modern_run, token_folder, tmp_path, monkeypatch, kill_at):
    config = settings(token_folder, tmp_path, **MODERN)
    with interrupted_at(kill_at, monkeypatch):
        training_run.run(config)
    training_run.run(config)
    assert learned(tmp_path / "tiny") == learned(modern_run)
    assert tensors(tmp_path / "tiny") == tensors(modern_run)


def test_branches_off_one_trunk_equal_runs_of_their_length(modern_run, token_folder, tmp_path):
    """Up to step 3 of 6 the rate is constant, and so it is in a trunk of 20 steps."""
    trunk = {**MODERN, "run__name": "trunk", "train__max_steps": 20}
    with pytest.MonkeyPatch.context() as patch, interrupted_at(5, patch):
        training_run.run(settings(token_folder, tmp_path, **trunk))
    step_2 = tmp_path / "trunk" / "checkpoints" / "step_00000002"
    training_run.run(settings(token_folder, tmp_path, **MODERN, run__resume=str(step_2)))
    assert learned(tmp_path / "tiny") == learned(modern_run)
    assert tensors(tmp_path / "tiny") == tensors(modern_run)
    with pytest.raises(GPT2LabError, match=r"this run falls after step 3; raise train\.max_steps or lower"):
        step_4 = str(tmp_path / "trunk" / "checkpoints" / "step_00000004")
        training_run.run(settings(token_folder, tmp_path, **MODERN, run__name="late", run__resume=step_4))


def test_a_branch_off_a_falling_rate_is_refused(modern_run, token_folder, tmp_path):
    changes = {"run__resume": str(modern_run), "run__name": "branch", "train__max_steps": 20}
    with pytest.raises(GPT2LabError, match=r"step 6, but the learning rate of that run falls after step 3; branch off"):
        training_run.run(settings(token_folder, tmp_path, **MODERN | changes))
    assert not (tmp_path / "branch").exists()
