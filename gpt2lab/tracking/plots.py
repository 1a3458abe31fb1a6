"""Plots of runs, as PNG files and as SVG whose colors are those of the page's style sheet.

Run ──▶ Line (name, color, marker, scale) ──▶ Figure ──▶ loss_curve.png │ <svg>

A run has the same color and marker in every plot. The colors can be distinguished with color vision deficiency, and
the markers without color.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2lab import files, outputs
from gpt2lab.tracking.foreign_logs import ForeignLog
from gpt2lab.tracking.records import Curve, Run
from gpt2lab.tracking.reference import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, REFERENCE, PAPER = "#1f2328", "#6b7480", "#5c636d", "#fefefe"
COLORS = ("#0546a8", "#8f3300", "#12a37a", "#cc68b6", "#a18f33", "#8d84fb")
MARKERS = ("o", "s", "^", "D", "v", "P")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚")  # the same, as text
# In a page, each color is replaced by a variable of the style sheet, which differs between light and dark mode.
_VARIABLES = {INK: "--ink", FAINT: "--faint", REFERENCE: "--reference", PAPER: "--page"}
_VARIABLES |= {color: f"--run{index}" for index, color in enumerate(COLORS)}

# In points, which are the units of the SVG: a page scales a plot with its text to the width of the column. `NARROW` is
# for phones and half the width of a desktop page, `WIDE` for its full width.
NARROW, WIDE = (390, 275), (860, 370)
FONT = 12
POINTS = {True: 200, False: 120}  # of a line, by whether its plot has only one


class Line(NamedTuple):
    """Run number n of a page, or a log. `scale` is the length of a step on the x axis: 1, or its tokens.

    `minutes` of training up to each step, from step 0 on, are the x axis in place of the steps.
    """

    run: Run | ForeignLog
    number: int
    scale: int
    minutes: np.ndarray | None = None

    def place(self, steps: np.ndarray) -> np.ndarray:
        """Convert steps (N,) to positions on the x axis."""
        if self.minutes is None:
            return steps * self.scale
        return np.asarray(np.interp(steps, np.arange(len(self.minutes)), self.minutes))

    @property
    def style(self) -> dict[str, Any]:
        """Color, marker and line style for matplotlib; the seventh run has the color of the first one, dashed."""
        index, repetition = self.number % len(COLORS), self.number // len(COLORS)
        return {"color": COLORS[index], "marker": MARKERS[index], "linestyle": ("-", "--", ":")[repetition % 3]}


class Reference(NamedTuple):
    """A published value, shown as a dashed line with its label above it on the left or on the right."""

    label: str
    value: float
    right: bool = False


class Downsampled(NamedTuple):
    """A curve with fewer points: the mean, minimum and maximum of consecutive values, float64 (N,) each."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def build_lines(runs: Sequence[Run | ForeignLog]) -> list[Line]:
    """Assign each run a line. The x axis is tokens if steps have different numbers of tokens and all are known."""
    sizes = {run.tokens_per_step for run in runs}
    over_tokens = len(sizes) > 1 and None not in sizes
    return [Line(run, i, (over_tokens and run.tokens_per_step) or 1) for i, run in enumerate(runs)]


def downsample(curve: Curve, points: int) -> Downsampled:
    """Average a curve over equally many consecutive points.

    Args:
        curve: of any length.
        points: maximum length of the result.

    Returns:
        The averages with the minimum and maximum of their values.
    """
    steps, values = curve
    if len(steps) <= points:
        return Downsampled(steps, values, values, values)
    starts = np.linspace(0, len(steps), points, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(steps)))
    return Downsampled(
        np.add.reduceat(steps, starts) / counts,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def loss_range(lines: Sequence[Line], reference: Reference | None = None) -> tuple[float, float] | None:
    """The range of the loss axis, without the first steps of long runs, whose losses would compress the rest.

    Args:
        lines: the runs.
        reference: a value that must be within the range.

    Returns:
        Lower and upper end; None for the full range, if a run is short.
    """
    curves = [curve for line in lines if len((curve := line.run.curve("train/loss")).steps)]
    if not curves or min(curve.steps[-1] for curve in curves) < 2000:  # steps: logs often have one in ten or a hundred
        return None
    losses = [curve.values for curve in curves]
    low = min(float(values.min()) for values in losses)
    top = max(float(np.percentile(values, 95)) for values in losses)
    low = min(low, reference.value if reference else low)
    height = 1.25 * (top - low)
    return low - 0.06 * height, low + height


def loss_figure(
    lines: Sequence[Line],
    reference: Reference | None = None,
    size: tuple[int, int] = WIDE,
    *,
    band: Band | None = None,
) -> "Figure":
    """Plot the training loss as a thin line and the validation loss as a thick one.

    Args:
        lines: the runs.
        reference: a published value to compare with.
        size: width and height in points.
        band: of published runs, to shade.

    Returns:
        The figure.
    """
    figure, axes = _axes(lines, size)
    for line in lines:
        _draw(axes, line, "train/loss", faint=True, alone=len(lines) == 1)
        steps, values = _draw(axes, line, "val/loss")
        if len(lines) == 1 and len(values):
            axes.annotate(
                f"{values[-1]:.3f}",
                (steps[-1], values[-1]),
                xytext=(0, 9),
                textcoords="offset points",
                ha="right",
                color=COLORS[0],
                fontsize=FONT,
                fontweight="bold",
            )
    if band is not None:
        _draw_band(axes, lines, band)
    if (limits := loss_range(lines, reference)) is not None:
        axes.set_ylim(limits)
    if reference is not None:
        _draw_references(axes, [reference])
    return figure


def curve_figure(
    lines: Sequence[Line],
    key: str,
    references: Sequence[Reference] = (),
    size: tuple[int, int] = NARROW,
    *,
    share: bool = False,
    band: Band | None = None,
) -> "Figure":
    """Plot one metric.

    Args:
        lines: the runs.
        key: of the metric.
        references: published values to compare with.
        size: width and height in points.
        share: show the values as percentages.
        band: of published runs, to shade.

    Returns:
        The figure.
    """
    from matplotlib.ticker import PercentFormatter

    figure, axes = _axes(lines, size)
    for line in lines:
        _draw(axes, line, key, alone=len(lines) == 1)
    if band is not None:
        _draw_band(axes, lines, band)
    if references:
        _draw_references(axes, references)
    else:
        curves = [line.run.curve(key).values for line in lines]
        top = max((float(np.percentile(values, 99)) for values in curves if len(values)), default=0.0)  # no outliers
        axes.set_ylim(0, 1.15 * top or 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1) if share else lambda y, _: format_number(y))
    return figure


