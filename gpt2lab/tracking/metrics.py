"""Where a step's numbers go: sinks that all take the same `log(step, values)`.

`metrics.jsonl` is the record: one object a line, each step once, flushed as it is written. The console is for
people: a line in the words that users of such projects know, and on a terminal a progress bar with the time left.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_duration


class Sink(Protocol):
    """Anything that wants every step's numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step, by metric key."""

    def close(self) -> None:
        """Flush and let go."""


def truncate_jsonl(path: Path, last_step: int) -> None:
    """Drop every line after `last_step`, and a last line cut off by a kill. Missing files stay missing."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            step = json.loads(line)["step"]
            if step <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with files.atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


class JsonLines:
    """Appends to a `.jsonl` file; what it has written survives the death of the process at once."""

    def __init__(self, path: Path):
        # Open as long as the run; unbuffered, for a buffer that could not be written would be tried again on closing.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line with `step` and the values; null for one that is not finite, which JSON cannot say."""
        self.write({"step": step, **{key: value if math.isfinite(value) else None for key, value in values.items()}})

    def write(self, record: Mapping[str, object]) -> None:
        """Write any record as one line."""
        line = (json.dumps(record) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise GPT2LabError(f"cannot write {self._file.name}: {error.strerror}; free space and run again") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Console:
    """The line a step on standard output, with the time left at its end; on a terminal in a progress bar below it."""

    def __init__(self, max_steps: int, first_step: int, every: int, terminal: bool):
        self._every, self._max_steps, self._progress = every, max_steps, None
        self._began: tuple[int, float] | None = None
        if terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps, left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, speed_estimate_period=120)
            self._task = self._progress.add_task("", total=max_steps, completed=first_step)
            self._progress.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Print the step if it is due, and any evaluation that came with it."""
        left = self._left(step) if "train/loss" in values else ""
        if "train/loss" in values and (step % self._every == 0 or step == self._max_steps):
            print(
                f"step {step:5d} | loss: {values['train/loss']:.6f} | lr {values['train/lr']:.4e} "
                f"| norm: {values['train/grad_norm']:.4f} | dt: {values['perf/step_ms']:.2f}ms "
                f"| tok/sec: {values['perf/tokens_per_second']:.2f}{left}",
                flush=True,
            )
        evaluated = [
            f"{key}: {value:.4f}" for key, value in values.items() if not key.startswith(("train/", "perf/", "guard/"))
        ]
        if evaluated:
            print(f"step {step:5d} | " + " | ".join(evaluated), flush=True)
        if self._progress:
            self._progress.update(self._task, completed=step)

    def _left(self, step: int) -> str:
        """The time to the last step at the pace since the first (which compiles), evaluations and all."""
        now = time.monotonic()
        if self._began is None:
            self._began = step, now
        first, since = self._began
        if self._progress or step == first or step == self._max_steps:
            return ""
        return f" | left: {format_duration((now - since) / (step - first) * (self._max_steps - step))}"

    def close(self) -> None:
        """Take the progress bar off the screen."""
        if self._progress:
            self._progress.stop()
