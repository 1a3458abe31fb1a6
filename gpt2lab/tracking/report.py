"""`report.html`: a run on one page that needs nothing else, or several beside each other, made from their files alone.

records.read ──▶ Run(s) ──┬─▶ contents: figures, samples, events ──▶ report.html.j2 ──▶ one page
                          └─▶ plots: curves ──▶ <svg> in the page, PNGs beside it
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.tracking import contents, plots, records
from gpt2lab.tracking.contents import HELLASWAG_ITEMS
from gpt2lab.tracking.plots import Line, Reference
from gpt2lab.tracking.records import Run

# What OpenAI's 124M model scores, for lines to compare with. Loss: on FineWeb-Edu's validation shard, as build-nanogpt
# measures it. HellaSwag: acc_norm; GPT-2's is of the completion convention, as the run's is.
GPT2_FINEWEB_LOSS = Reference("GPT-2 124M: 3.29", 3.2924)
_DRAWN = (("GPT-2 124M", "completion"), ("GPT-3 Small 125M", "other"))
HELLASWAG_LINES = [Reference("chance: 0.25", 0.25, right=True)] + [
    Reference(f"{b.model}: {b.acc_norm}", b.acc_norm) for b in BASELINES if (b.model, b.convention) in _DRAWN
]
CURVES = (
    ("Throughput, tokens a second", "perf/tokens_per_second"),
    ("MFU, share of the hardware's peak", "perf/mfu"),
    ("Gradient norm, before clipping", "train/grad_norm"),
)
_OWN = ("run.name", "run.out_dir", "run.resume")  # differ between any two runs, and mean nothing


class Chart(NamedTuple):
    """A curve in the page; `wide` is the same again for large screens, where it has the page's whole width."""

    title: str
    svg: str
    note: str = ""
    wide: str = ""


def write(*folders: Path, out: Path | None = None, price_per_hour: float | None = None) -> list[Path]:
    """Write the page of one run, or of several beside each other, and PNGs of its curves.

    Args:
        folders: run directories; one named twice is shown once.
        out: the page. For one run its `report.html` unless given, for several `compare_A_B.html` beside the first.
        price_per_hour: of all of a run's machines, in any currency; overrides `tracking.price_per_hour`.

    Returns:
        The written files, the page first.

    Raises:
        GPT2LabError: a folder is no run, its settings or environment.json are damaged, or nothing can be written.
    """
    distinct: dict[Path, Path] = {}
    for folder in folders:
        distinct.setdefault(folder.resolve(), folder)
    runs = _told_apart([records.read(folder) for folder in distinct.values()])
    page = out or default_page(runs)
    if page.is_dir():
        raise GPT2LabError(f"--out {page} is a folder; name a file in it, such as {page / 'report.html'}")
    prefix = "" if page.name == "report.html" else f"{page.stem}_"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(page, error) from error
    html, pictures = render(runs, page.parent, prefix, price_per_hour)
    with files.atomic_write(page) as temporary:
        # A lone half of a UTF-16 pair, which JSON can hold, has no UTF-8.
        temporary.write_text(html, encoding="utf-8", errors="replace")
    return [page, *pictures]


def default_page(runs: Sequence[Run]) -> Path:
    """Where the page goes unless somebody says."""
    first = runs[0].folder
    if len(runs) == 1:
        return first / "report.html"
    names = "_".join(run.name.replace("/", "-") for run in runs)
    shortened = names if len(names.encode()) <= 120 else f"{len(runs)}_runs"  # a file's name has at most 255 bytes
    return (first.parent if first.name not in ("", "..") else first.resolve().parent) / f"compare_{shortened}.html"


