"""Sinks for the metrics of a step; all have the same `log(step, values)`.

`metrics.jsonl` is the record of a run: one object per line, each step once, written without a buffer. `console.py`
prints lines on the terminal, `trackers.py` sends the metrics to TensorBoard and others.
"""

import json
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural


class Sink(Protocol):
    """A consumer of the metrics of every step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step.

        Args:
            step: the step.
            values: by metric key.
        """

    def close(self) -> None:
        """Flush and close."""


def describe_missing(path: Path, steps: Iterable[float], last_step: int) -> str:
    """Describe the steps that a record lacks though they were trained, such as after it was deleted or cut.

    Args:
        path: of metrics.jsonl.
        steps: those that it has, in any order.
        last_step: the last one that it should have.

    Returns:
        One line; empty if it has all from 1 on. (Step 0 has a line only if there is an evaluation before training.)
    """
    present = [0, *sorted({int(step) for step in steps if 0 < step <= last_step}), last_step + 1]
    gaps = [(before + 1, after - 1) for before, after in pairwise(present) if after > before + 1]
    if not gaps:
        return ""
    ranges = [f"{first:,} to {last:,}" if last > first else f"{first:,}" for first, last in gaps]
    more = f" and {plural(len(ranges) - 3, 'other gap')}" if len(ranges) > 3 else ""
    effect = f"curves begin at step {gaps[0][1] + 1:,}" if gaps[0][0] == 1 else "curves lack them"
    word = "steps" if len(ranges) > 1 or "to" in ranges[0] else "step"
    return f"{path} has no records of {word} {', '.join(ranges[:3])}{more}: {effect}"


def truncate_jsonl(path: Path, last_step: int) -> list[int]:
    """Remove the lines of later steps, and incomplete lines. A missing file is not an error.

    Args:
        path: of a `.jsonl` file whose lines have a `step`.
        last_step: the last step to keep.

    Returns:
        The steps of the lines that are kept.
    """
    if not path.exists():
        return []
    kept, steps = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            step = json.loads(line)["step"]
            if step <= last_step:
                kept.append(line + "\n")
                steps.append(step)
        except (ValueError, KeyError, TypeError):
            continue
    with files.atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    return steps


def set_aside_jsonl(path: Path) -> Path:
    """Move all lines to the end of a file with the suffix `.bak`, which keeps what was set aside before.

    Args:
        path: of a `.jsonl` file.

    Returns:
        The path of the other file.

    Raises:
        GPT2LabError: that file cannot be written; the lines stay where they are.
    """
    aside = path.with_name(f"{path.name}.bak")
    content = path.read_bytes()
    try:
        with open(aside, "ab") as file:
            file.write(content if content.endswith(b"\n") or not content else content + b"\n")
        files.sync(aside)
    except OSError as error:
        raise files.cannot_write(aside, error) from error
    path.unlink()
    return aside


def as_record(step: int, values: Mapping[str, float]) -> dict[str, float | None]:
    """The object of a step in metrics.jsonl; None for values that are not finite, which JSON does not have.

    Args:
        step: the step.
        values: by metric key.
    """
    return {"step": step, **{key: value if math.isfinite(value) else None for key, value in values.items()}}


class JsonLines:
    """Appends to a `.jsonl` file without a buffer, so that no line is lost if the process is killed.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        # Open until `close`. Without a buffer, because closing would try again to write one that could not be written.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line with `step` and the values (see `as_record`).

        Args:
            step: the step.
            values: by metric key.
        """
        self.write(as_record(step, values))

    def write(self, record: Mapping[str, object]) -> None:
        """Write any record as one line.

        Args:
            record: values that JSON can represent.

        Raises:
            GPT2LabError: the file cannot be written.
        """
        line = (json.dumps(record) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise GPT2LabError(f"cannot write {self._file.name}: {error.strerror}; free space and run again") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
