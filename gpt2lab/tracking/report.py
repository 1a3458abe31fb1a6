"""Writes `report.html`, a single self-contained page about one run, or about several runs and logs side by side.

records.read ──▶ Run(s) ──────────┬─▶ summary: figures, samples, events ──▶ report.html.j2 ──▶ one page
foreign_logs.read ──▶ ForeignLog ─┴─▶ plots: curves, reference: bands ──▶ <svg> in the page, PNG files in its folder
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2lab import files, outputs
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.formatting import plural
from gpt2lab.tracking import foreign_logs, plots, records, reference, savings, summary
from gpt2lab.tracking.foreign_logs import ForeignLog
from gpt2lab.tracking.plots import NARROW, WIDE, Line, Reference
from gpt2lab.tracking.records import Run
from gpt2lab.tracking.summary import HELLASWAG_ITEMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Results of OpenAI's 124M model to compare with. Loss: on FineWeb-Edu's validation shard, measured by build-nanogpt.
# HellaSwag: acc_norm in the completion convention, which is also that of the runs.
LOSS_REFERENCES = {
    "fineweb-edu": Reference("GPT-2 124M: 3.29", 3.2924, right=True),
    "fineweb": Reference("speed records: 3.28", 3.28, right=True),  # the target of modded-nanogpt, about llm.c's result
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
_NO_LOGS = (".html", ".png", ".json", ".jsonl", ".yaml")  # files that are beside runs
_LOSS_PNG, _TIME_PNG, _HELLASWAG_PNG = _PICTURES = ("loss_curve.png", "loss_over_time.png", "hellaswag_curve.png")
_NAMES_OF_RUN = ("run.name", "run.out_dir", "run.resume")  # differ between any two runs


class Chart(NamedTuple):
    """A plot in the page; `wide` is another size of it for large screens."""

    title: str
    svg: str
    note: str = ""
    wide: str = ""


def write(
    *folders: Path,
    out: Path | None = None,
    price_per_hour: float | None = None,
    tokens_per_step: Sequence[int] = (),
) -> list[Path]:
    """Write the page about one or several runs, and PNG files of its main plots; log how published runs compare.

    Args:
        *folders: run directories, and logs of other projects to show beside them; duplicates are ignored, and beside a
            run pages, pictures and empty folders.
        out: path of the page. The default is `report.html` in the run directory for one run, and `compare_A_B.html`
            in the folder of the first run for several.
        price_per_hour: of all machines of a run, in any currency; overrides `tracking.price_per_hour`.
        tokens_per_step: of the logs: one number, or one for each in their order.

    Returns:
        The written files, the page first.

    Raises:
        GPT2LabError: a folder is no run directory, its config.yaml or environment.json is damaged, a file is no known
            log, `out` or a picture beside it holds something else, or a file cannot be written.
    """
    if out is not None:
        _require_replaceable(out)
    paths, logs = _sort_paths(folders)
    if len(tokens_per_step) not in (0, 1, len(logs)):
        raise GPT2LabError(
            f"--tokens-per-step has {plural(len(tokens_per_step), 'number')} for {plural(len(logs), 'log')}; give one"
        )
    sizes: Sequence[int | None] = tokens_per_step or [None]
    sizes = sizes if len(sizes) == len(logs) else [*sizes] * len(logs)
    read_logs = [foreign_logs.read(log, size) for log, size in zip(logs, sizes, strict=True)]
    sources = _make_names_unique([*(records.read(path) for path in paths), *read_logs])
    runs = [source for source in sources if isinstance(source, Run)]
    page = out or _default_path(sources)
    lines = plots.build_lines(sources)
    charts, pictures = _draw_charts(lines, runs, page.parent, _prefix(page))
    with files.atomic_write(page) as temporary:
        # JSON can have lone surrogates, which UTF-8 cannot.
        temporary.write_text(_render(lines, runs, charts, price_per_hour), encoding="utf-8", errors="replace")
    comparisons = [*_comparisons(runs, "val/loss"), *_comparisons(runs, "hellaswag/acc_norm"), *savings.describe(runs)]
    if difference := savings.describe_difference(runs):
        logger.warning(difference)
    for run in runs:
        if missing := run.describe_missing():
            logger.warning(f"{run.folder}: {missing}")
    for comparison in comparisons:
        logger.info(comparison)
    return [page, *pictures]


def _require_replaceable(page: Path) -> None:
    """Check that neither a page nor its pictures replace something else."""
    outputs.require_replaceable("--out", page, outputs.begins_with(outputs.PAGE), "a report")
    if not page.exists():  # otherwise the pictures beside it are those of the page
        for name in _PICTURES:
            picture = page.with_name(_prefix(page) + name)
            outputs.require_replaceable("--out", picture, outputs.begins_with(outputs.PICTURE), "a picture of a report")


def _prefix(page: Path) -> str:
    """The beginning of the names of a page's pictures."""
    return "" if page.name == "report.html" else f"{page.stem}_"


