"""The result of a comparison as rows, a table on the screen and a bar chart."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2lab import files, outputs
from gpt2lab.bench import rivals
from gpt2lab.bench.measure import format_environment
from gpt2lab.bench.process import StepTimes
from gpt2lab.bench.rivals import Shape
from gpt2lab.model import flops
from gpt2lab.system import device as devices

_COLUMNS = 80  # of a terminal


def build_row(name: str, times: StepTimes, shape: Shape, limit: float, device: torch.device) -> dict[str, Any]:
    """The figures of a contender, by the median of its steps.

    Args:
        name: of the contender.
        times: of its steps.
        shape: of a step.
        limit: FLOP/s that the hardware reaches with matrix products alone.
        device: where the steps ran.
    """
    median = statistics.median(times.seconds)
    tokens_per_second = shape.tokens / median
    achieved = flops.flops_per_token(shape.model) * tokens_per_second
    peak = devices.peak_flops(device)
    return {
        "name": name,
        "measured": rivals.describe(name, shape.device),
        "ms_per_step": median * 1e3,
        "ms_fastest": min(times.seconds) * 1e3,
        "ms_slowest": max(times.seconds) * 1e3,
        "tokens_per_second": tokens_per_second,
        "mfu": achieved / peak if peak else None,
        "share_of_limit": achieved / limit,
        "peak_memory_gib": times.peak_memory_gib,
    }


def format_table(rows: Sequence[dict[str, Any]], limits: dict[str, Any], environment: Mapping[str, object]) -> str:
    """The rows, the ratio of each to gpt2lab, the limit and the machine, as lines."""
    reference = next(row for row in rows if row["name"] == "gpt2lab")
    head = f"{'ms/step':>9} {'(range)':>15} {'tokens/s':>9} {'MFU':>6} {'of limit':>8} {'GiB':>5} {'gpt2lab is':>10}"
    width = _COLUMNS - len(head)
    lines = [f"{'':{width}}{head}"]
    for row in rows:
        spread = f"({row['ms_fastest']:.0f}-{row['ms_slowest']:.0f})"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else "-"
        ratio = f"{row['ms_per_step'] / reference['ms_per_step']:.2f}x"
        name = row["measured"]
        if len(name) >= width:  # a line of its own
            lines.append(name)
            name = ""
        lines.append(
            f"{name:{width}}{row['ms_per_step']:9.1f} {spread:>15} {row['tokens_per_second']:9,.0f} "
            f"{mfu:>6} {row['share_of_limit']:8.1%} {row['peak_memory_gib']:5.1f} {ratio:>10}"
        )
    lines.append(
        f"limit: {limits['flops_per_second'] / 1e12:.3f} TFLOP/s, {limits['matrix_products']} products of these shapes"
    )
    machine = textwrap.fill(format_environment(environment), _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, machine])


def draw_chart(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the milliseconds a step of each row as bars, in a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.55 * len(rows) + 1.0), layout="constrained")
    axes = figure.subplots()
    names, values = [row["measured"] for row in rows], [row["ms_per_step"] for row in rows]
    colours = ["#0b4fa3" if row["name"] == "gpt2lab" else "#9db4d3" for row in rows]
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, [f"{value:,.0f} ms" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.15)
    axes.set_xlabel("milliseconds a step (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata=outputs.PICTURE_METADATA)
