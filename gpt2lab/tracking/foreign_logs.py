"""Reads the training logs of other projects, recognized by their content.

log.txt (build-nanogpt) · main.log (llm.c) · console (nanoGPT) · modded-nanogpt · CSV ──▶ metrics, as of a Run
"""

import contextlib
import csv
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2lab.errors import GPT2LabError
from gpt2lab.tracking.records import LARGEST, Curve, Measured

logger = logging.getLogger(__name__)

FORMATS = "log.txt of build-nanogpt, main.log of llm.c, the console output of nanoGPT, logs of modded-nanogpt, CSV"
_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf)"


@dataclass(frozen=True)
class ForeignLog(Measured):
    """A log of another project. Steps count optimizer updates, as in a Run: `val/loss` at step n is after n updates."""

    name: str
    folder: Path  # the file itself; named as in a Run
    format: str
    metrics: Mapping[str, Curve]
    tokens_per_step: int | None  # None if neither the log nor the user says it


class _Format(NamedTuple):
    """Lines of a project's log.

    Attributes:
        name: of the project.
        patterns: by metric, expressions whose groups are a step and a value.
        first_step: number of the first training step; 0: the loss of step n is that of our step n + 1.
        tokens: expression of a line that says the tokens of a step.
    """

    name: str
    patterns: Mapping[str, re.Pattern[str]]
    first_step: int
    tokens: re.Pattern[str] | None = None


def _compile(**patterns: str) -> dict[str, re.Pattern[str]]:
    names = {"train": "train/loss", "val": "val/loss", "hellaswag": "hellaswag/acc_norm"}
    return {names[key]: re.compile(pattern.replace("NUMBER", _NUMBER)) for key, pattern in patterns.items()}


_FORMATS = (
    _Format(
        "build-nanogpt",
        _compile(
            train=r"^(\d{1,15}) train NUMBER$", val=r"^(\d{1,15}) val NUMBER$", hellaswag=r"^(\d{1,15}) hella NUMBER$"
        ),
        first_step=0,
    ),
    _Format(
        "llm.c",
        _compile(
            train=r"^s:(\d{1,15}) trl:NUMBER\b",
            val=r"^s:(\d{1,15}) tel:NUMBER$",
            hellaswag=r"^s:(\d{1,15}) eval:NUMBER$",
        ),
        first_step=0,
    ),
    _Format(
        "nanoGPT",  # possibly after a time stamp
        _compile(
            train=r"\biter (\d{1,15}): loss NUMBER, time",
            val=r"\bstep (\d{1,15}): train loss [\w.+-]+, val loss NUMBER",
        ),
        first_step=0,
        tokens=re.compile(r"\btokens per iteration will be: ([\d,]{1,20})"),
    ),
    _Format(
        "modded-nanogpt",
        _compile(train=r"^step:(\d{1,15})/\d+ train_loss:NUMBER\b", val=r"^step:(\d{1,15})/\d+ val_loss:NUMBER\b"),
        first_step=1,
    ),
)
# Columns of a CSV, in lower case, by what they hold; the first one that is there is taken.
_COLUMNS = {
    "step": "step iter iteration global_step _step steps iters iterations trainer/global_step",
    "tokens": "tokens tokens_seen total_tokens train/tokens num_tokens",
    "train/loss": "train/loss train_loss training_loss loss/train loss train-loss",
    "val/loss": "val/loss val_loss valid_loss validation_loss eval_loss eval/loss loss/val valid/loss val-loss",
    "hellaswag/acc_norm": "hellaswag/acc_norm hellaswag hella hellaswag_acc hellaswag_acc_norm hella_acc",
}
_MAX_LINE, _MAX_UNKNOWN = 10_000, 100_000  # characters of a line; lines before the first that is of a log


def read(file: Path, tokens_per_step: int | None = None) -> ForeignLog:
    """Read a log.

    Args:
        file: path of the log.
        tokens_per_step: of the log's run; None if it is not known.

    Returns:
        The log. Of a step that was logged twice, as after a restart, the later value counts; values that are not finite
        are left out, and a value that the end of the file cuts short.

    Raises:
        GPT2LabError: the file cannot be read, is in no known format, or is a table without a row that can be read.
    """
    try:
        found = _read_csv(file) or _read_lines(file)
    except OSError as error:
        raise GPT2LabError(f"{file}: cannot read it: {error.strerror}") from None
    if found is None:
        raise GPT2LabError(f"{file} is neither a run directory nor a log that is known; known are: {FORMATS}")
    name, points, stated = found
    metrics = {key: _to_curve(values) for key, values in points.items() if values}
    return ForeignLog(file.name, file, name, metrics, tokens_per_step or stated)


