"""Reads a run directory. Damaged records are skipped and counted, so that a report is possible for any run.

runs/NAME/  config.yaml · environment.json · metrics.jsonl · samples.jsonl · events.jsonl · evaluations/ ──▶ Run
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab.config import Config, load_run
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import suggest_path
from gpt2lab.formatting import plural
from gpt2lab.tracking.metrics import describe_missing

UNKNOWN_TEXT = "unknown text"
SWEEP = "sweep.json"  # in the folder of a sweep; its content: gpt2lab/sweep/record.py
LARGEST = 1e18  # larger integers in JSON may not fit into a float; no step, loss or rate is that large


class Curve(NamedTuple):
    """One metric of a run: `steps` and `values`, both float64 (N,), values finite."""

    steps: np.ndarray
    values: np.ndarray


class Sample(NamedTuple):
    """One generated text, without the prompt, and with at most one empty line in a row."""

    step: int
    prompt: str
    seed: int | None
    text: str

    @property
    def heading(self) -> str:
        """When it was generated."""
        return f"after step {self.step:,}" if self.step else "before training"


class Measured:
    """What has metrics: a run, or a log of another project."""

    metrics: Mapping[str, Curve]

    def curve(self, key: str) -> Curve:
        """A metric; empty if it was not measured.

        Args:
            key: of the metric.

        Returns:
            The curve.
        """
        return self.metrics.get(key, Curve(np.empty(0), np.empty(0)))


@dataclass(frozen=True)
class Run(Measured):
    """The content of a run directory."""

    name: str
    folder: Path
    settings: Config
    environment: Mapping[str, Any]
    metrics: Mapping[str, Curve]
    samples: Sequence[Sample]
    events: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]  # the newest one without a limit (docs/evaluation.md); empty if there is none
    warnings: Sequence[str]  # about damaged files and values that are not finite

    @property
    def source(self) -> str:
        """The text by the shards' manifest; `UNKNOWN_TEXT` if they have none, or one that does not say."""
        data = self.environment.get("data")
        settings = self.settings.data
        source = (
            data["source"]
            if isinstance(data, Mapping) and "source" in data
            else settings.dir is None and settings.source
        )
        return str(source) if source and source != "pretokenized" else UNKNOWN_TEXT

    @property
    def origin(self) -> Mapping[str, Any] | None:
        """Where the initial weights come from (`from`, `path`, `from_step`); None if they were random."""
        return next((event for event in self.events if event.get("event") == "initialized" and "from" in event), None)

    @property
    def hardware(self) -> str:
        """Such as `8 x NVIDIA A100` or `AMD EPYC, 2 cores`, of the last start; empty if it is not recorded."""
        hardware = self.environment.get("hardware")
        if not isinstance(hardware, Mapping):
            return ""
        if hardware.get("gpu"):
            return f"{self.environment.get('world_size', 1)} x {hardware['gpu']}"
        number = hardware.get("cores")
        cores = f", {plural(number, 'core')}" if isinstance(number, int) and number else ""
        return f"{hardware.get('cpu', hardware.get('device', ''))}{cores}"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step."""
        return self.settings.train.total_batch_size

    @property
    def last_step(self) -> int:
        """The last step that was trained, 0 before the first."""
        steps = self.curve("train/loss").steps
        return int(steps[-1]) if len(steps) else 0

    def describe_missing(self) -> str:
        """One line about steps that were trained but are not in metrics.jsonl; empty if there are none."""
        steps = self.curve("step").steps
        last = max(self._last_saved(), int(max(steps, default=0)))
        line = describe_missing(Path("metrics.jsonl"), steps, last)
        return line if len(steps) or not line else f"{line.partition(':')[0]}: there are no curves"

    def _last_saved(self) -> int:
        """The last step that was recorded before the newest checkpoint was written; 0 without checkpoints."""
        folders = {path.name[5:]: path for path in self.folder.glob("checkpoints/step_*")}
        newest = max((number for number in folders if number.isdecimal()), key=int, default=None)
        if newest is None:
            return 0
        with contextlib.suppress(GPT2LabError):  # damaged
            return int(newest) - bool(read_json(folders[newest] / "state.json").get("unlogged"))
        return 0


def read(folder: Path) -> Run:
    """Read a run directory.

    Args:
        folder: the run directory.

    Returns:
        The run. Damaged lines of its records are left out, with a warning in `Run.warnings`.

    Raises:
        GPT2LabError: the folder is no run directory, or its config.yaml or environment.json is damaged.
    """
    if not (folder / "config.yaml").is_file():
        if runs := sorted(folder.glob("*/config.yaml")):
            raise GPT2LabError(f"{folder} holds runs, not a run; give some of them, such as {runs[0].parent}")
        problem = "is not a run directory: it has no config.yaml" if folder.exists() else "does not exist"
        in_runs = "" if folder.exists() else suggest_path(folder) or suggest_path(Path("runs") / folder)
        raise GPT2LabError(f"{folder} {problem}{in_runs or '; give a run directory such as runs/quickstart'}")
    warnings: list[str] = []
    metrics = _curves(_lines(folder / "metrics.jsonl", warnings), warnings)
    return Run(
        name=os.fsencode(folder.resolve().name).decode(errors="replace"),  # file names are bytes, not always UTF-8
        folder=folder,
        settings=load_run(folder),
        environment=read_json(folder / "environment.json"),
        metrics=metrics,
        samples=_samples(_lines(folder / "samples.jsonl", warnings)),
        events=list(_lines(folder / "events.jsonl", warnings)),
        evaluation=_newest_evaluation(folder / "evaluations"),
        warnings=warnings,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.

    Returns:
        The object; an empty one if the file is missing or holds something else.

    Raises:
        GPT2LabError: the file is not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise GPT2LabError(f"{path}: not valid JSON: {error}; restore the file or remove it") from None
    return content if isinstance(content, dict) else {}


def _lines(path: Path, warnings: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a `.jsonl` file, without a last line that is still being written."""
    if not path.is_file():
        return
    damaged = 0
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            else:
                damaged += 1
    if damaged:
        warnings.append(f"{path.name}: {plural(damaged, 'damaged line')} left out")


