"""The guard: which steps are skipped, and that a skipped step changes nothing."""

import json

import pytest
import torch

from gpt2lab.config import GuardConfig, OptimizerConfig
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.training import optimizer as optimizers
from gpt2lab.training import run as training_run
from gpt2lab.training.guard import Guard
from gpt2lab.training.memory import MicroStepVotes
from tests.runs import STEPS, learned, records, settings, tensors
from tests.training.test_optimizer import TINY


def taken(guard: Guard, losses: list[float], norm: float = 1.0) -> list[bool]:
    """Record steps with these losses; which of them are taken."""
    return [guard.record(loss, norm) is None for loss in losses]


# -- the decision


def test_only_values_that_are_not_finite_are_skipped_by_default():
    guard = Guard(GuardConfig(window=8, stop_after=3))
    assert taken(guard, [3.0] * 8 + [1e9]) == [True] * 9
    assert taken(guard, [float("nan"), 4.0, float("inf")]) == [False, True, False]
    assert guard.record(4.0, float("nan")) is not None
    assert guard.skipped == 3


def test_values_that_are_not_finite_do_not_enter_the_window():
    guard = Guard(GuardConfig(window=8))
    taken(guard, [5.0, float("nan"), 4.0, float("inf")])
    assert guard.state_dict()["losses"] == [5.0, 4.0]


def test_a_spike_is_skipped_until_the_window_has_the_new_level():
    guard = Guard(GuardConfig(spike_sigma=4, window=8, stop_after=9))
    assert all(taken(guard, [3.0, 3.1, 2.9, 3.05, 2.95, 3.0]))
    assert "loss" in (guard.record(9.0, 1.0) or "")
    assert "gradient norm" in (guard.record(3.0, 50.0) or "")
    assert taken(guard, [9.0] * 8)[-1]


def test_tiny_differences_on_a_plateau_are_not_spikes():
    guard = Guard(GuardConfig(spike_sigma=6, window=8))
    assert all(taken(guard, [2.0] * 8 + [2.0000001, 2.001]))


def test_the_count_of_skipped_steps_survives_a_restart():
    guard = Guard(GuardConfig(stop_after=3))
    assert taken(guard, [float("nan")] * 2) == [False] * 2
    resumed = Guard(GuardConfig(stop_after=3))
    resumed.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert resumed.skipped == 2
    assert not resumed.too_many_skipped
    resumed.record(float("nan"), 1.0)
    assert resumed.too_many_skipped


@pytest.mark.parametrize("values", [(3.0, 1.0), (float("nan"), 1.0), (3.0, float("inf")), (1e30, 1e30)])
@pytest.mark.parametrize("sigma", [0, 4])
def test_the_flag_for_the_optimizer_agrees_with_what_is_recorded(values, sigma):
    guard = Guard(GuardConfig(spike_sigma=sigma, window=8))
    taken(guard, [3.0, 3.1, 2.9, 3.0])
    flag = guard.skip_flag(torch.tensor(values))
    assert (flag.dtype, flag.shape) == (torch.float32, ())
    assert bool(flag) == (guard.record(*values) is not None)


def test_the_host_reads_loss_and_norm_before_the_step_only_to_detect_spikes():
    unreadable = torch.empty(2, device="meta")
    assert Guard(GuardConfig()).skip_flag(unreadable).shape == ()
    with pytest.raises(Exception, match="meta"):
        Guard(GuardConfig(spike_sigma=4)).skip_flag(unreadable)


# -- the step


def model_and_optimizer(fused: bool):
    torch.manual_seed(0)
    model = GPT2(TINY)
    adamw = optimizers.build(model, OptimizerConfig(max_lr=1e-2))[0]
    return model, adamw if fused else torch.optim.AdamW(adamw.param_groups, fused=False, foreach=False)


