"""Writes `report.html` of a sweep, a single self-contained page: a table, curves, and the loss over each setting.

sweep.json, run directories ──▶ rows, results ──▶ charts ──▶ page.html.j2
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_count, format_duration, plural
from gpt2lab.sweep import charts, record
from gpt2lab.sweep.charts import Panel, Result
from gpt2lab.tracking import plots, records
from gpt2lab.tracking.records import Run

PAGE = "report.html"
_NAMES_OF_RUN = ("run.name", "run.out_dir", "run.resume")  # differ between any two runs


class Row(NamedTuple):
    """A run in the table; `run` is None if it has not begun, `loss` if it is not finished."""

    name: str
    status: str
    run: Run | None
    settings: Mapping[str, Any]
    loss: float | None
    error: str = ""

    @property
    def tokens(self) -> str:
        """That it has trained on."""
        return format_count(self.run.last_step * self.run.settings.train.total_batch_size) if self.run else ""

    @property
    def time(self) -> str:
        """Of steps and evaluation."""
        keys = (("perf/step_ms", 1e-3), ("perf/eval_seconds", 1.0))
        seconds = sum(self.run.curve(key).values.sum() * unit for key, unit in keys) if self.run else 0
        return format_duration(seconds) if seconds else ""


class Section(NamedTuple):
    """A part of the page: charts, and a table if there are rows; the first row is its header."""

    title: str
    notes: Sequence[str]
    panels: Sequence[Panel]
    table: Sequence[Sequence[str]] = ()


def write(folder: Path, sections: Sequence[Section] = (), *, is_plan: bool = False) -> Path:
    """Write the page of a sweep.

    Args:
        folder: of the sweep, with or without a sweep.json.
        sections: more parts, before the others.
        is_plan: the settings of the runs vary together, so there is no chart over each one.

    Returns:
        The path of the page.

    Raises:
        GPT2LabError: the folder holds no runs, or a file is damaged or cannot be written.
    """
    rows = read_rows(folder)
    runs = [row.run for row in rows if row.run is not None]
    results = [Result(row.run, row.settings, row.loss) for row in rows if row.run is not None and row.loss is not None]
    names = _list_varied(folder, rows)
    panels = [] if is_plan else [charts.draw_over_setting(name, names, results) for name in names]
    content = {
        "title": folder.resolve().name,
        "summary": _summarize(folder, rows),
        "sections": sections,
        "names": names,
        "rows": rows,
        "best": min((row.loss for row in rows if row.loss is not None), default=None),
        "curves": charts.draw_curves(runs, results),
        "panels": [panel for panel in panels if panel is not None],
        "colors": len(plots.COLORS),
    }
    path = folder / PAGE
    with files.atomic_write(path) as temporary:
        temporary.write_text(_render(content), encoding="utf-8", errors="replace")
    return path


def read_rows(folder: Path) -> list[Row]:
    """Read all runs of a sweep: those of sweep.json in its order, then other run directories.

    Args:
        folder: of the sweep.

    Returns:
        The runs.

    Raises:
        GPT2LabError: there are none, or a file is damaged.
    """
    files.require_folder(folder)
    recorded = {str(row.get("name")): row for row in record.read(folder).get("runs", ())}
    begun = {path.parent.name for path in folder.glob("*/config.yaml")}
    rows = [_read_row(folder / name, recorded.get(name, {})) for name in [*recorded, *sorted(begun - recorded.keys())]]
    if not rows:
        raise GPT2LabError(f"{folder} is neither a run directory nor a folder of runs")
    return rows


def _read_row(folder: Path, recorded: Mapping[str, Any]) -> Row:
    settings, status = recorded.get("settings", {}), str(recorded.get("status", "begun"))
    if not (folder / "config.yaml").exists():
        return Row(folder.name, status, None, settings, None, str(recorded.get("error", "")))
    run = records.read(folder)
    loss = None
    if record.is_finished(folder, run.settings.train.max_steps):
        curve = run.curve("val/loss")
        status = "finished"
        if len(curve.steps) and curve.steps[-1] == run.settings.train.max_steps:
            loss = float(curve.values[-1])
    error = str(recorded.get("error", "")) if status == "failed" else ""
    return Row(folder.name, status, run, run.settings.flat(), loss, error)


def _list_varied(folder: Path, rows: Sequence[Row]) -> list[str]:
    """The settings that vary: those that sweep.json names, or else all that differ between the runs."""
    recorded = record.read(folder).get("runs", ())
    names = dict.fromkeys(name for row in recorded for name in row.get("settings", {}))
    flat = [row.settings for row in rows if row.run is not None]
    candidates = names or (flat[0] if flat else {})
    differing = [name for name in candidates if len({str(settings.get(name)) for settings in flat}) > 1]
    return [name for name in differing or names if name not in _NAMES_OF_RUN]


def _summarize(folder: Path, rows: Sequence[Row]) -> str:
    count: dict[str, int] = {}
    for row in rows:
        count[row.status] = count.get(row.status, 0) + 1
    parts = ", ".join(f"{number} {status}" for status, number in count.items())
    recipes = ", ".join(map(str, record.read(folder).get("config", ())))
    return f"{plural(len(rows), 'run')}{f' of {recipes}' if recipes else ''}: {parts}."


def _render(content: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader

    folders = [Path(__file__).parent, Path(plots.__file__).parent]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True, trim_blocks=True)
    environment.filters["setting"] = lambda value: f"{value:g}" if isinstance(value, float) else str(value)
    return environment.get_template("page.html.j2").render(content)
