"""What `plan --calibrate` measures, keeps, and changes about estimates."""

import json
from dataclasses import replace

import pytest
import torch

from gpt2lab import cli
from gpt2lab.config import Config
from gpt2lab.planning import calibrate, calibration, local, plan, speed
from gpt2lab.planning.calibration import Calibration
from gpt2lab.planning.speed import Stack
from gpt2lab.system import cpu, gpus
from tests.planning.helpers import WORK, change, plan_as_json

TABLE = gpus.load()
H200 = TABLE["h200"]
MEASURED = Calibration(
    device="NVIDIA H200",
    threads=0,
    gpu="h200",
    torch=calibration.torch_version(),
    precision="bf16",
    compiled=True,
    date="2026-11-21T12:00:00Z",
    matmul_tflops=700.0,
    width=300.0,
    attention_tflops=250.0,
    bandwidth=4000.0,
    factor=0.9,
    spread=1.1,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))


def test_a_calibration_is_found_by_device_torch_precision_and_compiler():
    calibration.save(MEASURED)
    assert calibration.find("bf16", True, gpu="h200") == MEASURED
    assert calibration.find("bf16", True, device="NVIDIA H200", threads=0) == MEASURED
    assert calibration.find("tf32", True, gpu="h200") is None
    assert calibration.find("bf16", False, gpu="h200") is None
    assert calibration.find("bf16", True, gpu="h100-80gb") is None
    calibration.save(MEASURED.model_copy(update={"torch": "1.0", "gpu": "l4"}))
    assert calibration.find("bf16", True, gpu="l4") is None


def test_a_new_calibration_replaces_the_one_of_the_same_key_alone():
    other = MEASURED.model_copy(update={"device": "AMD EPYC", "threads": 2, "gpu": "cpu"})
    newer = MEASURED.model_copy(update={"factor": 1.2})
    for each in (MEASURED, other, newer):
        calibration.save(each)
    assert calibration.find("bf16", True, gpu="h200") == newer
    assert calibration.find("bf16", True, gpu="cpu") == other
    assert calibration.find("bf16", True, gpu="cpu", threads=4) is None


@pytest.mark.parametrize(
    "content",
    ["", "[", "3", '{"x": 3}', json.dumps({"x": MEASURED.model_dump() | {"factor": -1}}), '{"x": {"device": "a"}}'],
)
def test_a_damaged_file_is_as_if_nothing_had_been_measured(content):
    calibration.file().parent.mkdir(parents=True)
    calibration.file().write_text(content)
    assert calibration.find("bf16", True) is None
    calibration.save(MEASURED)
    assert calibration.find("bf16", True) == MEASURED


def test_measured_rates_replace_those_of_the_table():
    gpu, stack = MEASURED.apply(H200, 1)
    work = change(gpus=1)
    parts, expected = (speed.step_time(work, gpu, stack.constants), speed.step_time(work, H200))
    tokens = work.step_tokens
    assert parts.matmul == pytest.approx(
        6 * WORK.matmul_parameters * tokens * (1 + 300 / WORK.n_embd) / 700e12, rel=1e-6
    )
    assert parts.attention == pytest.approx(6 * 12 * 768 * 1024 * tokens / 250e12)
    assert parts.traffic == pytest.approx(expected.traffic * 4800 / 4000)
    assert speed.tokens_per_second(work, gpu, stack).estimate == pytest.approx(0.9 * tokens / parts.seconds)


def test_a_measured_link_counts_for_as_many_ranks_as_measured_it():
    measured = MEASURED.model_copy(update={"link": 100.0, "ranks": 4})

    def communication(ranks: int) -> float:
        gpu, stack = measured.apply(H200, ranks)
        work = change(gpus=ranks, sharding="full", micro_batch_size=1, grad_accum_steps=1)
        return speed.step_time(work, gpu, stack.constants).communication

    bytes_of_three_passes = 3 * 4 * WORK.parameters
    assert communication(4) == pytest.approx(bytes_of_three_passes * 3 / 4 / 100e9)
    assert communication(8) == pytest.approx(bytes_of_three_passes * 7 / 8 / (450e9 * speed.SHIPPED.link))


def test_plan_uses_the_calibration_of_the_gpu_that_it_names(capsys):
    def stack(gpu: str, *more: str) -> dict:
        return plan_as_json(capsys, "--gpu", gpu, *more)["plans"][0]["stack"]

    default = stack("h200")
    calibration.save(MEASURED)
    assert stack("h200") == {"factor": 0.9, "spread": 1.1, "source": "measured on NVIDIA H200, 2026-11-21"}
    assert stack("h200", "--system.compile", "off") == default
    assert stack("h100") == default


