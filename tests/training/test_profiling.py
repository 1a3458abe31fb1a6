"""`system.profile`: the trace holds the steps that were asked for."""

import json

import pytest
import torch

from gpt2lab.config import SystemConfig, load
from gpt2lab.errors import GPT2LabError
from gpt2lab.training import profiling
from gpt2lab.training import run as training_run
from gpt2lab.training.profiling import TraceSink
from tests.runs import learned, settings

CPU = torch.device("cpu")


def optimizer_steps(path) -> int:
    names = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    return sum(name.startswith("Optimizer.step#") for name in names)


def test_the_trace_holds_the_steps_and_changes_nothing(token_folder, tmp_path, finished_run):
    training_run.run(settings(token_folder, tmp_path, system__profile="2-3"))
    assert optimizer_steps(tmp_path / "tiny" / "trace.json") == 2
    assert learned(tmp_path / "tiny") == learned(finished_run)


def test_a_run_that_ends_earlier_writes_what_there_is(tmp_path):
    sink = TraceSink(tmp_path / "trace.json", 1, 9, CPU)
    sink.log(0, {})
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()
    sink.close()
    sink.close()
    assert optimizer_steps(tmp_path / "trace.json") == 1


@pytest.mark.parametrize(
    ("value", "first_step", "steps"),
    [(False, 0, None), (True, 0, (10, 15)), (True, 1000, (1010, 1015)), ("3-4", 0, (3, 4))],
)
def test_steps_by_setting(tmp_path, value, first_step, steps):
    sinks = profiling.trace_sinks(SystemConfig(profile=value), tmp_path, first_step, CPU)
    assert [(sink._first, sink._last) for sink in sinks] == ([] if steps is None else [steps])


@pytest.mark.parametrize(
    ("value", "first_step", "says"),
    [
        (False, 0, ""),
        (True, 10, ""),
        (True, 11, "the steps 21 to 26, but this start trains 12 to 20"),
        ("20-30", 0, ""),
        ("21-30", 0, "the steps 21 to 30, but"),
        ("3-6", 5, ""),
        ("3-5", 5, "the steps 3 to 5, but this start trains 6 to 20"),
    ],
)
def test_steps_that_are_not_trained_are_warned_about(value, first_step, says):
    reason = profiling.explain_no_trace(SystemConfig(profile=value), first_step, 20)
    assert says in reason
    assert bool(says) == bool(reason)


def test_steps_in_the_wrong_order_are_refused():
    with pytest.raises(GPT2LabError, match=r"system\.profile: .* first step before the last, not '4-3'"):
        load([], {"system.profile": "4-3"})