def train_steps(model, optimizer, skip: list[bool]) -> None:
    idx = torch.arange(16).view(2, 8)
    for skipped in skip:
        model(idx, idx)[1].backward()
        if skipped:
            for parameter in model.parameters():
                parameter.grad.fill_(float("nan"))
        optimizers.step_unless(torch.tensor(float(skipped)), optimizer)
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("skip", [[False, True, False], [True, False, True]])
def test_a_skipped_step_changes_neither_weights_nor_optimizer_state(fused, skip):
    model, adamw = model_and_optimizer(fused)
    train_steps(model, adamw, skip)
    other, other_adamw = model_and_optimizer(fused)
    train_steps(other, other_adamw, [step for step in skip if not step])
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    expected, state = optimizers.state_tensors(other, [other_adamw]), optimizers.state_tensors(model, [adamw])
    assert all(torch.equal(expected[name], state[name]) for name in expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_synchronisation_between_backward_and_optimizer():
    torch.manual_seed(0)
    model = GPT2(TINY).cuda()
    adamw = optimizers.build(model, OptimizerConfig())[0]
    idx = torch.arange(16, device="cuda").view(2, 8)
    loss = model(idx, idx)[1]
    loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = optimizers.clip_gradients(model, 1.0)
        flag = Guard(GuardConfig()).skip_flag(torch.stack([loss.detach(), norm]))
        optimizers.step_unless(flag, adamw)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- in a run


def spoil(monkeypatch, steps: set[int], factor: float) -> None:
    """Multiply loss and gradients of some steps."""
    run = MicroStepVotes.run

    def spoiled(self, step, sequences, micro_steps):
        loss = run(self, step, sequences, micro_steps)
        if step not in steps:
            return loss
        for parameter in self._model.module.parameters():
            parameter.grad.mul_(factor)
        return loss * factor

    monkeypatch.setattr(MicroStepVotes, "run", spoiled)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_skipped_step_is_recorded_once(
    token_folder, tmp_path, finished_run, monkeypatch, caplog, capsys, factor, precision
):
    spoil(monkeypatch, {3}, factor)
    training_run.run(settings(token_folder, tmp_path, system__precision=precision))
    run = tmp_path / "tiny"
    assert [line["train/loss"] for line in records(run) if line["step"] == 3] == [None]
    (event,) = records(run, "events.jsonl")
    assert (event["step"], event["event"], len(event["sequences"])) == (3, "skipped", 8)
    assert "guard/skipped" not in learned(run)[2]
    assert [learned(run)[step]["guard/skipped"] for step in range(3, STEPS + 1)] == [1] * 4
    assert [record.levelname for record in caplog.records if "was skipped" in record.getMessage()] == ["WARNING"]
    assert "guard" not in capsys.readouterr().out
    if precision == "fp32":
        assert learned(run)[2] == learned(finished_run)[2]
        assert tensors(run, 2) == tensors(finished_run, 2)
        assert all(tensors(run)[name] != tensors(finished_run)[name] for name in ("weights", "optimizer"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_spike_is_skipped_in_a_run_that_asks_for_it(token_folder, tmp_path, monkeypatch, precision):
    spoil(monkeypatch, {5}, 1e4)
    for sigma, count in ((0.0, None), (20.0, 1)):
        out_dir = tmp_path / str(count)
        guard = {"guard__spike_sigma": sigma, "guard__window": 4, "system__precision": precision}
        training_run.run(settings(token_folder, out_dir, **guard))
        assert learned(out_dir / "tiny")[STEPS].get("guard/skipped") == count


def test_a_run_whose_first_steps_are_skipped_can_be_resumed(token_folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, {1, 2}, float("nan"))
        training_run.run(settings(token_folder, tmp_path, train__max_steps=2))
    training_run.run(settings(token_folder, tmp_path))
    run = tmp_path / "tiny"
    assert [event["step"] for event in records(run, "events.jsonl") if event["event"] == "skipped"] == [1, 2]
    assert learned(run)[STEPS]["train/loss"] < 6