_Found = tuple[str, dict[str, dict[int, float]], int | None]  # name of the format, value by metric and step, tokens


def _lines(file: Path) -> Iterator[str]:
    """The lines of a text file, with their ends; none if it is binary."""
    with open(file, "rb") as binary:
        if b"\0" in binary.read(4096):
            return
    with open(file, encoding="utf-8-sig", errors="replace") as text:
        while line := text.readline(_MAX_LINE):
            yield line


def _read_lines(file: Path) -> _Found | None:
    """Read a log of lines in the format that most of its lines have."""
    points: list[dict[str, dict[int, float]]] = [{} for _ in _FORMATS]
    counts, stated = [0] * len(_FORMATS), None
    digits: dict[str, int] = {}  # of the last value of each metric
    for number, text in enumerate(_lines(file)):
        line = text.rstrip("\r\n")
        if number > _MAX_UNKNOWN and not any(counts):
            return None
        for index, log_format in enumerate(_FORMATS):
            for key, pattern in log_format.patterns.items():
                if match := pattern.search(line):
                    decimals = len(match[2].partition(".")[2])  # the same number in all lines of a format
                    if line == text and decimals < digits.get(key, 0):  # the log is being written, or was copied
                        break
                    digits[key] = decimals
                    counts[index] += 1
                    step = int(match[1]) + (key == "train/loss" and log_format.first_step == 0)
                    _add(points[index].setdefault(key, {}), step, match[2])
                    break
            if log_format.tokens and (match := log_format.tokens.search(line)):
                stated = int(match[1].replace(",", ""))
    best = max(range(len(counts)), key=lambda index: counts[index])
    if not counts[best] or not any(points[best].values()):
        return None
    return _FORMATS[best].name, points[best], stated if _FORMATS[best].tokens else None


def _add(values: dict[int, float], step: float, text: str) -> None:
    """Keep a value if it is a finite number, and forget an earlier one of the step."""
    value = float(text)
    values.pop(int(step), None)
    if math.isfinite(value) and abs(value) < LARGEST and 0 <= step < LARGEST:
        values[int(step)] = value


def _to_curve(values: Mapping[int, float]) -> Curve:
    steps = sorted(values)
    return Curve(np.array(steps, float), np.array([values[step] for step in steps], float))


def _find_columns(header: Sequence[str]) -> dict[str, int]:
    """The index of the column of each metric, by name; `RUN - loss`, as Weights & Biases names columns, is `loss`."""
    names = [name.strip().lower().rpartition(" - ")[2].replace(" ", "_") for name in header]
    columns = {}
    for key, known in _COLUMNS.items():
        if found := next((name for name in known.split() if name in names), None):
            columns[key] = names.index(found)
    return columns


def _rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    """The rows of a CSV up to a damaged one."""
    with contextlib.suppress(csv.Error):
        yield from csv.reader(lines, delimiter=delimiter)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_csv(file: Path) -> _Found | None:
    """Read a table with columns of steps and losses, separated by commas, tabs or semicolons; log which were taken.

    Raises:
        GPT2LabError: it has these columns, and no row that can be read.
    """
    lines = (line.rstrip("\r\n") for line in _lines(file))
    first = next(lines, "")
    delimiter = max(",;\t", key=first.count)
    header = next(_rows(iter([first]), delimiter), [])
    columns = _find_columns(header)
    if "step" not in columns or not columns.keys() & {"train/loss", "val/loss"}:
        return None
    points: dict[str, dict[int, float]] = {}
    rates: list[float] = []
    problem = ""
    for number, row in enumerate(_rows(lines, delimiter), start=2):
        if delimiter == ";":  # of languages that write 3,5 for 3.5
            row = [cell.replace(",", ".") for cell in row]
        cells = {key: row[index].strip() for key, index in columns.items() if index < len(row) and row[index].strip()}
        try:
            step = float(cells["step"])
            if "tokens" in cells and step > 0:
                rates.append(float(cells["tokens"]) / step)
            for key in cells.keys() - {"step", "tokens"}:
                _add(points.setdefault(key, {}), step, cells[key])
        except (KeyError, ValueError, OverflowError):
            bad = [cell for cell in cells.values() if not _is_number(cell)]
            problem = problem or "".join(f"{file}, line {number}: {cell!r:.60} is not a number" for cell in bad[:1])
    if not any(points.values()):
        if problem:
            raise GPT2LabError(problem)
        return None
    taken = ", ".join(f"{key} from column {header[index].strip()!r}" for key, index in columns.items())
    logger.info(f"{file}: {taken}")
    rate = round(float(np.median(rates))) if rates else 0
    return "CSV", points, rate if 0 < rate < LARGEST else None