def _curves(lines: Iterable[Mapping[str, Any]], warnings: list[str]) -> dict[str, Curve]:
    points: dict[str, tuple[list[float], list[float]]] = {}
    not_finite: dict[str, list[int]] = {}
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int) or not abs(step) < LARGEST:
            continue
        for key, value in line.items():
            if isinstance(value, int | float) and abs(value) < LARGEST:  # false for NaN as well
                steps, values = points.setdefault(key, ([], []))
                steps.append(step)
                values.append(value)
            elif value is None or isinstance(value, float):  # NaN is written as null
                not_finite.setdefault(key, []).append(step)
    for key, steps_of_key in not_finite.items():
        count = plural(len(steps_of_key), "step")
        warnings.append(f"{key} was not a finite number at {count}, first at step {steps_of_key[0]:,}")
    return {key: Curve(np.asarray(steps, float), np.asarray(values, float)) for key, (steps, values) in points.items()}


def _samples(lines: Iterable[Mapping[str, Any]]) -> list[Sample]:
    samples = []
    for line in lines:
        step, prompt, seed, text = (line.get(key) for key in ("step", "prompt", "seed", "text"))
        if isinstance(step, int) and isinstance(prompt, str) and isinstance(text, str):
            text = re.sub(r"\n\s*\n\s*", "\n\n", text.removeprefix(prompt).strip())
            samples.append(Sample(step, prompt, seed if isinstance(seed, int) else None, text))
    return samples


def _newest_evaluation(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("step_*.json"), reverse=True):
        with contextlib.suppress(GPT2LabError):
            if "_limit_" not in path.name and (content := read_json(path)):
                return content
    return {}
