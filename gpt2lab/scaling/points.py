"""The points of a fit: parameters, tokens and final loss of runs, from run directories or a CSV.

RUN or SWEEP/ (folder of runs)   config.yaml, metrics.jsonl ─┐
                                                              ├──▶ Points
FILE.csv                         columns named by options   ──┘
"""

import csv
import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError, did_you_mean
from gpt2lab.model import flops
from gpt2lab.scaling.forms import Array
from gpt2lab.tracking import records

logger = logging.getLogger(__name__)

Counted = Literal["blocks-and-head", "all", "blocks"]  # what N counts
PREDICTIONS = "predictions.jsonl"  # of a sweep
_DECAYED = 0.25  # a run is decayed if its last learning rate is at most this share of its peak
_SAME = (
    "data.source",
    "data.input",
    "data.dir",
    "train.eval_tokens",
    "model.vocab_size",
)  # must be equal for comparable losses


class Columns(NamedTuple):
    """Names of the columns of a CSV."""

    n: str = "parameters"
    d: str = "tokens"
    loss: str = "loss"


@dataclass(frozen=True)
class Points:
    """Final losses of runs.

    Attributes:
        names: of the runs, or lines of the CSV.
        n: parameters, as counted, float64 (points,).
        d: tokens trained on, (points,).
        loss: final validation losses, (points,).
        flops: of each training run, (points,).
        counts: N by each way of counting, if the sources are run directories; else empty.
        speed: FLOP/s at which the runs trained, their median; None if it is not recorded.
        warnings: what must not be trusted about the points.
    """

    names: tuple[str, ...]
    n: Array
    d: Array
    loss: Array
    flops: Array
    counts: Mapping[str, Array] = field(default_factory=dict)
    speed: float | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def count_as(self, counted: str) -> "Points":
        """The same points with N counted in another way."""
        return dataclasses.replace(self, n=self.counts[counted])

    def select(self, kept: "np.ndarray") -> "Points":
        """The points where `kept`, a bool array (points,), is true."""
        return dataclasses.replace(
            self,
            names=tuple(name for name, keep in zip(self.names, kept, strict=True) if keep),
            counts={way: values[kept] for way, values in self.counts.items()},
            **{name: getattr(self, name)[kept] for name in ("n", "d", "loss", "flops")},
        )


def count_parameters(config: Config) -> dict[str, int]:
    """The parameters of a model in each way of counting: `Counted`."""
    model = config.model
    head = model.vocab_size * model.n_embd
    # 6 N of the FLOPs: the weights that are multiplied, which are those of blocks, final layer norm and head.
    attention = 12 * model.n_layer * model.n_embd * model.block_size
    multiplied = (flops.flops_per_token(model) - attention) // 6
    return {"blocks-and-head": multiplied, "all": flops.parameters(model), "blocks": multiplied - head}


def find_sweep(sources: Iterable[str]) -> Path | None:
    """The first source that is a folder of runs; None if there is none."""
    folders = (Path(source) for source in sources)
    return next((folder for folder in folders if folder.is_dir() and not (folder / "config.yaml").exists()), None)


def read(sources: Sequence[str], columns: Columns, counted: Counted) -> Points:
    """Read points.

    Args:
        sources: run directories, folders that hold run directories, or one CSV.
        columns: of the CSV.
        counted: what N counts in run directories. In a CSV it is what the file says.

    Returns:
        The points. Runs that have not ended, and runs that a prediction was recorded for, are left out.

    Raises:
        GPT2LabError: a source does not exist or is not valid, or there are no points.
    """
    files = [source for source in sources if Path(source).is_file()]
    if not sources:
        raise GPT2LabError("no points: give a CSV, run directories or a folder of runs, such as runs/sweep")
    if files and len(sources) > 1:
        raise GPT2LabError(f"{files[0]}: a CSV must be the only source")
    points = _read_csv(Path(files[0]), columns) if files else _read_runs(sources).count_as(counted)
    if not len(points):
        raise GPT2LabError(f"{' '.join(sources)}: no complete row, and no run that has ended with a validation loss")
    return points


