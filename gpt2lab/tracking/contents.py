"""What a page says of a run, in words and numbers: from a `Run` to text, with nothing of how it looks."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from gpt2lab.evaluation.baselines import BASELINES
from gpt2lab.formatting import format_duration
from gpt2lab.tracking.plots import short
from gpt2lab.tracking.records import Run, Sample

HELLASWAG_ITEMS = 10_042
_GPT2 = next(b for b in BASELINES if (b.model, b.convention) == ("GPT-2 124M", "completion"))

# On the page; samples.jsonl and events.jsonl have all.
MAX_SAMPLE_STEPS, MAX_SAMPLES, MAX_EVENTS = 8, 3, 40


class Figure(NamedTuple):
    """One number of a run as it is shown, with what belongs beside it."""

    value: str
    note: str = ""


def lead(run: Run) -> str:
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
        note = (
            f"{items:,} of {HELLASWAG_ITEMS:,} items"
            if 0 < items < HELLASWAG_ITEMS
            else f"{_GPT2.model}: {_GPT2.acc_norm}"
        )
        shown["HellaSwag"] = Figure(f"{scores[-1]:.4f}", note)
    if run.last_step:
        steps, planned = run.last_step, run.settings.train.max_steps
        shown["steps"] = Figure(f"{steps:,}", f"of {planned:,}" if steps < planned else "")
        per_step = run.settings.train.total_batch_size
        shown["tokens"] = Figure(short(steps * per_step), f"{per_step:,} a step")
    training = run.curve("perf/step_ms").values.sum() / 1e3
    evaluating = run.curve("perf/eval_seconds").values.sum()
    if training:
        shown["training time"] = Figure(format_duration(training))
        if evaluating:
            share = f"{evaluating / (training + evaluating):.0%} of all"
            hellaswag = run.curve("perf/hellaswag_seconds").values.sum()
            share += f"; HellaSwag {format_duration(hellaswag)}" if hellaswag else ""
            shown["evaluation time"] = Figure(format_duration(evaluating), share)
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


def timeline(samples: Sequence[Sample]) -> list[Card]:
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
    words = [plain(value) if key == "detail" else f"{key} {plain(value)}" for key, value in detail.items()]
    step = event.get("step")
    return Event(f"{step:,}" if isinstance(step, int) else "", when, plain(event.get("event", "")), ", ".join(words))


def benchmarks(run: Run) -> dict[str, str]:
    """Accuracies of the run's newest whole evaluation, by task; what is in another form is left out."""
    rows: dict[str, str] = {}
    tasks = run.evaluation.get("tasks")
    for task, found in (tasks if isinstance(tasks, Mapping) else {}).items():
        styles = {task: found} if not isinstance(found, Mapping) or "acc" in found else found
        for style, values in styles.items():
            share = values.get("acc_norm", values.get("acc")) if isinstance(values, Mapping) else None
            if not isinstance(share, int | float):
                continue
            interval = values.get("interval95")
            ends = interval if isinstance(interval, list) and [type(end) for end in interval] == [float, float] else []
            among = f" ({' to '.join(f'{end:.4f}' for end in ends)})" if ends else ""
            rows[task if style == task else f"{task}, {style}"] = f"{share:.4f}{among}"
    return rows


def plain(value: Any) -> str:
    """Any value of a file as text: short numbers, the first of a long list, white space made visible."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(plain, value[:6]))} … ({len(value):,})"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value and not value.strip():
        return repr(value)
    return "" if value is None else str(value)
