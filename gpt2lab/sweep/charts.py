"""The charts of a sweep's page: the loss of all runs while they trained, and the final loss over each setting.

Many runs share six colors and markers. Where there are more lines than these, the best have them and others are gray.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2lab.tracking import plots
from gpt2lab.tracking.plots import COLORS, FAINT, GLYPHS, MARKERS, NARROW, WIDE
from gpt2lab.tracking.records import Curve, Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG_RATIO = 4.0  # of the largest to the smallest value of a setting, from which on its axis is logarithmic
_BEGINNING = 0.1  # share of the steps whose losses may be above the plot
_FEW = 6  # points from which on a curve shows how a run learns


class Key(NamedTuple):
    """An entry of a legend: the number of the color and marker, the marker as text, the label."""

    number: int
    glyph: str
    label: str


class Panel(NamedTuple):
    """A chart with its legend; `wide` is another size of it for large screens, if it takes the full width."""

    title: str
    narrow: str
    wide: str = ""
    note: str = ""
    legend: tuple[Key, ...] = ()


class Result(NamedTuple):
    """A finished run: its settings by dotted name, and its final validation loss."""

    run: Run
    settings: Mapping[str, Any]
    loss: float


def build_panel(
    title: str,
    draw: "Callable[[tuple[int, int]], Figure]",
    note: str = "",
    labels: Sequence[str] = (),
    *,
    full_width: bool = False,
) -> Panel:
    """Draw a chart.

    Args:
        title: of the chart.
        draw: makes the figure of a size in points.
        note: how to read it.
        labels: of the legend; the first has the first color and marker, and so on.
        full_width: of the page, not half of it.

    Returns:
        The chart.
    """
    legend = tuple(Key(index, GLYPHS[index], label) for index, label in enumerate(labels))
    wide = plots.to_svg(draw(WIDE), f"{title}, wide") if full_width else ""
    return Panel(title, plots.to_svg(draw(NARROW), title), wide, note, legend)


def draw_curves(runs: Sequence[Run], results: Sequence[Result]) -> Panel | None:
    """The validation loss of all runs over each other; the training loss if a run has few values of it.

    Args:
        runs: all runs that have begun.
        results: those that are finished.

    Returns:
        The chart; None if nothing was measured yet.
    """
    validated = min((len(run.curve("val/loss").steps) for run in runs), default=0) >= _FEW
    curves = {run.name: run.curve("val/loss") if validated else smooth_training_loss(run) for run in runs}
    drawn = [line for line in plots.build_lines(runs) if len(curves[line.run.name].steps) > 1]
    if not drawn:
        return None
    best = [result.run.name for result in sorted(results, key=lambda result: result.loss)]
    colored = best[: len(COLORS)] or [line.run.name for line in drawn][: len(COLORS)]

    def draw(size: tuple[int, int]) -> "Figure":
        figure, axes = plots.new_axes("tokens" if drawn[0].scale > 1 else "optimizer step", size)
        axes.xaxis.set_major_formatter(lambda x, _: plots.format_number(x))
        for line in drawn:
            steps, values = curves[line.run.name]
            style: dict[str, Any] = {"color": FAINT, "linewidth": 0.9, "alpha": 0.6, "zorder": 1}
            if line.run.name in colored:
                index = colored.index(line.run.name)
                style = {"color": COLORS[index], "marker": MARKERS[index], "linewidth": 1.7, "markersize": 4.5}
                style |= {"markevery": max(1, len(steps) // 10)}
            axes.plot(steps * line.scale, values, **style)
        _limit_losses(axes, [curves[line.run.name] for line in drawn])
        return figure

    note = "The lowest final losses have colors, from the lowest on; all others are gray." if len(drawn) > 6 else ""
    title = f"{'Validation' if validated else 'Training'} loss, nats per token"
    return build_panel(title, draw, note, colored, full_width=True)


def smooth_training_loss(run: Run) -> Curve:
    """The training loss, averaged so that its noise does not hide other lines.

    Args:
        run: the run.

    Returns:
        At most 60 points.
    """
    steps, mean, _, _ = plots.downsample(run.curve("train/loss"), 60)
    return Curve(steps, mean)


def _limit_losses(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Leave the first losses above the plot, where they would compress the rest."""
    if min(len(curve.steps) for curve in curves) < _FEW:
        return
    later = np.concatenate([values[steps >= _BEGINNING * steps[-1]] for steps, values in curves])
    low, high = float(later.min()), float(np.percentile(later, 90))
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def draw_over_setting(name: str, others: Sequence[str], results: Sequence[Result]) -> Panel | None:
    """The final loss over one setting, with a line for each combination of the others.

    Args:
        name: of the setting.
        others: all settings that vary. Seeds make no lines of their own: a line goes through their mean.
        results: finished runs.

    Returns:
        The chart; None if no two values have a result.
    """
    values = list(dict.fromkeys(result.settings[name] for result in results))
    if len(values) < 2:
        return None
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    positions = {value: value for value in sorted(values)} if is_number else {v: i for i, v in enumerate(values)}
    separate = [other for other in others if other not in (name, "run.seed")]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.settings[other] for other in separate), []).append(result)
    best = sorted(groups, key=lambda key: min(result.loss for result in groups[key]))

    def draw(size: tuple[int, int]) -> "Figure":
        figure, axes = plots.new_axes(name, size)
        for index, key in reversed([*enumerate(best)]):
            points = [(positions[result.settings[name]], result.loss) for result in groups[key]]
            color = COLORS[index] if index < len(COLORS) else FAINT
            marker = MARKERS[index] if index < len(COLORS) else "."
            means = {x: np.mean([loss for at, loss in points if at == x]) for x in sorted({x for x, _ in points})}
            if name != "run.seed":
                axes.plot([*means], [*means.values()], color=color, linewidth=1.6 if index < len(COLORS) else 0.8)
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle="", markersize=5)
        _label_values(axes, positions, is_number)
        return figure

    labels = [_describe_group(separate, key) for key in best[: len(COLORS)]] if separate else []
    note = ""
    if "run.seed" in others and name != "run.seed":
        note = "A line goes through the mean of runs that differ in the seed only."
    if len(best) > len(COLORS):
        note = f"{note} The lines with the lowest losses have colors.".strip()
    title = f"Final validation loss over {name}"
    return build_panel(title, draw, note, labels, full_width=len(others) == 1)


def _describe_group(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {_show(value)}" for name, value in zip(names, values, strict=True))


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label_values(axes: "Axes", positions: Mapping[Any, Any], is_number: bool) -> None:
    """Put a tick at each value, on a logarithmic axis where they are far apart."""
    ticks = [*positions.values()]
    if is_number and min(ticks) > 0 and max(ticks) / min(ticks) >= _LOG_RATIO:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.margins(x=0.06)
    if len(ticks) <= 8 or not is_number:
        axes.set_xticks(ticks, [_show(value) for value in positions])