def _sort_paths(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Divide distinct paths into run directories and logs; leave out what `runs/*` stands for besides runs."""
    distinct: dict[Path, Path] = {}
    for path in paths:
        distinct.setdefault(path.resolve(), path)
    logs = [path for path in distinct.values() if path.is_file() and path.suffix not in _NO_LOGS]
    others = [path for path in distinct.values() if path not in logs]
    runs = [path for path in others if not _is_no_run(path)]
    if not runs and logs:
        raise GPT2LabError(f"{logs[0]} is a log or another file; name a run directory to show it beside")
    if runs and len(runs) < len(others):
        names = ", ".join(str(path) for path in others if path not in runs)
        logger.info(f"left out, since they are not run directories: {names}")
    return runs or others, logs


def _is_no_run(path: Path) -> bool:
    """Whether a path is a file, or a folder that a start has left empty but for its lock."""
    return path.is_file() or (path.is_dir() and all(file.name == ".lock" for file in path.iterdir()))


def _make_names_unique(sources: Sequence[Run | ForeignLog]) -> list[Run | ForeignLog]:
    """Put the name of the parent folder before names that several runs or logs have."""
    names = [source.name for source in sources]
    return [
        replace(source, name=f"{source.folder.resolve().parent.name}/{source.name}")
        if names.count(source.name) > 1
        else source
        for source in sources
    ]


def _default_path(runs: Sequence[Run | ForeignLog]) -> Path:
    first = runs[0].folder
    if len(runs) == 1:
        return first / "report.html"
    names = "_".join((run.name if isinstance(run, Run) else Path(run.name).stem).replace("/", "-") for run in runs)
    label = names if len(names.encode()) <= 120 else f"{len(runs)}_runs"  # file names have at most 255 bytes
    return (first.parent if first.name not in ("", "..") else first.resolve().parent) / f"compare_{label}.html"


def _render(lines: Sequence[Line], runs: Sequence[Run], charts: Sequence[Chart], price_per_hour: float | None) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["as_text"] = summary.as_text
    single = len(runs) == 1
    settings = _table_rows([run.settings.flat() for run in runs])
    return environment.get_template("report.html.j2").render(
        runs=runs,
        names=[line.run.name for line in lines],
        glyphs=[plots.GLYPHS[line.number % len(plots.GLYPHS)] for line in lines],
        colors=len(plots.COLORS),
        title=" · ".join(line.run.name for line in lines) if len(lines) <= 3 else f"{len(lines)} runs",
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


def _draw_charts(
    lines: Sequence[Line], runs: Sequence[Run], folder: Path, prefix: str
) -> tuple[list[Chart], list[Path]]:
    """The plots of the page, and the PNG files of the main ones."""
    charts: list[Chart] = []
    written: list[Path] = []
    metrics = {key for line in lines for key, curve in line.run.metrics.items() if len(curve.steps)}

    def add_main_chart(wide: "Figure", narrow: "Figure", title: str, note: str, png: str, png_title: str) -> None:
        charts.append(Chart(title, plots.to_svg(narrow, title), note, plots.to_svg(wide, f"{title}, wide")))
        plots.save_png(wide, folder / f"{prefix}{png}", png_title, lines)
        written.append(folder / f"{prefix}{png}")

    if metrics & {"train/loss", "val/loss"}:
        sets = {reference.find_data_set(run) for run in runs}
        gpt2 = LOSS_REFERENCES.get(sets.pop() or "") if len(sets) == 1 else None
        band = _band(lines, runs, "val/loss")
        wide, narrow = (plots.loss_figure(lines, gpt2, size, band=band) for size in (WIDE, NARROW))
        title = "Loss, nats per token"
        png_title = f"{title}; thin: training, thick: validation"
        add_main_chart(wide, narrow, title, _loss_note(lines, runs), _LOSS_PNG, png_title)
    if timed := _lines_over_time(lines, runs):
        wide, narrow = (plots.loss_figure(timed, size=size) for size in (WIDE, NARROW))
        title = "Loss over time, nats per token"
        note = "Training time alone, without evaluations and checkpoints."
        add_main_chart(wide, narrow, title, note, _TIME_PNG, title)
    if (key := "hellaswag/acc_norm") in metrics:
        band = _band(lines, runs, key)
        wide, narrow = (
            plots.curve_figure(lines, key, HELLASWAG_REFERENCES, size, band=band) for size in (WIDE, NARROW)
        )
        title = "HellaSwag, accuracy (acc_norm)"
        add_main_chart(wide, narrow, title, _hellaswag_note(lines, runs), _HELLASWAG_PNG, title)
    for title, key in CURVES:
        if key in metrics:
            figure = plots.curve_figure(lines, key, share=key == "perf/mfu")
            charts.append(Chart(title, plots.to_svg(figure, title)))
    return charts, written


def _lines_over_time(lines: Sequence[Line], runs: Sequence[Run]) -> list[Line]:
    """The lines of runs on the same text and hardware, over minutes; none if there are fewer than two."""
    if len({run.source for run in runs}) > 1 or len({run.hardware for run in runs}) > 1:
        return []
    timed = [
        line._replace(minutes=minutes)
        for line in lines
        if isinstance(line.run, Run) and (minutes := savings.minutes_of_training(line.run)) is not None
    ]
    return timed if len(timed) > 1 else []


def _band(lines: Sequence[Line], runs: Sequence[Run], key: str) -> reference.Band | None:
    """The band of published runs, if all runs can be compared with the same one and their tokens are on the x axis."""
    same_data = len({reference.find_data_set(run) for run in runs}) == 1
    same_steps = len({run.tokens_per_step for run in runs}) == 1
    if not (same_data and all(map(reference.is_comparable, runs)) and (same_steps or lines[0].scale > 1)):
        return None
    return reference.band_of(runs[0], key)


def _comparisons(runs: Sequence[Run], key: str) -> list[str]:
    """How each run compares to published ones, where there are any."""
    comparisons = [(run.name, reference.compare(run, key)) for run in runs]
    return [text if len(runs) == 1 else f"{name}: {text}" for name, text in comparisons if text]


def _loss_note(lines: Sequence[Line], runs: Sequence[Run]) -> str:
    """How to read the loss plot."""
    steps_per_point = max(len(line.run.curve("train/loss").steps) for line in lines) / plots.POINTS[len(lines) == 1]
    mean = f" averaged over {math.ceil(steps_per_point)} steps" if steps_per_point > 1 else ""
    mean += "; shading: minimum to maximum" if mean and len(lines) == 1 else ""
    notes = ["Thick line: validation loss.", f"Thin line: training loss{mean}."]
    if plots.loss_range(lines) is not None:
        highest = max(value for line in lines for value in line.run.curve("train/loss").values[:1])
        notes.append(f"The first steps, from {highest:.2f} on, are above the plot.")
    if difference := savings.describe_difference(runs):
        notes.append(difference)
    if len({run.source for run in runs}) == 1:
        notes.append(_published_loss_note(runs[0]))
    logs = [line.run for line in lines if isinstance(line.run, ForeignLog)]
    if logs:
        ends = "; ".join(f"{log.name} ({log.format}){_last_values(log)}" for log in logs)
        notes.append(f"Logs of other projects, to compare only where the data is the same: {ends}.")
    if lines[0].scale > 1:
        notes.append("The x axis is in tokens, because the batch sizes of the runs differ.")
    elif unknown := [log.name for log in logs if log.tokens_per_step is None]:
        notes.append(f"Tokens of a step of {', '.join(unknown)} are not known (--tokens-per-step): compare steps only.")
    return " ".join([*notes, *_band_notes(lines, runs, "val/loss"), *savings.describe(runs)])


def _published_loss_note(run: Run) -> str:
    """What the dashed line in the loss plot is, or why there is none."""
    data_set = reference.find_data_set(run)
    if data_set == "fineweb-edu":
        return "The dashed line is OpenAI's GPT-2 124M on FineWeb-Edu's validation shard."
    if data_set == "fineweb":
        return "The dashed line is the loss on FineWeb's validation tokens that speed records have to reach."
    return f"Trained on {run.source}: do not compare with GPT-2's published 3.29, measured on FineWeb-Edu."


def _last_values(log: ForeignLog) -> str:
    """The last measurements of a log, such as `: validation loss 3.108 at step 19,072`."""
    named = (("val/loss", "validation loss", ".3f"), ("hellaswag/acc_norm", "HellaSwag", ".4f"))
    curves = [(name, digits, log.curve(key)) for key, name, digits in named if len(log.curve(key).steps)]
    shown = [f"{name} {curve.values[-1]:{digits}} at step {curve.steps[-1]:,.0f}" for name, digits, curve in curves]
    return f": {', '.join(shown)}" if shown else ""


def _band_notes(lines: Sequence[Line], runs: Sequence[Run], key: str) -> list[str]:
    """What the band of a plot is, and where the runs are."""
    drawn = ["The gray band is that of published GPT-2 124M runs."] if _band(lines, runs, key) else []
    return [
        *drawn,
        *(f"{text[0].upper() if len(runs) == 1 else text[0]}{text[1:]}." for text in _comparisons(runs, key)),
    ]


def _hellaswag_note(lines: Sequence[Line], runs: Sequence[Run]) -> str:
    """The uncertainty of the accuracy, if it was measured on a subset."""
    limits = {run.settings.train.hellaswag_limit for run in runs if len(run.curve("hellaswag/acc_norm").steps)} - {0}
    notes = []
    if limits and (smallest := min(limits)) < HELLASWAG_ITEMS:
        margin = 1.96 * (0.3 * 0.7 / smallest) ** 0.5  # of the 95% interval for an accuracy near 0.3
        notes = [
            f"Measured on {smallest:,} of {HELLASWAG_ITEMS:,} items, ±{margin:.1g}; the published values are for all "
            "items."
        ]
    return " ".join([*notes, *_band_notes(lines, runs, "hellaswag/acc_norm")])


def _table_rows(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """(key, value of each column), None where a column does not have the key."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [(key, [column.get(key) for column in columns]) for key in keys]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
