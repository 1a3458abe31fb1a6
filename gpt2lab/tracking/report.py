"""`report.html`: a run on one page that needs nothing else, or several beside each other, made from their files alone.

records.read ──▶ Run(s) ──┬─▶ figures, texts, settings ──▶ report.html.j2 ──▶ one page
                          └─▶ plots ──▶ <svg> in the page, PNGs beside it
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.tracking import plots, records
from gpt2lab.tracking.plots import Line, Reference, short
from gpt2lab.tracking.records import Run, Sample

# What OpenAI's 124M model scores, for lines to compare with. Loss: on FineWeb-Edu's validation shard, as build-nanogpt
# measures it. HellaSwag: acc_norm; GPT-2's is of the completion convention, as the run's is.
GPT2_FINEWEB_LOSS = Reference("GPT-2 124M: 3.29", 3.2924)
_DRAWN = (("GPT-2 124M", "completion"), ("GPT-3 Small 125M", "other"))
HELLASWAG_LINES = [Reference("chance: 0.25", 0.25, right=True)] + [
    Reference(f"{b.model}: {b.acc_norm}", b.acc_norm) for b in BASELINES if (b.model, b.convention) in _DRAWN
]
HELLASWAG_ITEMS = 10_042

# On the page; samples.jsonl and events.jsonl have all.
MAX_SAMPLE_STEPS, MAX_SAMPLES, MAX_EVENTS = 8, 3, 40
MAX_LETTERS = 1500  # of one text

CURVES = (
    ("Throughput, tokens a second", "perf/tokens_per_second"),
    ("MFU, share of the hardware's peak", "perf/mfu"),
    ("Gradient norm, before clipping", "train/grad_norm"),
)
_OWN = ("run.name", "run.out_dir", "run.resume")  # differ between any two runs, and mean nothing


class Figure(NamedTuple):
    """One number of a run as it is shown, with what belongs beside it."""

    value: str
    note: str = ""


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
    prefix = "" if out is None and len(runs) == 1 else f"{page.stem}_"
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
        lead=_lead(runs[0]) if len(runs) == 1 else "",
        figures=_beside([figures(run, price_per_hour) for run in runs]),
        charts=charts,
        panels=before_and_after(runs[0]) if len(runs) == 1 else side_by_side(runs),
        timeline=_timeline(runs[0].samples) if len(runs) == 1 else [],
        happened=[(index, happened) for index, run in enumerate(runs) if any(happened := what_happened(run))],
        benchmarks=_beside([_benchmarks(run) for run in runs]),
        differing=_differing(runs),
        settings=_beside([run.settings.flat() for run in runs]),
        environment=_beside([_flatten(run.environment) for run in runs]),
    ), written


def figures(run: Run, price_per_hour: float | None = None) -> dict[str, Figure]:
    """The numbers at the top of the page, by label; what was not measured is left out."""
    price = run.settings.tracking.price_per_hour if price_per_hour is None else price_per_hour
    shown: dict[str, Figure] = {}
    if isinstance(parameters := run.environment.get("parameters"), int):
        shown["parameters"] = Figure(short(parameters), f"{parameters:,}")
    for label, key in (("validation loss", "val/loss"), ("bits per byte", "val/bits_per_byte")):
        values = run.curve(key).values
        if len(values):
            shown[label] = Figure(f"{values[-1]:.3f}", f"from {values[0]:.2f}" if len(values) > 1 else "")
    if len(scores := run.curve("hellaswag/acc_norm").values):
        items = run.settings.train.hellaswag_limit
        note = f"{items:,} of {HELLASWAG_ITEMS:,} items" if 0 < items < HELLASWAG_ITEMS else "GPT-2 124M: 0.2955"
        shown["HellaSwag"] = Figure(f"{scores[-1]:.4f}", note)
    if run.last_step:
        steps, planned = run.last_step, run.settings.train.max_steps
        shown["steps"] = Figure(f"{steps:,}", f"of {planned:,}" if steps < planned else "")
        per_step = run.settings.train.total_batch_size
        shown["tokens"] = Figure(short(steps * per_step), f"{per_step:,} a step")
    training = run.curve("perf/step_ms").values.sum() / 1e3
    evaluating = run.curve("perf/eval_seconds").values.sum()
    if training:
        shown["training time"] = Figure(_duration(training))
        if evaluating:
            shown["evaluation time"] = Figure(
                _duration(evaluating), f"{evaluating / (training + evaluating):.0%} of all"
            )
    if len(rates := run.curve("perf/tokens_per_second").values):
        shown["tokens/s"] = Figure(f"{np.median(rates):,.0f}", "median step")
    if len(shares := run.curve("perf/mfu").values):
        shown["MFU"] = Figure(f"{np.median(shares):.1%}", "median step")
    if len(memory := run.curve("perf/peak_memory_gib").values):
        shown["peak memory"] = Figure(f"{memory.max():.1f} GiB")
    if price and training:
        cost = (training + evaluating) / 3600 * price
        shown["cost"] = Figure(f"{cost:,.2f}" if cost >= 1 else f"{cost:.2g}", f"at {price:g} an hour")
    if hardware := _hardware(run):
        shown["hardware"] = Figure(hardware)
    return shown


class Card(NamedTuple):
    """A text with a heading; `run` is the index of the run whose colour it wears."""

    heading: str
    text: str
    run: int | None = None


class Panel(NamedTuple):
    """Texts that continue one prompt; the cards of a row compare."""

    prompt: str
    rows: list[list[Card]]


def before_and_after(run: Run) -> list[Panel]:
    """What the run wrote at its first and its last step, by prompt; a row a seed."""
    if not run.samples or run.samples[0].step == run.samples[-1].step:
        return []
    first, last = (_by_prompt(run.samples, run.samples[end].step) for end in (0, -1))
    panels = []
    for prompt, before in first.items():
        after = {sample.seed: sample for sample in last.get(prompt, [])}
        pairs = [(one, after[one.seed]) for one in before if one.seed in after][:MAX_SAMPLES]
        rows = [[_card(one), _card(other, 0)] for one, other in pairs]
        panels += [Panel(prompt, rows)] if rows else []
    return panels


def side_by_side(runs: Sequence[Run]) -> list[Panel]:
    """What the runs wrote at their last steps, by prompt; a row for the first samples, one for the second, …"""
    latest = [_by_prompt(run.samples, run.samples[-1].step) if run.samples else {} for run in runs]
    panels = []
    for prompt in dict.fromkeys(prompt for written in latest for prompt in written):
        columns = [
            [_card(sample, index) for sample in written.get(prompt, [])[:MAX_SAMPLES]]
            for index, written in enumerate(latest)
        ]
        rows = [[card for card in row if card is not None] for row in zip_longest(*columns)]
        panels.append(Panel(prompt, rows))
    return panels


class Event(NamedTuple):
    """A line of events.jsonl as text."""

    step: str
    time: str
    event: str
    detail: str


class Happened(NamedTuple):
    """What befell a run: `notes` in words, `events` in their order, `left_out` the number that is not shown."""

    notes: list[str]
    events: list[Event]
    left_out: int


def what_happened(run: Run) -> Happened:
    """Resumes, skipped steps and the like, as far as the run recorded them, and what is wrong with its files."""
    notes = list(run.troubles)
    for key, (steps, values) in run.metrics.items():
        if key.startswith("guard/") and values[-1] > 0:  # counted over the run
            notes.append(f"{key}: {values[-1]:g} by step {steps[-1]:,.0f}, first at step {steps[values > 0][0]:,.0f}")
    shown = [_event(event) for event in run.events]
    left_out = max(0, len(shown) - MAX_EVENTS)
    if left_out:
        shown = shown[: MAX_EVENTS // 2] + shown[-MAX_EVENTS // 2 :]
    return Happened(notes, shown, left_out)


def _event(event: Mapping[str, Any]) -> Event:
    when = event.get("time", "")
    if isinstance(when, int | float) and 0 < when < 1e11:  # seconds since 1970
        when = f"{datetime.fromtimestamp(when, UTC):%Y-%m-%dT%H:%M:%SZ}"
    when = re.sub(r"^(\S+\d)T(\d\S*)Z$", r"\1 \2 UTC", str(when))
    detail = {key: value for key, value in event.items() if key not in ("step", "time", "event")}
    words = [_plain(value) if key == "detail" else f"{key} {_plain(value)}" for key, value in detail.items()]
    step = event.get("step")
    return Event(f"{step:,}" if isinstance(step, int) else "", when, _plain(event.get("event", "")), ", ".join(words))


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


def _lead(run: Run) -> str:
    """The run in a sentence."""
    words = f"{run.settings.model.n_layer} layers of {run.settings.model.n_embd} channels, trained on {run.source}"
    if hardware := _hardware(run):
        words += f" with {hardware}"
    if isinstance(started := run.environment.get("started"), str):
        words += f"; last started {_day(started)}"
    if isinstance(commit := run.environment.get("commit"), str):
        words += f", commit {commit[:7]}"
    return words + "."


def _day(moment: str) -> str:
    """`20 November 2026` for an ISO date and time; what is none, as it is."""
    try:
        return f"{datetime.fromisoformat(moment):%-d %B %Y}"
    except ValueError:
        return moment


def _hardware(run: Run) -> str:
    """`8 x NVIDIA A100`, or `AMD EPYC, 2 cores`; nothing if it is not recorded."""
    hardware = run.environment.get("hardware")
    if not isinstance(hardware, Mapping):
        return ""
    if hardware.get("gpu"):
        return f"{run.environment.get('world_size', 1)} x {hardware['gpu']}"
    cores = f", {hardware['cores']} cores" if hardware.get("cores") else ""
    return f"{hardware.get('cpu', hardware.get('device', ''))}{cores}"


def _timeline(samples: Sequence[Sample]) -> list[Card]:
    """The first sample of each step, at most `MAX_SAMPLE_STEPS` of them, evenly, the first and the last always."""
    steps = {sample.step: sample for sample in reversed(samples)}
    cards = [_card(steps[step]) for step in sorted(steps)]
    if len(cards) <= MAX_SAMPLE_STEPS:
        return cards
    return [cards[round(i * (len(cards) - 1) / (MAX_SAMPLE_STEPS - 1))] for i in range(MAX_SAMPLE_STEPS)]


def _by_prompt(samples: Sequence[Sample], step: int) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.step == step:
            found.setdefault(sample.prompt, []).append(sample)
    return found


def _card(sample: Sample, run: int | None = None) -> Card:
    text = re.sub(r"\n\s*\n\s*", "\n\n", sample.continuation.strip())  # one empty line at a time is enough for the eye
    return Card(f"after step {sample.step:,}" if sample.step else "before training", text, run)


def _benchmarks(run: Run) -> dict[str, str]:
    """Accuracies of the run's newest whole evaluation, by task; what is in another form is left out."""
    rows: dict[str, str] = {}
    tasks = run.evaluation.get("tasks")
    for task, found in (tasks if isinstance(tasks, Mapping) else {}).items():
        styles = {task: found} if not isinstance(found, Mapping) or "acc" in found else found
        for style, values in styles.items():
            share = values.get("acc_norm", values.get("acc")) if isinstance(values, Mapping) else None
            if not isinstance(share, int | float):
                continue
            low, high = values.get("interval95") or (None, None)
            rows[task if style == task else f"{task}, {style}"] = f"{share:.4f}" + (
                f" ({low:.4f} to {high:.4f})" if isinstance(low, float) and isinstance(high, float) else ""
            )
    return rows


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


def _letters(value: Any, most: int = MAX_LETTERS) -> str:
    """A text as far as a page has room for it."""
    text = _plain(value)
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} letters)"


def _quoted(prompt: str) -> str:
    """A prompt in quotes; one of white space alone as Python writes it."""
    return f"“{_letters(prompt, 300)}”" if prompt.strip() else repr(prompt)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(_plain, value[:6]))} … ({len(value):,})"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value and not value.strip():
        return repr(value)
    return "" if value is None else str(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
