"""Writes `report.html`, a single self-contained page about one run, or about several runs side by side.

records.read ──▶ Run(s) ──┬─▶ summary: figures, samples, events ──▶ report.html.j2 ──▶ one page
                          └─▶ plots: curves ──▶ <svg> in the page, PNG files in its folder
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.tracking import plots, records, summary
from gpt2lab.tracking.plots import NARROW, WIDE, Line, Reference
from gpt2lab.tracking.records import Run
from gpt2lab.tracking.summary import HELLASWAG_ITEMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Results of OpenAI's 124M model to compare with. Loss: on FineWeb-Edu's validation shard, measured by build-nanogpt.
# HellaSwag: acc_norm in the completion convention, which is also that of the runs.
LOSS_REFERENCES = {
    "fineweb-edu": Reference("GPT-2 124M: 3.29", 3.2924),
    "fineweb": Reference("speed records: 3.28", 3.28),  # the target of modded-nanogpt, about llm.c's result
}
_SHOWN_BASELINES = (("GPT-2 124M", "completion"), ("GPT-3 Small 125M", "other"))
HELLASWAG_REFERENCES = [Reference("chance: 0.25", 0.25, right=True)] + [
    Reference(f"{b.model}: {b.acc_norm}", b.acc_norm) for b in BASELINES if (b.model, b.convention) in _SHOWN_BASELINES
]
CURVES = (
    ("Throughput, tokens per second", "perf/tokens_per_second"),
    ("MFU, share of the hardware's peak", "perf/mfu"),
    ("Gradient norm, before clipping", "train/grad_norm"),
)
_NAMES_OF_RUN = ("run.name", "run.out_dir", "run.resume")  # differ between any two runs


class Chart(NamedTuple):
    """A plot in the page; `wide` is another size of it for large screens."""

    title: str
    svg: str
    note: str = ""
    wide: str = ""


def write(*folders: Path, out: Path | None = None, price_per_hour: float | None = None) -> list[Path]:
    """Write the page about one or several runs, and PNG files of its main plots.

    Args:
        *folders: run directories; duplicates are ignored, and beside a run files and empty folders.
        out: path of the page. The default is `report.html` in the run directory for one run, and `compare_A_B.html`
            in the folder of the first run for several.
        price_per_hour: of all machines of a run, in any currency; overrides `tracking.price_per_hour`.

    Returns:
        The written files, the page first.

    Raises:
        GPT2LabError: a folder is no run directory, its config.yaml or environment.json is damaged, or a file cannot
            be written.
    """
    distinct: dict[Path, Path] = {}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    if len(distinct) > 1:  # as from runs/*, where pages and folders of refused starts are, too
        others = [path for path, folder in distinct.items() if _is_no_run(folder)]
        if others and len(others) < len(distinct):
            names = ", ".join(str(distinct.pop(path)) for path in others)
            logger.info(f"left out, since they are not run directories: {names}")
    runs = _make_names_unique([records.read(folder) for folder in distinct.values()])
    page = out or _default_path(runs)
    if page.is_dir():
        raise GPT2LabError(f"--out {page} is a folder; name a file in it, such as {page / 'report.html'}")
    prefix = "" if page.name == "report.html" else f"{page.stem}_"
    lines = plots.build_lines(runs)
    charts, pictures = _draw_charts(lines, page.parent, prefix)
    with files.atomic_write(page) as temporary:
        # JSON can have lone surrogates, which UTF-8 cannot.
        temporary.write_text(_render(lines, charts, price_per_hour), encoding="utf-8", errors="replace")
    return [page, *pictures]


def _is_no_run(path: Path) -> bool:
    """Whether a path is a file, or a folder that a start has left empty but for its lock."""
    return path.is_file() or (path.is_dir() and all(file.name == ".lock" for file in path.iterdir()))


def _make_names_unique(runs: Sequence[Run]) -> list[Run]:
    """Put the name of the parent folder before names that several runs have."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.folder.resolve().parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]


def _default_path(runs: Sequence[Run]) -> Path:
    first = runs[0].folder
    if len(runs) == 1:
        return first / "report.html"
    names = "_".join(run.name.replace("/", "-") for run in runs)
    label = names if len(names.encode()) <= 120 else f"{len(runs)}_runs"  # file names have at most 255 bytes
    return (first.parent if first.name not in ("", "..") else first.resolve().parent) / f"compare_{label}.html"


