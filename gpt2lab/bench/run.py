"""Composes a comparison: contenders in processes of their own take turns, and what they took becomes a table.

settings ─▶ Shape ─▶ Workers ─▶ rounds of a few steps each, in turn ─▶ medians ─▶ table, JSON, chart
"""

import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2lab import files
from gpt2lab.bench import contenders, ladder
from gpt2lab.bench.contenders import Shape
from gpt2lab.bench.worker import Taken, Worker, flops_of_products, ours, products
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError, RunStoppedError
from gpt2lab.model import flops
from gpt2lab.options import BenchOptions
from gpt2lab.system import device as devices
from gpt2lab.system import precision
from gpt2lab.training.run_directory import commit

WARM_UP = 3  # steps that are not counted: allocation, compilation, caches


def run(config: Config, options: BenchOptions) -> None:
    """Measure and print.

    Args:
        config: the run whose step is timed; `train.micro_batch_size` must be a number.

    Raises:
        GPT2LabError: an unknown rival, or our own step does not run.
    """
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    if unknown := [name for name in options.rivals if name not in contenders.RIVALS]:
        raise GPT2LabError(f"no rival {unknown[0]}; there are {', '.join(contenders.RIVALS)}, or none")
    device = devices.choose(config.system.device)
    kind = precision.choose(config.system.precision, device)
    if config.train.micro_batch_size == "auto":
        raise GPT2LabError("train.micro_batch_size is auto; every contender needs the same number, such as 4")
    plan = config.batch_plan(1, 0)
    shape = Shape(config.model, plan.micro_batch_size, plan.grad_accum_steps, device.type)
    if options.profile:
        _profile(config, shape, Path(options.profile), say)
        return
    # Ending workers in the midst of a step leaves semaphores to the tracker, which would mention them on the screen.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning")
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpt2lab-bench-", ignore_cleanup_errors=True))
        workers: dict[str, Worker] = {}

        def enter(name: str, make: Callable[..., None], *arguments: Any) -> None:
            try:
                worker = Worker(name, make, *arguments, device=device.type, scratch=scratch)
                stack.callback(worker.close)
                worker.take(WARM_UP)
                workers[name] = worker
            except GPT2LabError as error:
                if name == "gpt2lab":
                    raise
                say(f"left out: {error}")

        enter("gpt2lab", ours, config.model_dump(), 40 * shape.tokens + 10_000)
        if options.ladder:
            steps, left_out = ladder.rungs(device.type)
            for name, why in left_out.items():
                say(f"left out: {name}: {why}")
            for rung in steps:
                enter(rung.name, ladder.climb, shape, rung)
        else:
            checkouts = dict(options.checkouts)
            for name in (*options.rivals, *(name for name in checkouts if name not in options.rivals)):
                enter(name, contenders.RIVALS[name], shape, checkouts.get(name))
        dtype = str(kind.dtype).removeprefix("torch.")
        sizes = (shape.B * shape.model.block_size, shape.model.n_embd, shape.model.vocab_size)
        enter("limit", products, *sizes, dtype, device.type)
        taken = _in_turn(workers, options, say)
    limit = flops_of_products(*sizes) / statistics.median(taken.pop("limit").seconds)
    rows = [_row(name, one, shape, limit, device) for name, one in taken.items()]
    if options.ladder:
        rows.append(rows.pop(0))  # ours is the last rung
    environment = {"commit": commit(), "torch": torch.__version__, **devices.describe(device)}
    environment |= {"B": shape.B, "T": shape.model.block_size, "accumulation": shape.accumulation}
    environment |= {"precision": kind.name, "compile": config.system.compile}
    limits = {"matrix_products": dtype, "flops_per_second": limit}
    if options.chart:
        _chart(rows, Path(options.chart))
        say(f"wrote {options.chart}")
    if options.as_json:
        print(json.dumps({"rows": rows, "limits": limits, "environment": environment}))
    else:
        _table(rows, limits, environment)


