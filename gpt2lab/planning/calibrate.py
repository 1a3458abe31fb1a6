"""Measures this device in about 20 seconds: matrix products, attention, memory, links, and this code's training step.

    rates of single operations ──▶ efficiencies of the model of speed ──▶ its estimate of a step
    steps of small models ────────────────────────────────────────────▶ factor = estimate / measured

The steps are those of training, with its autocast, clipping and optimizer, on random tokens. Nothing else may use the
device meanwhile. With several ranks (torchrun), all of them measure, and the slowest rank counts.
"""

import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt2lab import config as settings
from gpt2lab import logs, progress
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural
from gpt2lab.model import ops
from gpt2lab.options import PlanOptions
from gpt2lab.planning import calibration, local, plan, speed
from gpt2lab.planning.calibration import Calibration
from gpt2lab.planning.local import LocalDevice
from gpt2lab.planning.memory import Layout
from gpt2lab.planning.speed import Stack
from gpt2lab.system import device as devices
from gpt2lab.system import distributed
from gpt2lab.system import precision as precisions
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.gpus import GPU
from gpt2lab.system.precision import Precision
from gpt2lab.training import build
from gpt2lab.training.memory import TrainingModel
from gpt2lab.training.optimizer import clip_gradients, step_unless
from gpt2lab.training.state import TrainState

_NARROW, _WIDE = 128, 768  # channels of the matrix products
_SMALLEST_SPREAD = 1.1  # of an estimate: other shapes than those measured, and other load
_REPETITIONS = 3

# n_layer, n_head, n_embd, block_size and sequences of the steps. On a GPU only one, because it is compiled first.
_CPU_STEPS = ((2, 4, 128, 64, 24), (4, 6, 384, 256, 8), (3, 12, 768, 512, 2))
_GPU_STEPS = ((4, 12, 768, 1024, 16),)


def run(options: PlanOptions) -> None:
    """Measure this device, keep the result for later estimates, and print it.

    Args:
        options: device, precision and compiler as settings.

    Raises:
        GPT2LabError: see `measure`; or an option of a plan is given, or the result cannot be kept.
    """
    if options.gpu or options.budget is not None or options.validate is not None:
        raise GPT2LabError("--calibrate measures this device and plans nothing: give it without --gpu and --budget")
    measured = measure(settings.load(options.config or [options.RECIPE], options.overrides))
    if distributed.read_ranks()[0] == 0:
        file = calibration.save(measured)
        values = measured.model_dump() | {"file": str(file)}
        logs.print_result(json.dumps(values) if options.as_json else _describe(measured, file))


def _describe(measured: Calibration, file: Path) -> str:
    lines = [
        measured.key,
        f"  matrix products   {measured.matmul_tflops:.3g} TFLOP/s, half of it at {measured.width:.0f} channels",
        f"  attention         {measured.attention_tflops:.3g} TFLOP/s",
        f"  memory            {measured.bandwidth:,.0f} GB/s",
    ]
    if measured.link:
        lines.append(f"  between ranks     {measured.link:.3g} GB/s ({plural(measured.ranks, 'rank')})")
    spread = f"{measured.factor / measured.spread:.2f} to {measured.factor * measured.spread:.2f}"
    return "\n".join([*lines, f"  training step     factor {measured.factor:.2f} ({spread})", f"kept in {file}"])


def measure(config: Config) -> Calibration:
    """Measure the device that the settings name, on every rank.

    Args:
        config: device, precision and compiler of training.

    Returns:
        What was measured; the same on all ranks.

    Raises:
        GPT2LabError: there is no such device, it lacks the precision, or the table of GPUs does not have it.
    """
    with build.start_ranks(config.system) as dist:
        precision = precisions.choose(config.system.precision, dist.device)
        here = local.describe(dist.device)
        if here.gpu is None:
            raise GPT2LabError(f"the table of GPUs has no {here.name}, so plan cannot estimate it")
        here.gpu.peak_flops(precision.name)
        shapes = _CPU_STEPS if dist.device.type == "cpu" else _GPU_STEPS
        with progress.Phase("measuring the device"):
            rates = _measure_rates(dist, precision)
            steps = [_measure_step(_recipe(config, shape, dist, precision), dist, precision) for shape in shapes]
        return _conclude(here, dist, precision, rates, steps)