def _read_csv(path: Path, columns: Columns) -> Points:
    names: list[str] = []
    rows: list[list[float]] = []
    empty: list[str] = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            header = reader.fieldnames or []
            if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
                raise GPT2LabError(f"{path}: its columns are not separated by commas; save it so")
            for option, column in columns._asdict().items():
                if column not in header:
                    known = f"{did_you_mean(column, header)} (columns: {', '.join(header)})"
                    raise GPT2LabError(f"{path} has no column {column!r}; name it with --{option}{known}")
            for row in reader:
                cells = [(row[column] or "").strip() for column in columns]
                if any(cell.lower() in ("", "nan") for cell in cells):
                    empty.append(f"line {reader.line_num}")
                    continue
                names.append(f"line {reader.line_num}")
                rows.append([_positive(cell, path, reader.line_num) for cell in cells])
        except (UnicodeDecodeError, csv.Error) as error:
            raise GPT2LabError(f"{path}: not a CSV in UTF-8: {error}") from None
    n, d, loss = np.array(rows, float).reshape(-1, 3).T
    warnings = [
        f"{path.name} does not say whether the learning rate was decayed: only the losses of such runs are valid"
    ]
    if empty:
        warnings.append(f"left out, because a value is missing: {', '.join(empty)}")
    return Points(tuple(names), n, d, loss, flops=6 * n * d, warnings=tuple(warnings))


def _positive(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise GPT2LabError(f"{path}: line {line}: {text!r} is not a positive number")
    return value


def _read_runs(sources: Sequence[str]) -> Points:
    runs = [records.read(folder) for source in sources for folder in _list_runs(Path(source))]
    rows, left_out = [], []
    for run in runs:
        train, curve = run.settings.train, run.curve("val/loss")
        if len(curve.steps) and curve.steps[-1] == train.max_steps:
            rows.append((run, train.max_steps * train.total_batch_size, curve.values[-1]))
        else:
            left_out.append(run.name)
    warnings = _check_runs([run for run, _, _ in rows])
    if left_out:
        warnings.append(f"left out, because they have no validation loss of their last step: {', '.join(left_out)}")
    counts = [count_parameters(run.settings) for run, _, _ in rows]
    by_way = {way: np.array([count[way] for count in counts], float) for way in ("blocks-and-head", "all", "blocks")}
    d, loss = (np.array([row[column] for row in rows], float) for column in (1, 2))
    per_token = np.array([flops.flops_per_token(run.settings.model) for run, _, _ in rows], float)
    names = tuple(run.name for run, _, _ in rows)
    speed = _median_speed([run for run, _, _ in rows], per_token)
    return Points(names, by_way["blocks-and-head"], d, loss, per_token * d, by_way, speed, tuple(warnings))


def _list_runs(folder: Path) -> list[Path]:
    """The run directories of a source: itself, or those in it except the ones that a prediction was recorded for."""
    if not folder.is_dir():
        raise GPT2LabError(f"{folder}: no such file or directory; give a CSV, a run directory or a folder of runs")
    if (folder / "config.yaml").exists():
        return [folder]
    held_out = {line.get("run") for line in read_predictions(folder)}
    runs = sorted(path.parent for path in folder.glob("*/config.yaml"))
    if not runs:
        raise GPT2LabError(f"{folder} holds no run directories")
    if skipped := [run.name for run in runs if run.name in held_out]:
        logger.info("held out, because a prediction was recorded for them: %s", ", ".join(skipped))
    return [run for run in runs if run.name not in held_out]


def read_predictions(folder: Path) -> list[dict[str, object]]:
    """The predictions that were recorded in a folder of runs, in order.

    Args:
        folder: of the sweep.

    Returns:
        The records; an empty list if there are none.

    Raises:
        GPT2LabError: a line is not JSON.
    """
    path = folder / PREDICTIONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise GPT2LabError(f"{path}: not valid JSON: {error}; restore the file") from None


def _check_runs(runs: Sequence[records.Run]) -> list[str]:
    """Warnings about runs whose losses do not belong into one fit."""
    warnings = []
    rates = [(run.name, run.curve("train/lr").values) for run in runs]
    if undecayed := [name for name, values in rates if len(values) and values[-1] > _DECAYED * values.max()]:
        warnings.append(
            f"the learning rate was not decayed at the end, so the loss is too high: {', '.join(undecayed)}"
        )
    flat = [run.settings.flat() for run in runs]
    differing = {key: sorted({str(settings[key]) for settings in flat}) for key in _SAME}
    return warnings + [
        f"the runs differ in {key} ({', '.join(values)}), so their losses are not comparable"
        for key, values in differing.items()
        if len(values) > 1
    ]


def _median_speed(runs: Sequence[records.Run], flops_per_token: Array) -> float | None:
    speeds = [run.curve("perf/tokens_per_second").values for run in runs]
    measured = [np.median(values) * each for values, each in zip(speeds, flops_per_token, strict=True) if len(values)]
    return float(np.median(measured)) if measured else None
