"""Compares training steps: contenders in processes of their own take turns.

settings ──▶ Shape ──▶ ContenderProcess of each ──▶ rounds of a few steps, in turns ──▶ medians ──▶ table, JSON, chart
"""

import contextlib
import functools
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt2lab import logs, progress
from gpt2lab.bench import checkouts, ladder, measure, results, rivals
from gpt2lab.bench.gpt2lab_step import gpt2lab_step, profile_step
from gpt2lab.bench.limits import matmul_flops, run_matmuls
from gpt2lab.bench.process import ContenderProcess, StepTimes
from gpt2lab.bench.rivals import Shape
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_time_left
from gpt2lab.model import flops
from gpt2lab.options import BenchOptions
from gpt2lab.system import device as devices
from gpt2lab.system import precision

START_SECONDS = 8.0  # of a process, with its imports
WARM_UP = 3  # steps that are not counted: allocation, compilation, caches
Contenders = dict[str, tuple[Callable[..., None], tuple[Any, ...]]]  # by name: function, arguments after `on_step`

logger = logging.getLogger(__name__)


def run(config: Config, options: BenchOptions) -> None:
    """Measure, and print the result.

    Args:
        config: the run whose step is timed. An `auto` micro batch is the default of the device, the same for all.
        options: contenders, and what to write.

    Raises:
        GPT2LabError: unknown rival, or gpt2lab's own step does not run.
    """
    if unknown := [name for name in options.rivals if name not in rivals.RIVALS]:
        raise GPT2LabError(f"no rival {unknown[0]}; there are {', '.join(rivals.RIVALS)}, or none")
    device = devices.choose(config.system.device)
    policy = precision.choose(config.system.precision, device)
    plan = config.batch_plan(1, devices.micro_batch_tokens(device))
    config = _with_micro_batch(config, plan.micro_batch_size)
    shape = Shape(config.model, plan.micro_batch_size, plan.grad_accum_steps, device.type)
    if options.profile:
        profile_step(config, device, Path(options.profile), warm_up=WARM_UP)
        return
    contenders: Contenders = {"gpt2lab": (gpt2lab_step, (config,))}
    contenders |= _ladder_stages(shape) if options.ladder else _rivals(options, shape)
    contenders["limit"] = (run_matmuls, (shape, policy.dtype))
    with progress.Phase("estimating the duration"):
        seconds = _estimate_seconds(len(contenders), options, shape, device)
    logger.info("%d contenders, %d steps each: about %s", len(contenders), _steps(options), format_time_left(seconds))
    times = _time_contenders(contenders, options, device)

    limit = matmul_flops(shape) / statistics.median(times.pop("limit").seconds)
    rows = [results.build_row(name, steps, shape, limit, device) for name, steps in times.items()]
    if options.ladder:
        rows.append(rows.pop(0))  # gpt2lab is the last stage
    environment = measure.environment(device)
    environment |= {"B": shape.B, "T": shape.model.block_size, "accumulation": shape.accumulation}
    environment |= {"precision": policy.name, "compile": config.system.compile}
    limits = {"matrix_products": str(policy.dtype).removeprefix("torch."), "flops_per_second": limit}
    if options.chart:
        with progress.Phase("drawing the chart"):
            results.draw_chart(rows, Path(options.chart))
        logger.info("wrote %s", options.chart)
    if options.as_json:
        logs.print_result(json.dumps({"rows": rows, "limits": limits, "environment": environment}))
    else:
        logs.print_result(results.format_table(rows, limits, environment))


def _with_micro_batch(config: Config, size: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": size})})


def _steps(options: BenchOptions) -> int:
    """Steps of each contender, with those of the warm-up."""
    return WARM_UP + options.rounds * options.steps


def _estimate_seconds(contenders: int, options: BenchOptions, shape: Shape, device: torch.device) -> float:
    """A rough estimate before the start: steps at half the rate of a fp32 matrix product, and the start of processes.

    The estimate may be off by a factor of two: a step also has other operations, but some contenders use bf16.
    """
    size = 1024 if device.type == "cpu" else 8192
    a = torch.ones(size, size, device=device)
    product = min(measure.time_call(lambda: a @ a, device) for _ in range(3))
    seconds_per_step = 2 * flops.flops_per_token(shape.model) * shape.tokens / (2 * size**3 / product)
    return contenders * (_steps(options) * seconds_per_step + START_SECONDS)


def _ladder_stages(shape: Shape) -> Contenders:
    stages, skipped = ladder.build_stages(shape.device)
    for name, reason in skipped.items():
        logger.info("left out: %s: %s", name, reason)
    return {stage.name: (ladder.run_stage, (shape, stage)) for stage in stages}


def _rivals(options: BenchOptions, shape: Shape) -> Contenders:
    folders = checkouts.folders(options)
    names = dict.fromkeys((*options.rivals, *(name for name, folder in folders.items() if folder)))
    return {name: (rivals.RIVALS[name], (shape, folders[name]) if name in folders else (shape,)) for name in names}


def _time_contenders(contenders: Contenders, options: BenchOptions, device: torch.device) -> dict[str, StepTimes]:
    """The steps of each contender that can run here."""
    # A process that is killed in a step leaves semaphores behind, and Python's resource tracker warns of them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning")
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpt2lab-bench-", ignore_cleanup_errors=True))
        processes: dict[str, ContenderProcess] = {}
        failed: set[str] = set()

        def time_steps(name: str, count: int) -> StepTimes | None:
            """The next steps of a contender; None if it has failed, now or before."""
            if name in failed:
                return None
            try:
                if name not in processes:
                    processes[name] = ContenderProcess(name, *contenders[name], device, scratch)
                    stack.callback(processes[name].close)
                return processes[name].time_steps(count)
            except GPT2LabError as error:
                if name in ("gpt2lab", "limit"):
                    raise
                logger.warning("left out: %s", error)
                failed.add(name)
                return None

        for name in contenders:
            with progress.Phase(f"starting {name}, with {WARM_UP} steps that do not count"):
                first = time_steps(name, WARM_UP)
            if first is not None:
                logger.info("ready: %s", rivals.describe(name, device.type))
        turns = {name: functools.partial(time_steps, name, options.steps) for name in contenders if name not in failed}
        rounds = measure.take_turns(turns, options.rounds)
    return {
        name: StepTimes([second for turn in done for second in turn.seconds], done[-1].peak_memory_gib)
        for name in rounds
        if name not in failed and (done := [turn for turn in rounds[name] if turn is not None])
    }
