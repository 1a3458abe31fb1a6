"""The training step on a simulated GPU: precisions, memory, and what the host waits for."""

from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from gpt2lab.config import GPT2Config
from gpt2lab.model import ops
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system import precision as precisions
from tests.simulated_cuda import training
from tests.simulated_cuda.simulation import GIB, SimulatedGPU, simulated

pytestmark = pytest.mark.simulated_cuda

OPTIMIZER = "aten._fused_adamw_.default"
SMALL = {"model__n_layer": 2, "train__total_batch_size": 32768}  # where layers and micro-steps do not matter


def steps(gib: float = 140.0, **changes: Any) -> dict[str, Any]:
    with simulated(SimulatedGPU(gib)) as gpu:
        result = training.train(gpu, training.settings(**changes))
        return result | {"operations": gpu.operations}


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("bf16", "adamw"), ("bf16", "muon"), ("fp16", "adamw"), ("tf32", "adamw")]
)
def test_the_host_waits_once_in_a_step_and_after_the_optimizer(on_gpu, precision, optimizer):
    """The values of the step are read when everything is queued. With fp16 the loss scale is read right after them."""
    result = on_gpu(steps, **SMALL, system__precision=precision, optimizer__name=optimizer)
    operations = result["operations"]
    waits = [n for n, name in enumerate(operations) if name.startswith("wait")]
    assert min(waits) > max(n for n, name in enumerate(operations) if name == OPTIMIZER)
    after = [name for name in operations[min(waits) :] if not name.startswith("wait") and "select" not in name]
    assert len(after) <= (3 if precision == "fp16" else 0), after  # the loss scale is updated
    assert ("train/loss_scale" in result) == (precision == "fp16")


def test_memory_that_runs_out_halves_the_micro_batch_within_the_step(on_gpu):
    result = on_gpu(step_on_a_gpu_that_shrinks)
    assert result["found"] == 32
    assert result["micro_batch_size"] == 16
    assert [(event[1], event[2]) for event in result["events"]] == [
        ("out of memory", {"micro_batch_size": 16, "was": 32})
    ]


def step_on_a_gpu_that_shrinks() -> dict[str, Any]:
    """Another program takes memory after the trial of the micro batch."""
    with simulated(SimulatedGPU(140)) as gpu:
        trainer, batch, events = training.build_trainer(gpu, training.settings(train__micro_batch_size=32))
        found = trainer.model.micro_batch_size
        gpu.capacity = 14 * GIB
        trainer._train_step(1, iter([batch]))
        return {"found": found, "micro_batch_size": trainer.model.micro_batch_size, "events": events}


def test_the_peak_that_is_reported_is_that_of_the_steps(on_gpu):
    result = on_gpu(steps, 6.0, **SMALL, train__micro_batch_size=32)
    assert result["micro_batch_size"] < 32
    again = on_gpu(steps, **SMALL, train__micro_batch_size=result["micro_batch_size"])
    assert result["perf/peak_memory_gib"] == again["perf/peak_memory_gib"]


@pytest.mark.parametrize("sequences", [8, 64])
def test_the_counted_memory_is_that_of_torchs_tracker(on_gpu, sequences):
    counted, tracked = on_gpu(count_and_track, sequences)
    assert counted == pytest.approx(tracked, rel=0.02)


def count_and_track(sequences: int, n_layer: int = 3) -> tuple[float, float]:
    """Peak of the second step in GiB, by the simulated GPU and by torch's MemTracker."""
    one_micro_step = {"train__micro_batch_size": sequences, "train__total_batch_size": sequences * 1024}
    config = training.settings(**one_micro_step, model__n_layer=n_layer)
    with simulated(SimulatedGPU()) as gpu:
        trainer, batch, _ = training.build_trainer(gpu, config)
        trainer._train_step(1, iter([batch]))
        gpu.reset_peak()
        tracker = MemTracker()
        tracker.track_external(trainer.state.model, *trainer.state.optimizers, *batch)
        with tracker:
            trainer._train_step(2, iter([batch]))
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cuda", 0)]
        return gpu.peak / GIB, snapshot["Total"] / GIB


def test_validation_computes_no_gradient_of_the_logits(on_gpu):
    assert not any("scatter_add" in name for name in on_gpu(validate)["operations"])


def validate() -> dict[str, Any]:
    with simulated(SimulatedGPU()) as gpu:
        with torch.device("cuda"):
            model = GPT2(GPT2Config(n_layer=1))
        x = torch.zeros(8, 1024, dtype=torch.int64, device="cuda")
        gpu.records_operations = True
        with torch.no_grad(), precisions.choose("bf16", torch.device("cuda")).autocast():
            model(x, x)
        return {"operations": gpu.operations}


@pytest.mark.parametrize("cap", [None, 15.0])
def test_the_loss_converts_few_logits_to_float32_at_a_time(on_gpu, cap):
    """The logits of 64 sequences take 6 GiB in bf16; 256 MiB of them are converted, and softmax takes as much."""
    assert on_gpu(measure_loss, cap) == pytest.approx(2 / 4, abs=0.02)


def measure_loss(cap: float | None) -> float:
    """GiB that the loss takes in addition to logits, hidden states and weights, in the forward pass."""
    with simulated(SimulatedGPU()) as gpu:
        hidden = torch.zeros(64 * 1024, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.zeros(50257, 768, device="cuda", requires_grad=True)
        targets = torch.zeros(64 * 1024, device="cuda", dtype=torch.int64)
        with precisions.choose("bf16", torch.device("cuda")).autocast():
            loss = ops.cross_entropy(hidden, weight, targets, cap)
        assert loss.requires_grad
        return (gpu.peak - gpu.allocated) / GIB


def test_compiled_code_aligns_the_logits_by_the_weights(on_gpu):
    """50,257 is odd, and tensor cores need aligned rows. The compiler would copy the logits instead."""
    shape, stride, gradient = on_gpu(compute_compiled_logits)
    assert shape == (1024, 50257)
    assert stride == (50304, 1)
    assert gradient == (50257, 768)


def compute_compiled_logits() -> tuple[tuple[int, ...], ...]:
    with simulated(SimulatedGPU()):
        weight = torch.zeros(50257, 768, device="cuda", requires_grad=True)
        logits = ops._compute_compiled_logits(torch.zeros(1024, 768, device="cuda"), weight)
        logits.sum().backward()
        return tuple(logits.shape), logits.stride(), tuple(weight.grad.shape)