def _in_turn(workers: dict[str, Worker], options: BenchOptions, say: Callable[[str], None]) -> dict[str, Taken]:
    """Everybody has a turn in every round, so that a busy machine is busy for all."""
    taken: dict[str, list[Taken]] = {name: [] for name in workers}
    for number in range(options.rounds):
        for name, worker in list(workers.items()):
            taken[name].append(worker.take(options.steps))
        say(f"round {number + 1} of {options.rounds}")
    return {
        name: Taken([second for one in parts for second in one.seconds], parts[-1].peak_memory_gib)
        for name, parts in taken.items()
    }


def _row(name: str, taken: Taken, shape: Shape, limit: float, device: torch.device) -> dict[str, Any]:
    median = statistics.median(taken.seconds)
    rate = shape.tokens / median
    work = flops.flops_per_token(shape.model) * rate
    peak = devices.peak_flops(device)
    return {
        "name": name,
        "ms_per_step": median * 1e3,
        "ms_fastest": min(taken.seconds) * 1e3,
        "ms_slowest": max(taken.seconds) * 1e3,
        "tokens_per_second": rate,
        "mfu": work / peak if peak else None,
        "share_of_limit": work / limit,
        "peak_memory_gib": taken.peak_memory_gib,
    }


def _table(rows: Sequence[dict[str, Any]], limits: dict[str, Any], environment: dict[str, Any]) -> None:
    first = next(row for row in rows if row["name"] == "gpt2lab")
    print(
        f"{'':22}{'ms/step':>9} {'(range)':>15} {'tokens/s':>10} {'MFU':>6} {'of limit':>9} {'memory':>9} "
        f"{'gpt2lab is':>11}"
    )
    for row in rows:
        spread = f"({row['ms_fastest']:.0f}-{row['ms_slowest']:.0f})"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else "-"
        ratio = f"{row['ms_per_step'] / first['ms_per_step']:.2f}x"
        print(
            f"{row['name']:22}{row['ms_per_step']:9.1f} {spread:>15} {row['tokens_per_second']:10,.0f} {mfu:>6} "
            f"{row['share_of_limit']:9.1%} {row['peak_memory_gib']:5.1f} GiB {ratio:>11}"
        )
    print(
        f"limit: {limits['flops_per_second'] / 1e12:.3f} TFLOP/s, {limits['matrix_products']} products of these shapes"
    )
    print("; ".join(f"{key} {value}" for key, value in environment.items()))


def _chart(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of milliseconds a step, the first at the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.55 * len(rows) + 1.0), layout="constrained")
    axes = figure.subplots()
    names, values = [row["name"] for row in rows], [row["ms_per_step"] for row in rows]
    colours = ["#0b4fa3" if name == "gpt2lab" else "#9db4d3" for name in names]
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, [f"{value:,.0f} ms" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.15)
    axes.set_xlabel("milliseconds a step (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


class _Enough(Exception):
    """The profile has what it wants."""


def _profile(config: Config, shape: Shape, path: Path, say: Callable[[str], None]) -> None:
    """A Chrome trace of two steps after the warm-up, and a table of the operations that took longest."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if shape.device == "cuda" else [])
    profiler = profile(activities=activities)
    calls = itertools.count()

    def between() -> None:
        taken = next(calls)
        if taken == WARM_UP:
            profiler.start()
        if taken == WARM_UP + 2:
            devices.synchronize(torch.device(shape.device))
            profiler.stop()
            raise _Enough

    try:
        ours(between, config.model_dump(), 40 * shape.tokens + 10_000)
    except _Enough:
        pass
    except RunStoppedError:  # what was saved is gone with the scratch folder
        raise KeyboardInterrupt from None
    with files.atomic_write(path) as temporary:
        profiler.export_chrome_trace(str(temporary))
    order = "self_cuda_time_total" if shape.device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))
    say(f"wrote {path}; open it in chrome://tracing or ui.perfetto.dev")
