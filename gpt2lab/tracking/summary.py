"""The content of a report as text and numbers, without layout: figures, samples, events, benchmarks of a run."""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.formatting import format_duration
from gpt2lab.tracking.plots import format_number
from gpt2lab.tracking.records import Run, Sample

HELLASWAG_ITEMS = 10_042
_GPT2 = next(b for b in BASELINES if (b.model, b.convention) == ("GPT-2 124M", "completion"))

# Limits of the page; samples.jsonl and events.jsonl have everything.
MAX_SAMPLE_STEPS, MAX_SAMPLES, MAX_EVENTS = 8, 3, 40


class Figure(NamedTuple):
    """One number of a run as text, with a note such as what it is compared with."""

    value: str
    note: str = ""


def figures(run: Run, price_per_hour: float | None = None) -> dict[str, Figure]:
    """The main numbers of a run.

    Args:
        run: the run.
        price_per_hour: of all its machines, in any currency; `tracking.price_per_hour` unless given.

    Returns:
        Label -> figure, without those that were not measured.
    """
    train, environment = run.settings.train, run.environment
    result: dict[str, Figure] = {}
    if isinstance(parameters := environment.get("parameters"), int):
        result["parameters"] = Figure(format_number(parameters), f"{parameters:,}")
    if (origin := run.origin) is not None:
        result["initial weights"] = Figure(str(origin["from"]), str(origin.get("path", "")))
    for label, key in (("validation loss", "val/loss"), ("bits per byte", "val/bits_per_byte")):
        if len(values := run.curve(key).values):
            result[label] = Figure(f"{values[-1]:.3f}", f"from {values[0]:.2f}" if len(values) > 1 else "")
    if len(scores := run.curve("hellaswag/acc_norm").values):
        limit = train.hellaswag_limit
        subset = f"{limit:,} of {HELLASWAG_ITEMS:,} items" if 0 < limit < HELLASWAG_ITEMS else ""
        result["HellaSwag"] = Figure(f"{scores[-1]:.4f}", subset or f"{_GPT2.model}: {_GPT2.acc_norm}")
    if step := run.last_step:
        result["steps"] = Figure(f"{step:,}", f"of {train.max_steps:,}" if step < train.max_steps else "")
        result["tokens"] = Figure(format_number(step * train.total_batch_size), f"{train.total_batch_size:,} per step")
    training, evaluating = run.curve("perf/step_ms").values.sum() / 1e3, run.curve("perf/eval_seconds").values.sum()
    if training:
        result["training time"] = Figure(format_duration(training))
        if evaluating:
            note = f"{evaluating / (training + evaluating):.0%} of the total"
            if hellaswag := run.curve("perf/hellaswag_seconds").values.sum():
                note += f"; HellaSwag {format_duration(hellaswag)}"
            result["evaluation time"] = Figure(format_duration(evaluating), note)
    if len(rates := run.curve("perf/tokens_per_second").values):
        result["tokens/s"] = Figure(f"{np.median(rates):,.0f}", "median step")
    if expected := _estimated(run):
        result["estimate"] = expected
    if len(mfu := run.curve("perf/mfu").values):
        result["MFU"] = Figure(f"{np.median(mfu):.1%}", "median step")
    if len(memory := run.curve("perf/peak_memory_gib").values):
        result["peak memory"] = Figure(f"{memory.max():.1f} GiB")
    price = run.settings.tracking.price_per_hour if price_per_hour is None else price_per_hour
    if price and training:
        cost = (training + evaluating) / 3600 * price
        result["cost"] = Figure(f"{cost:,.2f}" if cost >= 1 else f"{cost:.2g}", f"at {price:g} per hour")
    if run.hardware:
        result["hardware"] = Figure(run.hardware)
    return result


def _estimated(run: Run) -> Figure | None:
    """The speed and the time that were estimated before the last start, of the whole run."""
    kept = run.environment.get("estimate")
    values = [_read_number(kept, key, "estimate") for key in ("tokens_per_second", "hours")]
    if values[0] is None or values[1] is None:
        return None
    return Figure(f"{values[0]:,.0f} tokens/s", f"{format_duration(3600 * values[1])} in all, before the start")


