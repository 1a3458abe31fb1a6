"""Lines about the steps of a run on the terminal, and a progress bar below them.

values of a step ─▶ Console ─┬─ short:         step 140/600  loss 5.71  lr 4.5e-3  1.2k tok/s  left 9 min
                             ├─ build-nanogpt: step   140 | loss: 5.712345 | lr 4.5000e-03 | norm: 0.8748 | …
                             └─ json:          {"step": 140, "train/loss": 5.712345, …}, as in metrics.jsonl
"""

import itertools
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from gpt2lab import formatting, logs
from gpt2lab.progress import Phase
from gpt2lab.tracking.metrics import as_record

# With `auto`: at most so many lines for the number of steps, and more where the last one is older than a minute.
LINES_PER_RUN = 50
SECONDS_PER_LINE = 60.0

LogFormat = Literal["short", "build-nanogpt", "json"]

_BAR = "  | "  # before each line of a sample
_HIDDEN = ("train/", "perf/", "guard/")  # not results
_RESULTS = {
    "val/loss": "val loss {:.3f}",
    "val/bits_per_byte": "{:.3f} bits/byte",
    "hellaswag/acc_norm": "HellaSwag {:.1%}",
    "hellaswag/harness_acc_norm": "as lm-evaluation-harness {:.1%}",
}


class Console:
    """Prints lines about the steps that are due, and about all results; on a terminal, a progress bar below them.

    Args:
        max_steps: the last step of the run.
        first_step: the step that the run starts from.
        every: print every so many steps; auto: a round number of them, also the first one, and at least once a minute.
        terminal: whether standard output is a terminal.
        log_format: of the lines.
    """

    def __init__(
        self,
        max_steps: int,
        first_step: int,
        every: int | Literal["auto"],
        *,
        terminal: bool,
        log_format: LogFormat = "short",
    ):
        self._max_steps, self._format = max_steps, log_format
        self._progress: Phase | None = None
        self._terminal = terminal
        self._auto = every == "auto"
        self._every = _round_up(max_steps / LINES_PER_RUN) if every == "auto" else every
        self._started: tuple[int, float] | None = None  # the first step that was logged, and when
        self._printed_at: float | None = None
        self._seconds = self._tokens = 0.0  # of the steps since the last line
        if terminal and log_format != "json":
            self._progress = Phase("training", max_steps, completed=first_step, skip_first=True, log=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Print the step if it is due, and all results.

        Args:
            step: the step.
            values: by metric key.
        """
        now = time.monotonic()
        is_step = "train/loss" in values
        results = {key: value for key, value in values.items() if not key.startswith(_HIDDEN)}
        left = self._time_left(step, now) if is_step else ""
        if is_step:
            self._seconds += values["perf/step_ms"] / 1e3
            self._tokens += values["perf/step_ms"] / 1e3 * values["perf/tokens_per_second"]
        due = is_step and self._is_due(step, now)
        if self._format == "json":
            if due or results:
                logs.print_result(json.dumps(as_record(step, values)))
        else:
            if due:
                logs.print_result(self._format_step(step, values, left))
            for line in format_results(self._name(step), results, self._format, self._columns()) if results else ():
                logs.print_result(formatting.paint(line, "green", sys.stdout))
        if due:
            self._printed_at, self._seconds, self._tokens = now, 0.0, 0.0
        if self._progress:
            self._progress.update(step, f"step {step:,} of {self._max_steps:,}")

    def _is_due(self, step: int, now: float) -> bool:
        if step % self._every == 0 or step == self._max_steps:
            return True
        return self._auto and (self._printed_at is None or now - self._printed_at >= SECONDS_PER_LINE)

    def _name(self, step: int) -> str:
        if self._format == "build-nanogpt":
            return f"step {step:5d}"
        return format_step_name(step, self._max_steps)

    def _format_step(self, step: int, values: Mapping[str, float], left: str) -> str:
        if self._format == "build-nanogpt":
            return (
                f"{self._name(step)} | loss: {values['train/loss']:.6f} | lr {values['train/lr']:.4e} "
                f"| norm: {values['train/grad_norm']:.4f} | dt: {values['perf/step_ms']:.2f}ms "
                f"| tok/sec: {values['perf/tokens_per_second']:.2f}{left and f' | {left}'}"
            )
        loss, rate = values["train/loss"], self._tokens / self._seconds if self._seconds else math.nan
        parts = [
            self._name(step),
            f"loss {loss:.2g}" if abs(loss) < 0.1 else f"loss {loss:.2f}",
            f"lr {values['train/lr']:.1e}".replace("e-0", "e-").replace("e+0", "e+"),
            f"{formatting.format_count(rate)} tok/s",
        ]
        if "perf/mfu" in values:
            parts.append(f"MFU {values['perf/mfu']:.0%}")
        return _join([*parts, left] if left else parts, self._columns())

    def _columns(self) -> int | None:
        return shutil.get_terminal_size().columns if self._terminal else None

    def _time_left(self, step: int, now: float) -> str:
        """The time to the last step, from the mean since the first step (which compiles), with evaluations."""
        if self._started is None:
            self._started = step, now
        first, since = self._started
        if step in (first, self._max_steps):
            return ""
        seconds = (now - since) / (step - first) * (self._max_steps - step)
        return f"left{':' * (self._format == 'build-nanogpt')} {formatting.format_time_left(seconds)}"

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress:
            self._progress.close()


def format_step_name(step: int, max_steps: int) -> str:
    """Such as `step  20/600`."""
    return f"step {step:{len(str(max_steps))}}/{max_steps}"


def _join(parts: Sequence[str], columns: int | None) -> str:
    """The parts in a line, or in more lines where a terminal is narrower: never between a number and its unit."""
    lines = [parts[0]]
    for part in parts[1:]:
        if columns is None or len(lines[-1]) + 2 + len(part) <= columns:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def format_results(
    name: str, results: Mapping[str, float], log_format: LogFormat, columns: int | None = None
) -> list[str]:
    """Lines about measurements.

    Args:
        name: of the step.
        results: by metric key.
        log_format: of the lines.
        columns: of the terminal; None: there is none.

    Returns:
        One line; in the short format one for each kind of measurement.
    """
    if log_format == "build-nanogpt":
        return [" | ".join([name, *(f"{key}: {value:.4f}" for key, value in results.items())])]
    kinds = itertools.groupby(results.items(), key=lambda item: item[0].partition("/")[0])
    texts = ([_RESULTS.get(key, f"{key} {{:.4g}}").format(value) for key, value in items] for _, items in kinds)
    return [_join([name, *parts], columns) for parts in texts]


def format_sample(text: str) -> str:
    """Generated text as lines of at most 80 columns that begin with a bar, with at most one empty line in a row.

    Args:
        text: any text; control characters, which a terminal would interpret, are replaced.

    Returns:
        The lines.
    """
    from rich.console import Console as RichConsole
    from rich.text import Text

    shown = re.sub(r"\n(\s*\n)+", "\n\n", formatting.replace_control_characters(text).rstrip())
    lines = Text(shown, tab_size=4).wrap(RichConsole(), 80 - len(_BAR))  # a Chinese character takes two columns
    return "\n".join(f"{_BAR}{line.plain}".rstrip() for line in lines)


def _round_up(steps: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is not below a number of steps."""
    power = int(10 ** int(math.log10(max(1.0, steps))))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= steps)