def _conclude(
    here: LocalDevice,
    dist: DistContext,
    precision: Precision,
    rates: dict[str, float],
    steps: list[tuple[Config, bool, float]],
) -> Calibration:
    """From rates and steps to the factor."""
    assert here.gpu is not None
    compiled = steps[0][1]
    facts: dict[str, Any] = {
        "device": here.name,
        "threads": here.threads,
        "gpu": here.gpu.name,
        "torch": calibration.torch_version(),
        "precision": precision.name,
        "compiled": compiled,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ranks": dist.world_size,
    }
    without_factor = Calibration(**facts, **rates, factor=1.0, spread=1.0)
    gpu, stack = without_factor.apply(here.gpu, dist.world_size)
    factors = [_estimate(recipe, gpu, stack, dist, precision, compiled) / seconds for recipe, _, seconds in steps]
    factor = statistics.geometric_mean(factors)
    spread = max(_SMALLEST_SPREAD, *(max(each / factor, factor / each) for each in factors))
    return without_factor.model_copy(update={"factor": factor, "spread": spread})


def _estimate(recipe: Config, gpu: GPU, stack: Stack, dist: DistContext, precision: Precision, compiled: bool) -> float:
    """Seconds of a step with the measured rates."""
    layout = Layout(
        micro_batch_size=recipe.train.total_batch_size // recipe.model.block_size // dist.world_size,
        gpus=dist.world_size,
        precision=precision.name,
        compiled=compiled,
        device=dist.device.type,
    )
    return speed.step_time(plan.work_of(recipe.model, layout), gpu, stack.constants).seconds


def _recipe(config: Config, shape: tuple[int, ...], dist: DistContext, precision: Precision) -> Config:
    """The settings of a step of one micro batch."""
    n_layer, n_head, n_embd, block_size, sequences = shape
    values = {
        "model": {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size},
        "train": {"total_batch_size": sequences * block_size * dist.world_size, "micro_batch_size": sequences},
        "system": {"compile": config.system.compile, "precision": precision.name, "device": dist.device.type},
    }
    return settings.Config.model_validate(values)


def _measure_step(recipe: Config, dist: DistContext, precision: Precision) -> tuple[Config, bool, float]:
    """The recipe, whether its step was compiled, and seconds of a step."""
    batches = recipe.batch_plan(dist.world_size, devices.micro_batch_tokens(dist.device))
    state = build.build_state(recipe, None, None, dist, precision)
    model = build.wrap_for_training(state, recipe.train, recipe.system, batches, dist, precision)
    size = (batches.micro_batch_size, recipe.model.block_size)
    idx = torch.randint(recipe.model.vocab_size, size, device=dist.device)
    seconds = _time(lambda: _step(state, model, idx), dist, warm_up=2)
    compiled = model.compiled
    model.module = torch.nn.Identity()
    gc.collect()
    devices.release_memory(dist.device)
    return recipe, compiled, seconds


def _step(state: TrainState, model: TrainingModel, idx: torch.Tensor) -> None:
    """An optimizer step, as `Trainer` takes it."""
    with model.dist.gradient_sync(model.module, last=True):
        state.scaler.scale(model.loss(idx, idx)).backward()  # type: ignore[no-untyped-call]
    norm = clip_gradients(state.model, 1.0)
    skip = torch.zeros_like(norm)
    for optimizer in state.optimizers:
        step_unless(skip, optimizer)
        optimizer.zero_grad(set_to_none=True)
    norm.item()


