"""Curves of a run, drawn once: as PNG for a folder, as SVG whose colours follow the page it stands in.

metrics.jsonl ──read_metrics──▶ lines ──series──▶ (steps, values) ──▶ Figure ──▶ loss_curve.png │ <svg>
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, float]]

INK, FAINT, TRAIN, VAL, REFERENCE = "#1f2328", "#8a929c", "#8aa5cc", "#b3401f", "#2f7d4f"
# In a page the same colours are variables of its style sheet, so that light and dark each have their own.
_VARIABLES = {INK: "--ink", FAINT: "--faint", TRAIN: "--train", VAL: "--val", REFERENCE: "--reference"}


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without a last one that is still being written; empty without the file."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # a whole line ends in a newline, so the last part is never one


def series(metrics: Metrics, key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have `key`, and not null, which stands for nan."""
    pairs = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def loss_figure(metrics: Metrics, reference: tuple[str, float] | None = None) -> "Figure":
    """Training loss, validation loss, and a dashed line at a `reference` (label, value) to compare with."""
    figure, axes = _axes("loss (nats a token)")
    axes.plot(*series(metrics, "train/loss"), color=TRAIN, linewidth=0.9, label="train")
    steps, values = series(metrics, "val/loss")
    axes.plot(steps, values, color=VAL, marker="o", markersize=3, linewidth=1.6, label="validation")
    if values:
        _label(axes, steps[-1], values[-1], f"{values[-1]:.3f}", VAL)
    if reference is not None:
        label, value = reference
        axes.axhline(value, color=REFERENCE, linestyle="--", linewidth=1.1, label=label)
    axes.legend(frameon=False, labelcolor=INK)
    return figure


def curve_figure(metrics: Metrics, key: str, ylabel: str, references: Sequence[tuple[str, float]] = ()) -> "Figure":
    """One metric over the steps, with dashed lines to compare with."""
    figure, axes = _axes(ylabel)
    steps, values = series(metrics, key)
    axes.plot(steps, values, color=VAL, linewidth=1.3)
    for label, value in references:
        axes.axhline(value, color=REFERENCE, linestyle="--", linewidth=1.1)
        axes.annotate(
            label, (0.01, value), xycoords=("axes fraction", "data"), va="bottom", color=REFERENCE, fontsize=9
        )
    if not references:
        axes.set_ylim(bottom=0)
    return figure


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure atomically."""
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def to_svg(figure: "Figure") -> str:
    """The figure as an inline `<svg>` that scales with its column and takes its colours from the page."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gpt2lab"}):  # text stays text; ids do not change
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1), count=1
    )
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def _axes(ylabel: str) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(color=FAINT, alpha=0.2)
    axes.tick_params(colors=FAINT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    return figure, axes


def _label(axes: Any, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), xytext=(-4, 8), textcoords="offset points", ha="right", color=color)
