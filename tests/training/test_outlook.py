"""The time that a run takes in all."""

import logging

import pytest
import torch

from gpt2lab.config import BatchPlan, TrainConfig
from gpt2lab.planning.speed import Range
from gpt2lab.training import memory, outlook
from gpt2lab.training.outlook import Outlook


@pytest.fixture
def clock(monkeypatch):
    """Set the time by assigning to `clock.now`."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(outlook.time, "monotonic", lambda: Clock.now)
    return Clock


def take_steps(shown: Outlook, clock, steps: int, micro_steps: int, seconds: float, first: int = 1) -> None:
    for step in range(first, first + steps):
        with shown.step(step, micro_steps) as advance:
            for _ in range(micro_steps):
                clock.now += seconds
                advance()


def test_a_step_shows_its_micro_steps_from_the_beginning(clock, phases):
    with Outlook(TrainConfig(), "cpu").step(1, 120) as advance:
        (phase,) = phases.open
        assert phase.describe() == "0%, micro-step 1 of 120, 0 s so far"
        clock.now += 20
        advance()
        assert phase.describe() == "1%, micro-step 2 of 120, 40 min left"
    assert not phases.open


def test_a_micro_batch_for_gpus_is_lowered_on_a_cpu():
    plan = BatchPlan(sequences=480, micro_batch_size=60, grad_accum_steps=4)
    lowered = memory.lower_on_cpu(plan, 1024, torch.device("cpu"))
    assert lowered == BatchPlan(sequences=480, micro_batch_size=2, grad_accum_steps=120)
    assert memory.lower_on_cpu(plan, 128, torch.device("cpu")) == plan
    assert memory.lower_on_cpu(lowered, 1024, torch.device("cpu")) == lowered


def test_a_micro_batch_of_one_long_sequence_is_not_said_to_be_lowered(caplog):
    caplog.set_level(logging.INFO)
    plan = BatchPlan(sequences=1, micro_batch_size=1, grad_accum_steps=1)
    assert memory.lower_on_cpu(plan, 30000, torch.device("cpu")) == plan
    assert not caplog.text


@pytest.mark.parametrize(("device", "steps"), [("cpu", 1), ("cuda", 4)])
def test_the_time_is_told_once_after_the_first_steps(clock, caplog, device, steps):
    """On a CPU already in the first step, with what to try instead."""
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=1000, total_batch_size=8000), device)
    shown.add_evaluation("loss", 250, seconds=900)  # four more of them: an hour
    shown.add_evaluation("loss", 250, seconds=9000)  # is slower, but not the first
    take_steps(shown, clock, steps, micro_steps=10, seconds=10.8)  # 108 s a step: 30 hours
    line, more = [record.message for record in caplog.records if record.levelname == "INFO"]
    assert f"remaining {1000 if device == 'cpu' else 996:,} steps" in line
    assert "1 d 6 h" in line
    assert "74 tok/s" in line
    assert "1 h 0 min of it for evaluations" in more
    assert ("quickstart" in caplog.text) == (device == "cpu")


@pytest.mark.parametrize(("every", "left"), [(99, "11 min"), (96, "11 min"), (2, "16 min"), (500, "6 min")])
def test_after_a_resume_only_the_steps_and_evaluations_that_remain_count(clock, caplog, every, left):
    """After step 4 of the process, step 96 of the run."""
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=100, total_batch_size=8000), "cuda")
    shown.add_evaluation("loss", every, seconds=300)
    take_steps(shown, clock, 4, micro_steps=1, seconds=10 * 1.5, first=93)
    assert "the remaining 4 steps will take about " + left in caplog.text


def test_a_long_run_with_little_left_is_not_warned_about(clock, caplog):
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=600, eval_every=100), "cpu")
    take_steps(shown, clock, 3, micro_steps=2, seconds=25, first=591)
    assert "steps will take about 8 min" in caplog.text
    assert "longer with evaluations" in caplog.text
    assert "quickstart" not in caplog.text


def test_no_line_is_wider_than_80_columns(clock, caplog):
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=1_000_000), "cuda")
    shown.add_evaluation("loss", 1000, seconds=99_999)
    take_steps(shown, clock, 4, micro_steps=1, seconds=80)
    assert len(caplog.messages) == 2
    assert max(map(len, caplog.messages)) <= 80


def test_the_measured_speed_is_told_after_50_steps(clock, caplog):
    """Evaluations between steps are no part of the steps, but of the time of the run."""
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=1000, total_batch_size=8000), "cuda", Range(8100.0, 7000.0, 9000.0))
    take_steps(shown, clock, 25, micro_steps=2, seconds=0.5)
    with shown.between_steps():
        clock.now += 600
        shown.add_evaluation("loss", 250, seconds=600)
    take_steps(shown, clock, 24, micro_steps=2, seconds=0.5, first=26)
    assert not caplog.text
    take_steps(shown, clock, 20, micro_steps=2, seconds=0.5, first=50)
    (line,) = caplog.messages
    # 1,000 s of steps, and five evaluations, four of which are still to come
    assert line == "after 50 steps: 8.0k tok/s (estimate 8.1k), 1 h 7 min in all, 56 min left"


def test_an_evaluation_between_the_first_steps_is_no_time_of_steps(clock, caplog):
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=1000, total_batch_size=8000), "cuda")
    take_steps(shown, clock, 2, micro_steps=1, seconds=10)
    with shown.between_steps():
        clock.now += 3600
    take_steps(shown, clock, 2, micro_steps=1, seconds=10, first=3)
    assert "996 steps will take about 2 h 46 min (800 tok/s)" in caplog.text


@pytest.mark.parametrize(("rate", "told"), [(82.0, False), (40.0, True), (160.0, True)])
def test_the_first_steps_are_told_only_if_they_contradict_the_estimate(clock, caplog, rate, told):
    caplog.set_level(logging.INFO)
    estimate = Range(rate, rate / 1.2, rate * 1.2)
    shown = Outlook(TrainConfig(max_steps=1000, total_batch_size=8000), "cpu", estimate)
    take_steps(shown, clock, steps=2, micro_steps=10, seconds=10)
    assert ("steps will take about" in caplog.text) == told
    assert "quickstart" in caplog.text  # it takes long in any case


def test_of_steps_that_are_over_soon_only_the_measured_speed_is_told(clock, caplog):
    caplog.set_level(logging.INFO)
    shown = Outlook(TrainConfig(max_steps=1000, total_batch_size=8000), "cpu")
    take_steps(shown, clock, steps=60, micro_steps=2, seconds=0.5)
    assert [message[:15] for message in caplog.messages] == ["after 50 steps:"]


def test_a_short_run_has_no_line(clock, caplog):
    caplog.set_level(logging.INFO)
    take_steps(Outlook(TrainConfig(max_steps=20), "cpu"), clock, steps=20, micro_steps=2, seconds=0.1)
    assert not caplog.text