def _render(lines: Sequence[Line], charts: Sequence[Chart], price_per_hour: float | None) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["as_text"] = summary.as_text
    runs = [line.run for line in lines]
    single = len(runs) == 1
    settings = _table_rows([run.settings.flat() for run in runs])
    return environment.get_template("report.html.j2").render(
        runs=runs,
        glyphs=[plots.GLYPHS[line.number % len(plots.GLYPHS)] for line in lines],
        colors=len(plots.COLORS),
        title=" · ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs",
        figures=_table_rows([summary.figures(run, price_per_hour) for run in runs]),
        charts=charts,
        sample_tables=summary.before_and_after(runs[0]) if single else summary.side_by_side(runs),
        timeline=summary.timeline(runs[0].samples) if single else [],
        run_events=[(index, events) for index, run in enumerate(runs) if any(events := summary.run_events(run))],
        benchmarks=_table_rows([summary.benchmarks(run) for run in runs]),
        differing=[row for row in settings if any(v != row[1][0] for v in row[1]) and row[0] not in _NAMES_OF_RUN],
        settings=settings,
        environment=_table_rows([_flatten(run.environment) for run in runs]),
    )


def _draw_charts(lines: Sequence[Line], folder: Path, prefix: str) -> tuple[list[Chart], list[Path]]:
    """The plots of the page, and the PNG files of the main ones."""
    runs, charts, written = [line.run for line in lines], [], []
    metrics = {key for run in runs for key, curve in run.metrics.items() if len(curve.steps)}

    def add_main_chart(wide: "Figure", narrow: "Figure", title: str, note: str, png: str, png_title: str) -> None:
        charts.append(Chart(title, plots.to_svg(narrow, title), note, plots.to_svg(wide, f"{title}, wide")))
        plots.save_png(wide, folder / f"{prefix}{png}", png_title, lines)
        written.append(folder / f"{prefix}{png}")

    if metrics & {"train/loss", "val/loss"}:
        sources = {run.source for run in runs}
        reference = LOSS_REFERENCES.get(sources.pop()) if len(sources) == 1 else None
        wide, narrow = (plots.loss_figure(lines, reference, size) for size in (WIDE, NARROW))
        title = "Loss, nats per token"
        png_title = f"{title}; thin: training, thick: validation"
        add_main_chart(wide, narrow, title, _loss_note(lines), "loss_curve.png", png_title)
    if (key := "hellaswag/acc_norm") in metrics:
        wide, narrow = (plots.curve_figure(lines, key, HELLASWAG_REFERENCES, size) for size in (WIDE, NARROW))
        title = "HellaSwag, accuracy (acc_norm)"
        add_main_chart(wide, narrow, title, _hellaswag_note(runs), "hellaswag_curve.png", title)
    for title, key in CURVES:
        if key in metrics:
            figure = plots.curve_figure(lines, key, share=key == "perf/mfu")
            charts.append(Chart(title, plots.to_svg(figure, title)))
    return charts, written


def _loss_note(lines: Sequence[Line]) -> str:
    """How to read the loss plot."""
    runs = [line.run for line in lines]
    sources = list(dict.fromkeys(run.source for run in runs))
    steps_per_point = max(len(run.curve("train/loss").steps) for run in runs) / plots.POINTS[len(runs) == 1]
    mean = f" averaged over {math.ceil(steps_per_point)} steps" if steps_per_point > 1 else ""
    mean += "; shading: minimum to maximum" if mean and len(runs) == 1 else ""
    notes = ["Thick line: validation loss.", f"Thin line: training loss{mean}."]
    if plots.loss_range(lines) is not None:
        highest = max(value for run in runs for value in run.curve("train/loss").values[:1])
        notes.append(f"The first steps, from {highest:.2f} on, are above the plot.")
    if len(sources) > 1:
        notes.append(f"The runs were trained on different text ({', '.join(sources)}): do not compare their losses.")
    elif sources[0] == "fineweb-edu":
        notes.append("The dashed line is OpenAI's GPT-2 124M on FineWeb-Edu's validation shard.")
    elif sources[0] == "fineweb":
        notes.append("The dashed line is the loss on FineWeb's validation tokens that speed records have to reach.")
    else:
        notes.append(f"Trained on {sources[0]}: do not compare with GPT-2's published 3.29, measured on FineWeb-Edu.")
    if lines[0].scale > 1:
        notes.append("The x axis is in tokens, because the batch sizes of the runs differ.")
    return " ".join(notes)


def _hellaswag_note(runs: Sequence[Run]) -> str:
    """The uncertainty of the accuracy, if it was measured on a subset."""
    limits = {run.settings.train.hellaswag_limit for run in runs if len(run.curve("hellaswag/acc_norm").steps)} - {0}
    if not limits or min(limits) >= HELLASWAG_ITEMS:
        return ""
    smallest = min(limits)
    margin = 1.96 * (0.3 * 0.7 / smallest) ** 0.5  # of the 95% interval for an accuracy near 0.3
    return (
        f"Measured on {smallest:,} of {HELLASWAG_ITEMS:,} items, ±{margin:.1g}; the published values are for all items."
    )


def _table_rows(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """(key, value of each column), None where a column does not have the key."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [(key, [column.get(key) for column in columns]) for key in keys]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