def _read_number(value: Any, *keys: str) -> float | None:
    """A number inside objects of a file that may have been edited; None if it is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


class SampleTable(NamedTuple):
    """Samples that continue one prompt, to be compared within each row; with the index of the run for its color."""

    prompt: str
    rows: list[list[tuple[int | None, Sample]]]


def before_and_after(run: Run) -> list[SampleTable]:
    """The samples of the first and the last step, by prompt; a row for each seed that both have."""
    if not run.samples or run.samples[0].step == run.samples[-1].step:
        return []
    first, last = ([s for s in run.samples if s.step == run.samples[end].step] for end in (0, -1))
    common = {(s.prompt, s.seed) for s in first} & {(s.prompt, s.seed) for s in last}
    first, last = ([s for s in samples if (s.prompt, s.seed) in common] for samples in (first, last))
    return _compare([first, last], [None, 0])


def side_by_side(runs: Sequence[Run]) -> list[SampleTable]:
    """The samples of the last steps of several runs, by prompt."""
    latest = [[s for s in run.samples if s.step == run.samples[-1].step] for run in runs]
    return _compare(latest, range(len(runs)))


def _compare(columns: Sequence[Sequence[Sample]], runs: Sequence[int | None]) -> list[SampleTable]:
    tables = []
    for prompt in dict.fromkeys(sample.prompt for column in columns for sample in column):
        entries = [
            [(run, sample) for sample in column if sample.prompt == prompt][:MAX_SAMPLES]
            for column, run in zip(columns, runs, strict=True)
        ]
        tables.append(SampleTable(prompt, [[entry for entry in row if entry] for row in zip_longest(*entries)]))
    return tables


def timeline(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each step: at most `MAX_SAMPLE_STEPS`, evenly spaced, with the first and the last step."""
    first_of_step = {sample.step: sample for sample in reversed(samples)}
    steps = sorted(first_of_step)
    if len(steps) > MAX_SAMPLE_STEPS:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_SAMPLE_STEPS - 1))] for i in range(MAX_SAMPLE_STEPS)]
    return [first_of_step[step] for step in steps]


class RunEvents(NamedTuple):
    """Warnings and events of a run; `left_out` is the number of events between the first and the last ones shown."""

    warnings: list[str]
    events: list[Mapping[str, Any]]
    left_out: int


def run_events(run: Run) -> RunEvents:
    """Resumes, skipped steps and other recorded events, and warnings about damaged files."""
    warnings = [*run.warnings, *filter(None, [run.describe_missing()])]
    for key, (steps, values) in run.metrics.items():
        if key.startswith("guard/") and values[-1] > 0:  # a count that only grows
            first = steps[values > 0][0]
            warnings.append(f"{key}: {values[-1]:g} by step {steps[-1]:,.0f}, first at step {first:,.0f}")
    left_out = max(0, len(run.events) - MAX_EVENTS)
    shown = [*run.events[: MAX_EVENTS // 2], *run.events[-MAX_EVENTS // 2 :]] if left_out else [*run.events]
    return RunEvents(warnings, shown, left_out)


def benchmarks(run: Run) -> dict[str, str]:
    """Task -> accuracy of the newest evaluation, with its interval and chance; without tasks that have no accuracy.

    CORE has its score instead.
    """
    rows: dict[str, str] = {}
    tasks = run.evaluation.get("tasks")
    for task, result in (tasks if isinstance(tasks, Mapping) else {}).items():
        if isinstance(result, Mapping) and isinstance(result.get("core"), int | float):
            rows["CORE"] = f"{result['core']:.4f}"
            continue
        conventions = {task: result} if not isinstance(result, Mapping) or "acc" in result else result
        for convention, values in conventions.items():
            accuracy = values.get("acc_norm", values.get("acc")) if isinstance(values, Mapping) else None
            if isinstance(accuracy, int | float):
                interval = values.get("interval95")
                interval = " ({:.4f} to {:.4f})".format(*interval) if isinstance(interval, list) else ""
                chance = values.get("chance")
                interval += f", chance {chance:.4g}" if isinstance(chance, int | float) else ""
                rows[task if convention == task else f"{task}, {convention}"] = f"{accuracy:.4f}{interval}"
    return rows


def as_text(value: Any, limit: int = 1500) -> str:
    """Format any JSON value for a page.

    Args:
        value: the value. Of a long list the first items are shown; white space alone is quoted.
        limit: characters to show.

    Returns:
        The text, with a note where it was cut.
    """
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, list) and len(value) > 8:
        text = f"{', '.join(map(as_text, value[:6]))} … ({len(value):,})"
    elif isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, str) and value and not value.strip():
        text = repr(value)
    else:
        text = "" if value is None else str(value)
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters)"