def _measure_rates(dist: DistContext, precision: Precision) -> dict[str, float]:
    """Rates of single operations, as fields of `Calibration`."""
    rows = 2048 if dist.device.type == "cpu" else 16384
    narrow = _matmul_flops(_NARROW, rows, dist, precision)
    wide = _matmul_flops(_WIDE, rows, dist, precision)
    # rate(C) = R / (1 + w / C), from two rates
    width = max(0.0, (wide / narrow - 1) / (1 / _NARROW - wide / narrow / _WIDE)) if wide > narrow else 0.0
    if not 0 <= width < 100 * _WIDE:
        width = 100.0 * _WIDE
    rates = {"matmul_tflops": wide * (1 + width / _WIDE) / 1e12, "width": width}
    rates["attention_tflops"] = _attention_flops(dist, precision) / 1e12
    rates["bandwidth"] = _bandwidth(dist) / 1e9
    rates["link"] = _link(dist) / 1e9
    return rates


def _matmul_flops(channels: int, rows: int, dist: DistContext, precision: Precision) -> float:
    """FLOP/s of the linear layers of a block, forward and backward."""
    shapes = [(channels, 3 * channels), (channels, channels), (channels, 4 * channels), (4 * channels, channels)]
    layers = [
        (
            torch.randn(rows, n_in, device=dist.device, dtype=precision.dtype, requires_grad=True),
            torch.randn(n_out, n_in, device=dist.device, dtype=precision.dtype, requires_grad=True),
        )
        for n_in, n_out in shapes
    ]

    def multiply() -> None:
        for x, weight in layers:
            y = ops.linear(x, weight)
            torch.autograd.backward(y, torch.ones_like(y))
            x.grad = weight.grad = None

    return 6 * 12 * channels**2 * rows / _time(multiply, dist)


def _attention_flops(dist: DistContext, precision: Precision) -> float:
    """FLOP/s of causal attention, forward and backward; half of the products count."""
    batch, heads, length, size = (2, 12, 512, 64) if dist.device.type == "cpu" else (16, 12, 1024, 64)
    shape = (batch, heads, length, size)
    q, k, v = (torch.randn(shape, device=dist.device, dtype=precision.dtype, requires_grad=True) for _ in range(3))

    def attend() -> None:
        y = ops.attention(q, k, v)
        torch.autograd.backward(y, torch.ones_like(y))
        q.grad = k.grad = v.grad = None

    return 6 * heads * size * length * batch * length / _time(attend, dist)


def _bandwidth(dist: DistContext) -> float:
    """Bytes per second of a sum of two tensors that no cache holds: two reads and a write."""
    count = 2**25 if dist.device.type == "cpu" else 2**28
    a, b = (torch.zeros(count, device=dist.device) for _ in range(2))
    return 12 * count / _time(lambda: a.add_(b), dist)


def _link(dist: DistContext) -> float:
    """Bytes per second between ranks in a ring, by an all-reduce of the gradients of 25M parameters."""
    if dist.world_size == 1:
        return 0.0
    values = torch.zeros(25_000_000, device=dist.device)
    moved = 2 * (dist.world_size - 1) / dist.world_size * values.nbytes
    return moved / _time(lambda: dist.sum(values), dist)


def _time(work: Callable[[], object], dist: DistContext, warm_up: int = 1, least: float = 0.5) -> float:
    """Median seconds of a call, over at least `least` seconds and three repetitions; the slowest rank's."""
    seconds: list[float] = []
    for number in range(warm_up + 1000):
        devices.synchronize(dist.device)
        start = time.perf_counter()
        work()
        devices.synchronize(dist.device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
        enough = len(seconds) >= _REPETITIONS and sum(seconds) >= least
        if dist.all_reduce_max(int(not enough)) == 0:
            break
    return dist.all_reduce_max(math.ceil(statistics.median(seconds) * 1e9)) / 1e9