def test_plan_uses_the_calibration_of_this_cpu_but_of_no_other(capsys):
    mine = MEASURED.model_copy(update={"device": cpu.name(), "threads": 2, "gpu": "cpu", "compiled": False})
    calibration.save(mine.model_copy(update={"device": "Abacus"}))
    assert "measured on Abacus" not in json.dumps(plan_as_json(capsys, "--gpu", "cpu"))
    calibration.save(mine)
    assert plan_as_json(capsys, "--gpu", "cpu")["plans"][0]["stack"]["factor"] == 0.9


def test_training_uses_the_calibration_of_its_device():
    device = torch.device("cpu")
    here = local.describe(device)
    default = here.resolve("fp32", False, 1)[1]
    mine = {"device": here.name, "threads": here.threads, "gpu": "cpu", "precision": "fp32", "compiled": False}
    calibration.save(MEASURED.model_copy(update=mine))
    assert here.resolve("fp32", False, 1)[1].spread == 1.1 != default.spread
    assert here.resolve("bf16", False, 1)[1] == default


def test_without_a_calibration_the_estimate_follows_the_speed_of_this_cpu(monkeypatch):
    here = local.describe(torch.device("cpu"))

    def tokens_per_second(operations_per_second: float) -> float:
        monkeypatch.setattr(local, "_probe", lambda precision: operations_per_second)
        gpu, stack = here.resolve("fp32", False, 1)
        return plan.make(Config(), gpu, stack=stack).outlook.tokens_per_second.estimate

    assert 3 < tokens_per_second(2e12) / tokens_per_second(2e11) < 10  # the memory is as fast as before


def test_the_factor_is_estimated_by_measured_time_of_the_steps(monkeypatch):
    """Steps that take as long as a stack factor says have this factor, and the range covers all of them."""
    monkeypatch.setattr(
        calibrate,
        "_measure_rates",
        lambda *_: {"matmul_tflops": 0.5, "width": 40.0, "attention_tflops": 0.1, "bandwidth": 30.0, "link": 0.0},
    )
    slow = iter([0.5, 0.5, 0.8])

    def measure_step(recipe, dist, precision):
        here = local.describe(dist.device)
        rates = MEASURED.model_copy(
            update={"matmul_tflops": 0.5, "width": 40.0, "attention_tflops": 0.1, "bandwidth": 30.0}
        )
        gpu, stack = rates.model_copy(update={"precision": precision.name}).apply(here.gpu, 1)
        one = replace(stack, factor=next(slow), spread=1.0)
        system = recipe.system.model_copy(update={"compile": "off"})
        expected = plan.make(recipe.model_copy(update={"system": system}), gpu, stack=one).outlook
        return recipe, False, recipe.train.total_batch_size / expected.tokens_per_second.estimate

    monkeypatch.setattr(calibrate, "_measure_step", measure_step)
    measured = calibrate.measure(Config.model_validate({"system": {"device": "cpu", "precision": "fp32"}}))
    assert measured.factor == pytest.approx((0.5 * 0.5 * 0.8) ** (1 / 3), rel=1e-3)
    assert measured.factor * measured.spread == pytest.approx(0.8, rel=1e-3)
    assert (measured.precision, measured.gpu, measured.compiled) == ("fp32", "cpu", False)


def test_the_command_measures_this_device_and_keeps_the_result(monkeypatch, capsys):
    """With steps and matrices that are small, so that the test is fast."""
    monkeypatch.setattr(calibrate, "_CPU_STEPS", ((1, 2, 32, 16, 4),))
    monkeypatch.setattr(calibrate, "_time", lambda work, dist, warm_up=1: (work(), 0.5)[1])
    monkeypatch.setattr(calibrate, "_WIDE", 96)
    monkeypatch.setattr(calibrate, "_NARROW", 32)
    printed = plan_as_json(capsys, "--calibrate", "--system.device", "cpu", "--system.precision", "fp32")
    kept = calibration.find("fp32", False, device=cpu.name())
    assert kept is not None
    assert printed == kept.model_dump() | {"file": str(calibration.file())}
    assert cli.main(["plan", "--calibrate", "--gpu", "h100"]) == 2
    assert "--calibrate" in capsys.readouterr().err


def test_the_default_stack_has_the_shipped_constants():
    assert Stack().constants is speed.SHIPPED