def render(
    runs: Sequence[Run], folder: Path, prefix: str = "", price_per_hour: float | None = None
) -> tuple[str, list[Path]]:
    """The page as text, and the PNGs that were drawn for it.

    Args:
        folder: where the PNGs go, as `{prefix}loss_curve.png` and so on.

    Raises:
        GPT2LabError: a PNG cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader

    drawn = plots.lines(runs)
    charts, written = _charts(drawn, folder, prefix)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page.filters |= {"letters": _letters, "quoted": _quoted}
    return page.get_template("report.html.j2").render(
        runs=runs,
        glyphs=[plots.GLYPHS[line.number % len(plots.GLYPHS)] for line in drawn],
        colors=len(plots.COLORS),
        title=" · ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs",
        lead=contents.lead(runs[0]) if len(runs) == 1 else "",
        figures=_beside([contents.figures(run, price_per_hour) for run in runs]),
        charts=charts,
        panels=contents.before_and_after(runs[0]) if len(runs) == 1 else contents.side_by_side(runs),
        timeline=contents.timeline(runs[0].samples) if len(runs) == 1 else [],
        happened=[(index, happened) for index, run in enumerate(runs) if any(happened := contents.what_happened(run))],
        benchmarks=_beside([contents.benchmarks(run) for run in runs]),
        differing=_differing(runs),
        settings=_beside([run.settings.flat() for run in runs]),
        environment=_beside([_flatten(run.environment) for run in runs]),
    ), written


def _charts(drawn: Sequence[Line], folder: Path, prefix: str) -> tuple[list[Chart], list[Path]]:
    """The page's charts, and the PNGs of those that people pass on by themselves."""
    runs, charts, written = [line.run for line in drawn], [], []

    def measured(key: str) -> bool:
        return any(len(run.curve(key).steps) for run in runs)

    def save(figure: Any, name: str, title: str) -> None:
        path = folder / f"{prefix}{name}"
        plots.save_png(figure, path, title, drawn)
        written.append(path)

    if measured("train/loss") or measured("val/loss"):
        title = "Loss, nats a token"
        reference = GPT2_FINEWEB_LOSS if all(_on_fineweb(run) for run in runs) else None
        wide, narrow = (plots.loss_figure(drawn, reference, size) for size in (plots.WIDE, plots.NARROW))
        wide_svg = plots.to_svg(wide, f"{title}, wide")
        charts.append(Chart(title, plots.to_svg(narrow, title), _loss_note(drawn), wide_svg))
        save(wide, "loss_curve.png", f"{title}; thin: training, thick: validation")
    key, title = "hellaswag/acc_norm", "HellaSwag, accuracy (acc_norm)"
    if measured(key):
        sizes = (plots.WIDE, plots.NARROW)
        wide, narrow = (plots.curve_figure(drawn, key, HELLASWAG_LINES, size) for size in sizes)
        note = _hellaswag_note(runs)
        charts.append(Chart(title, plots.to_svg(narrow, title), note, plots.to_svg(wide, f"{title}, wide")))
        save(wide, "hellaswag_curve.png", title)
    for title, key in CURVES:
        if measured(key):
            figure = plots.curve_figure(drawn, key, share=key == "perf/mfu")
            charts.append(Chart(title, plots.to_svg(figure, title)))
    return charts, written


def _on_fineweb(run: Run) -> bool:
    return run.source.startswith("fineweb-edu")


def _loss_note(drawn: Sequence[Line]) -> str:
    """What a reader has to know of the loss chart, in sentences."""
    runs = [line.run for line in drawn]
    sources = list(dict.fromkeys(run.source for run in runs))
    together = max(len(run.curve("train/loss").steps) for run in runs) / plots.POINTS[len(runs) == 1]
    mean = f", each point the mean of up to {together:.0f} steps" if together > 1.5 else ""
    mean += " (pale: the least and the most of them)" if mean and len(runs) == 1 else ""
    notes = [f"Thin: training{mean}. Thick: validation."]
    if plots.loss_range(drawn) is not None:
        first = [value for run in runs for value in run.curve("train/loss").values[:1]]
        notes.append(f"The first steps, from {max(first):.2f} on, lie above the chart.")
    if len(sources) > 1:
        notes.append(f"Trained on different text ({', '.join(sources)}): these losses do not compare.")
    elif not _on_fineweb(runs[0]):
        notes.append(f"Trained on {sources[0]}: GPT-2's published 3.29 is of FineWeb-Edu and does not compare.")
    else:
        notes.append("GPT-2's line is OpenAI's 124M model on FineWeb-Edu's validation shard.")
    if drawn[0].scale > 1:
        notes.append("Over tokens, as the runs' steps differ in size.")
    return " ".join(notes)


def _hellaswag_note(runs: Sequence[Run]) -> str:
    """How sure the accuracy is, where it was taken over a part of the items."""
    limits = {run.settings.train.hellaswag_limit for run in runs if len(run.curve("hellaswag/acc_norm").steps)} - {0}
    if not limits or min(limits) >= HELLASWAG_ITEMS:
        return ""
    least = min(limits)
    margin = 1.96 * (0.3 * 0.7 / least) ** 0.5  # 95%, for a share near 0.3
    return f"Over {least:,} of the {HELLASWAG_ITEMS:,} items, so give or take {margin:.1g}; the lines are of all items."


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """The settings in which the runs differ, but for their names and folders."""
    rows = _beside([run.settings.flat() for run in runs])
    return [(key, values) for key, values in rows if values.count(values[0]) < len(values) and key not in _OWN]


def _beside(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Rows of a table with a column a run, None where a run has no such value."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [(key, [column.get(key) for column in columns]) for key in keys]


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name get their folder's name before it."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.folder.resolve().parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _letters(value: Any, most: int = 1500) -> str:
    """A text as far as a page has room for it."""
    text = contents.plain(value)
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} letters)"


def _quoted(prompt: str) -> str:
    """A prompt in quotes; one of white space alone as Python writes it."""
    return f"“{_letters(prompt, 300)}”" if prompt.strip() else repr(prompt)
