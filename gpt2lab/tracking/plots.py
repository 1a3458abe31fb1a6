"""Curves of runs, drawn once: as PNG for a folder, as SVG whose colours follow the page it stands in.

Run ──▶ Line (name, colour, marker, scale) ──▶ Figure ──▶ loss_curve.png │ <svg>

A run has one colour and one marker on every chart. The colours are told apart by people who confuse red and green,
or blue and yellow; the markers by those who see or print no colour.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2lab import files
from gpt2lab.tracking.records import Curve, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, REFERENCE, PAPER = "#1f2328", "#6b7480", "#5c636d", "#fefefe"
COLORS = ("#0546a8", "#8f3300", "#12a37a", "#cc68b6", "#a18f33", "#8d84fb")
MARKERS = ("o", "s", "^", "D", "v", "P")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚")  # the same, as text
# In a page the same colours are variables of its style sheet, so that light and dark each have their own.
_VARIABLES = {INK: "--ink", FAINT: "--faint", REFERENCE: "--reference", PAPER: "--page"}
_VARIABLES |= {color: f"--run{index}" for index, color in enumerate(COLORS)}

# In points, which are the SVG's units: a page scales a chart to its column, and letters with it. `NARROW` suits a
# phone and half a desktop's page, `WIDE` the whole of it.
NARROW, WIDE = (390, 275), (860, 370)
FONT = 12
POINTS = {True: 200, False: 120}  # of a line, by whether it is alone in its chart


class Line(NamedTuple):
    """The n-th run of a page as it is drawn. `scale`: what a step is on the x axis, 1 or its tokens."""

    run: Run
    number: int
    scale: int

    @property
    def style(self) -> dict[str, Any]:
        """Colour and marker; the seventh run has the first one's again, dashed."""
        which, again = self.number % len(COLORS), self.number // len(COLORS)
        return {"color": COLORS[which], "marker": MARKERS[which], "linestyle": ("-", "--", ":")[again % 3]}


class Reference(NamedTuple):
    """A published figure, drawn as a dashed line with its label above; on the right where curves begin on its left."""

    label: str
    value: float
    right: bool = False


class Thinned(NamedTuple):
    """A curve in few points: the mean, least and most of the values that fall together, float64 (N,) each."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def lines(runs: Sequence[Run]) -> list[Line]:
    """Runs as lines. Over steps if a step is as many tokens in all of them, else over tokens: only these compare."""
    sizes = {run.settings.train.total_batch_size for run in runs}
    return [Line(run, i, run.settings.train.total_batch_size if len(sizes) > 1 else 1) for i, run in enumerate(runs)]


def thin(curve: Curve, most: int) -> Thinned:
    """At most `most` points, each for equally many measured ones."""
    steps, values = curve
    if len(steps) <= most:
        return Thinned(steps, values, values, values)
    starts = np.linspace(0, len(steps), most, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(steps)))
    return Thinned(
        np.add.reduceat(steps, starts) / counts,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def loss_range(drawn: Sequence[Line], reference: Reference | None = None) -> tuple[float, float] | None:
    """The part of the loss axis that is shown: not a long run's first steps, which would leave no height to the rest.

    None, for all of it, where a run is so short that the beginning is what there is to see.
    """
    losses = [line.run.curve("train/loss").values for line in drawn]
    if not losses or min(map(len, losses)) < 2000:
        return None
    low = min(float(values.min()) for values in losses)
    top = max(float(np.percentile(values, 95)) for values in losses)
    low = min(low, reference.value if reference else low)
    height = 1.25 * (top - low)
    return low - 0.06 * height, low + height


def loss_figure(drawn: Sequence[Line], reference: Reference | None = None, size: tuple[int, int] = WIDE) -> "Figure":
    """Training loss as a thin line, validation loss as a strong one, and a published value to compare with."""
    figure, axes = _axes(drawn, size)
    for line in drawn:
        _draw(axes, line, "train/loss", faint=True, alone=len(drawn) == 1)
        steps, values = _draw(axes, line, "val/loss")
        if len(drawn) == 1 and len(values):
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
    if (shown := loss_range(drawn, reference)) is not None:
        axes.set_ylim(shown)
    if reference is not None:
        _refer(axes, [reference])
    return figure


def curve_figure(
    drawn: Sequence[Line],
    key: str,
    references: Sequence[Reference] = (),
    size: tuple[int, int] = NARROW,
    *,
    share: bool = False,
) -> "Figure":
    """One metric, with published values to compare with; `share` shows it in percent."""
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    figure, axes = _axes(drawn, size)
    for line in drawn:
        _draw(axes, line, key, alone=len(drawn) == 1)
    if references:
        _refer(axes, references)
    else:
        values = [line.run.curve(key).values for line in drawn if len(line.run.curve(key).values)]
        top = max((float(np.percentile(one, 99)) for one in values), default=0.0)  # one wild step is not the scale
        axes.set_ylim(0, 1.15 * top or 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1) if share else FuncFormatter(lambda y, _: short(y)))
    return figure


def save_png(figure: "Figure", path: Path, title: str, drawn: Sequence[Line]) -> None:
    """Write a figure atomically, with what the page says around it: its title, and whose line is whose."""
    import warnings

    from matplotlib.lines import Line2D

    axes = figure.axes[0]
    axes.set_title(title, loc="left", color=INK, fontsize=FONT)
    if len(drawn) > 1:
        keys = [Line2D([], [], **line.style) for line in drawn]
        legend = axes.legend(keys, [line.run.name for line in drawn], frameon=False, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
    with warnings.catch_warnings(), files.atomic_write(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a run's name may be in any script
        figure.savefig(temporary, format="png", dpi=120, facecolor="white")


def to_svg(figure: "Figure", label: str) -> str:
    """The figure as an inline `<svg>` that scales with its column and takes its colours from the page.

    Args:
        label: for people who hear the page; also keeps the ids of a page's charts apart.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # text stays text; ids do not change
        facts = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=facts)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening) + f' role="img" aria-label="{label}"'
    svg = re.sub(r' id="[\w.]+_\d+"', "", f"{opening}>{rest}")  # names of groups, which nothing refers to
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def short(number: float) -> str:
    """922K, 1.5M, 10B; below a thousand as it is."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= 0.9995 * size:  # what rounds to it
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _axes(drawn: Sequence[Line], size: tuple[int, int]) -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
    axes = figure.add_subplot()
    by_tokens = any(line.scale > 1 for line in drawn)
    axes.set_xlabel("tokens" if by_tokens else "optimizer step", color=FAINT, fontsize=FONT)
    round_numbers = [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(MaxNLocator(7 if size == WIDE else 4, steps=round_numbers, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x) if by_tokens else f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=round_numbers))
    axes.grid(axis="y", color=FAINT, alpha=0.22)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=FONT, labelcolor=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.margins(x=0.02)
    return figure, axes


def _draw(axes: Any, line: Line, key: str, *, faint: bool = False, alone: bool = False) -> Curve:
    """A run's metric as a line; alone in its chart, with the range of the values that a point stands for."""
    steps, mean, low, high = thin(line.run.curve(key), POINTS[alone])
    x, style = steps * line.scale, line.style
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


def _refer(axes: Any, references: Sequence[Reference]) -> None:
    for label, value, right in references:
        axes.axhline(value, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            label,
            (0.99 if right else 0.01, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right" if right else "left",
            color=REFERENCE,
            fontsize=FONT,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            zorder=1,  # above the grid, below every curve
        )