def save_png(figure: "Figure", path: Path, title: str, lines: Sequence[Line]) -> None:
    """Write a figure with its title and, for several runs, a legend.

    Args:
        figure: the figure.
        path: of the file.
        title: of the figure.
        lines: the runs.

    Raises:
        GPT2LabError: the file cannot be written.
    """
    from matplotlib.lines import Line2D

    axes = figure.axes[0]
    axes.set_title(title, loc="left", color=INK, fontsize=FONT)
    if len(lines) > 1:
        handles = [Line2D([], [], **line.style) for line in lines]
        legend = axes.legend(handles, [line.run.name for line in lines], frameon=False, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
    with warnings.catch_warnings(), files.atomic_write(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # in the names of runs
        figure.savefig(temporary, format="png", dpi=120, facecolor="white", metadata=outputs.PICTURE_METADATA)


def to_svg(figure: "Figure", label: str) -> str:
    """Convert a figure to an inline `<svg>` that scales with its column and has the colors of the page.

    Args:
        figure: the figure.
        label: for screen readers; also makes the ids of the plots of a page distinct.

    Returns:
        The element.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # text as text; deterministic ids
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening) + f' role="img" aria-label="{label}"'
    svg = re.sub(r' id="[\w.]+_\d+"', "", f"{opening}>{rest}")  # ids of groups, which are not referenced
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def format_number(number: float) -> str:
    """A number with three digits: `0.25`, `922K`, `1.5M`, `10B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= 0.9995 * size:  # the smallest number that rounds to it
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _axes(lines: Sequence[Line], size: tuple[int, int]) -> "tuple[Figure, Axes]":
    over_tokens = any(line.scale > 1 for line in lines)
    unit = "minutes of training" if lines[0].minutes is not None else "tokens" if over_tokens else "optimizer step"
    figure, axes = new_axes(unit, size)
    axes.locator_params("x", nbins=7 if size == WIDE else 4, integer=True)
    axes.xaxis.set_major_formatter((lambda x, _: format_number(x)) if over_tokens else "{x:,.0f}")
    return figure, axes


def new_axes(x_label: str, size: tuple[int, int]) -> "tuple[Figure, Axes]":
    """An empty plot in the style of the pages.

    Args:
        x_label: of the x axis.
        size: width and height in points.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=FAINT, fontsize=FONT)
    axes.locator_params("y", nbins=7)
    axes.grid(axis="y", color=FAINT, alpha=0.22)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=FONT, labelcolor=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.margins(x=0.02)
    return figure, axes


def _draw(axes: "Axes", line: Line, key: str, *, faint: bool = False, alone: bool = False) -> Curve:
    """Draw a metric of a run; alone in its plot, with the range of the values behind each point."""
    steps, mean, low, high = downsample(line.run.curve(key), POINTS[alone])
    x, style = line.place(steps), line.style
    if faint:
        style |= {"marker": "", "linewidth": 0.9, "alpha": 0.55 if alone else 0.6}
    else:
        style |= {"linewidth": 1.9, "markersize": 4.5, "markevery": max(1, len(x) // 12)}
        if len(x) > 60:
            style |= {"linewidth": 1.3} | ({"marker": ""} if alone else {})
    axes.plot(x, mean, **style)
    if alone and low is not high:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
    return Curve(x, mean)


def _draw_band(axes: "Axes", lines: Sequence[Line], band: Band) -> None:
    """Shade the band of published runs as far as the lines go; the first line is a run whose tokens are known."""
    left, right = axes.get_xlim()
    positions = band.tokens / (lines[0].run.tokens_per_step or 1) * lines[0].scale
    x = np.append(positions[positions < right], right if positions[-1] > right else positions[-1])
    low, high = (np.interp(x, positions, end) for end in (band.low, band.high))
    axes.fill_between(x, low, high, color=REFERENCE, alpha=0.22, linewidth=0, zorder=0.5)
    axes.set_xlim(left, right)


def _draw_references(axes: "Axes", references: Sequence[Reference]) -> None:
    for label, value, is_right in references:
        axes.axhline(value, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            label,
            (0.99 if is_right else 0.01, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=REFERENCE,
            fontsize=FONT,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            zorder=1,  # above the grid, below every curve
        )
