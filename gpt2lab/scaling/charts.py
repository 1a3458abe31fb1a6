"""The charts of a scaling run's page: isoFLOP curves, loss and optimum over compute, and runs that were predicted."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2lab.scaling import isoflops
from gpt2lab.scaling.fit import Fits, FormFit
from gpt2lab.scaling.points import Points
from gpt2lab.sweep.charts import Panel, build_panel, smooth_training_loss
from gpt2lab.tracking import plots
from gpt2lab.tracking.plots import COLORS, FAINT, INK, MARKERS, REFERENCE
from gpt2lab.tracking.records import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST = 1e27  # FLOPs of the x axis: a law from small runs may put a size far beyond
_AXIS = "compute, FLOPs"


class Outcome(NamedTuple):
    """A recorded prediction, and what has become of its run.

    Attributes:
        record: the line of predictions.jsonl.
        flops: of the run.
        run: None if there is none, or it has not begun.
        loss: its final validation loss; None if it has not ended.
    """

    record: Mapping[str, Any]
    flops: float
    run: Run | None
    loss: float | None


def draw_isoflops(points: Points) -> Panel | None:
    """The loss over the size for each compute, with the parabola of approach 2 and its minimum.

    Args:
        points: of the fit.

    Returns:
        The chart; None without groups of equal compute.
    """
    groups = isoflops.group_by_compute(points.flops)[: len(COLORS)]
    if not groups:
        return None

    def draw(size: tuple[int, int]) -> "Figure":
        figure, axes = plots.new_axes("parameters N", size)
        axes.set_xscale("log")
        for index, group in enumerate(groups):
            n, loss = np.log(points.n[group]), points.loss[group]
            axes.plot(np.exp(n), loss, color=COLORS[index], marker=MARKERS[index], linestyle="", markersize=5)
            coefficients = np.polyfit(n - n.mean(), loss, 2)
            x = np.linspace(n.min(), n.max(), 60)
            axes.plot(np.exp(x), np.polyval(coefficients, x - n.mean()), color=COLORS[index], linewidth=1.3)
            vertex = n.mean() - coefficients[1] / (2 * coefficients[0])
            if coefficients[0] > 0 and n.min() <= vertex <= n.max():
                lowest = np.polyval(coefficients, vertex - n.mean())
                axes.plot(np.exp(vertex), lowest, color=INK, marker="x", markersize=8, markeredgewidth=2)
        _set_log_axis(axes, "x", plots.format_number)
        return figure

    labels = [f"{_power(float(np.exp(np.log(points.flops[group]).mean())))} FLOPs" for group in groups]
    note = "Runs of equal compute. The curve is a parabola in log N; the cross is its minimum, if that is inside."
    return build_panel("IsoFLOP curves: final validation loss over size", draw, note, labels)


def draw_frontier(fits: Fits, outcomes: Sequence[Outcome]) -> Panel:
    """The loss over compute: the runs, the law's lowest loss, and the predicted intervals with what was reached.

    Args:
        fits: of the runs.
        outcomes: the predictions.

    Returns:
        The chart.
    """
    points, best = fits.points, fits.best()
    computes = [*points.flops, *(outcome.flops for outcome in outcomes)]
    x = np.geomspace(min(computes), 2 * max(computes), 80)

    def draw(size: tuple[int, int]) -> "Figure":
        figure, axes = plots.new_axes(_AXIS, size)
        axes.set_xscale("log")
        axes.plot(points.flops, points.loss, color=COLORS[0], marker=MARKERS[0], linestyle="", markersize=4.5)
        axes.plot(x, [_lowest_loss(best, flops) for flops in x], color=COLORS[1], linewidth=1.6)
        for outcome in outcomes:
            low, high = outcome.record["interval95"]
            axes.plot([outcome.flops] * 2, [low, high], color=COLORS[2], linewidth=2, marker="_", markersize=14)
            if outcome.loss is not None:
                axes.plot(outcome.flops, outcome.loss, color=COLORS[3], marker=MARKERS[3], markersize=4)
        _set_log_axis(axes, "x", _power)
        return figure

    labels = ["run of the fit", f"lowest loss by the {_name(best)}"]
    labels += ["prediction with its 95% interval"] if outcomes else []
    labels += ["held-out run"] if any(outcome.loss is not None for outcome in outcomes) else []
    note = "The law's line is for the optimal size: a run of another size lies above it."
    return build_panel("Frontier: final validation loss over compute", draw, note, labels)


def _lowest_loss(found: FormFit, flops: float) -> float:
    return float(found.law.loss(*found.law.optimum(flops)))


def draw_optimum(fits: Fits, is_size: bool, marks: Mapping[str, float]) -> Panel:
    """The optimal size, or number of tokens, over compute with its interval.

    Args:
        fits: of the runs.
        is_size: N; False: D.
        marks: parameters of published models by name. They are shown where they would be optimal.

    Returns:
        The chart.
    """
    found, two, index = fits.approach3 or fits.best(), fits.approach2, 0 if is_size else 1
    low, high = float(fits.points.flops.min()), float(fits.points.flops.max())
    at = {name: flops for name, n in marks.items() if (flops := _compute_of(found, n)) and flops > low}
    x = np.geomspace(low / 2, max(10 * high, *(2 * flops for flops in at.values()), 0), 80)
    line = np.array([found.law.optimum(flops)[index] for flops in x])

    def draw(size: tuple[int, int]) -> "Figure":
        figure, axes = plots.new_axes(_AXIS, size)
        axes.set_xscale("log")
        axes.set_yscale("log")
        if found.draws:
            every = np.array([[draw.optimum(flops)[index] for flops in x] for draw in found.draws])
            ends = np.percentile(every, [2.5, 97.5], axis=0)
            axes.fill_between(x, ends[0], ends[1], color=COLORS[0], alpha=0.18, linewidth=0)
        axes.plot(x, line, color=COLORS[0], linewidth=1.6)
        if two is not None:
            factor, exponent = (two.n_factor, two.a) if is_size else (two.d_factor, two.b)
            axes.plot(x, factor * x**exponent, color=COLORS[1], linewidth=1.2, linestyle="--")
            minima = [minimum for minimum in two.minima if minimum.interior]
            values = [minimum.parameters if is_size else minimum.tokens for minimum in minima]
            axes.plot([minimum.flops for minimum in minima], values, color=COLORS[1], marker=MARKERS[1], linestyle="")
        for number, (name, flops) in enumerate(at.items()):
            axes.plot(flops, found.law.optimum(flops)[index], color=INK, marker="D", markersize=4)
            axes.annotate(
                name,
                (flops, found.law.optimum(flops)[index]),
                xytext=(-5, 4) if number % 2 else (5, -11),  # neighbours may be close
                textcoords="offset points",
                ha="right" if number % 2 else "left",
                color=REFERENCE,
                fontsize=9,
            )
        axes.axvspan(low, high, color=FAINT, alpha=0.1, linewidth=0)
        # The interval of a law from few runs may be huge far from them.
        axes.set_ylim(line.min() / 8, line.max() * 8)
        _set_log_axis(axes, "x", _power)
        _set_log_axis(axes, "y", plots.format_number)
        return figure

    labels = [f"{_name(found)}, with its 95% interval", *(["approach 2, and its minima"] if two else [])]
    note = "Gray: the computes of the runs. Beyond them the law is extrapolated."
    note += " Diamonds: where the sizes of GPT-2 would be optimal on this data." if at else ""
    title = "Optimal size N over compute" if is_size else "Optimal tokens D over compute"
    return build_panel(title, draw, note, labels)


def _compute_of(found: FormFit, n: float) -> float | None:
    """The compute for which N is optimal; None if it is beyond the axis."""
    a = found.law.optimal_exponents()[0]
    unit = 1e18
    if a <= 0:
        return None
    exponent = np.log(n / found.law.optimum(unit)[0]) / a
    return float(unit * np.exp(exponent)) if abs(exponent) < np.log(_LARGEST / unit) else None


def draw_outcome(outcome: Outcome) -> Panel | None:
    """The validation loss of a predicted run while it trained, and the predicted interval of the final one.

    Args:
        outcome: of a prediction.

    Returns:
        The chart; None if the run has not begun.
    """
    if outcome.run is None or len(outcome.run.curve("val/loss").steps) < 2:
        return None
    training = smooth_training_loss(outcome.run)
    run, (low, high) = outcome.run, outcome.record["interval95"]
    steps, losses = run.curve("val/loss")

    def draw(size: tuple[int, int]) -> "Figure":
        figure, axes = plots.new_axes("tokens", size)
        axes.axhspan(low, high, color=COLORS[2], alpha=0.25, linewidth=0)
        axes.axhline(outcome.record["loss"], color=COLORS[2], linewidth=1.2, linestyle="--")
        batch = run.settings.train.total_batch_size
        axes.plot(training.steps * batch, training.values, color=COLORS[0], linewidth=0.9, alpha=0.6)
        axes.plot(steps * batch, losses, color=COLORS[0], marker=MARKERS[0], linewidth=1.6, markersize=4)
        top = max(high, losses[-1], *training.values[len(training.values) // 4 :])  # the first losses are above
        axes.set_ylim(min(low, losses.min()) - 0.1 * (high - low), top)
        axes.xaxis.set_major_formatter(lambda value, _: plots.format_number(value))
        return figure

    reached = f" It reached {outcome.loss:.4f}." if outcome.loss is not None else " It has not ended yet."
    when = outcome.record["date"]
    note = f"Thin: training loss. Band: the predicted final loss, {low:.4f} to {high:.4f}, recorded {when}.{reached}"
    return build_panel(f"Predicted run {run.name}: validation loss", draw, note)


def _power(value: float) -> str:
    """A number such as 3e15 or 1.5e15."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _set_log_axis(axes: "Axes", which: str, show: "Callable[[float], str]") -> None:
    """Make an axis logarithmic, with at most eight labels at 1, 2, 5 or at powers of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis, limits = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    low, high = map(math.log10, limits)
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = max(1, math.ceil(len(decades) / 7))
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades[::every] for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if limits[0] <= tick <= limits[1]]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: show(value))


def _name(found: FormFit) -> str:
    return "approach 3" if found.form == "approach3" else "coupled form"
