"""What a run left, read as far as it can be: a page is wanted most of all for a run that did not go well.

runs/NAME/  config.yaml · environment.json · metrics.jsonl · samples.jsonl · events.jsonl · evaluations/ ──▶ Run
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab.config import Config, load
from gpt2lab.errors import GPT2LabError

LARGEST = 1e18  # no step, loss or rate is beyond; whole numbers in JSON may be, and then fit no float


class Curve(NamedTuple):
    """One metric over a run: `steps` and `values`, both float64 (N,), values finite."""

    steps: np.ndarray
    values: np.ndarray


class Sample(NamedTuple):
    """One text that the model wrote; `continuation` is without the prompt."""

    step: int
    prompt: str
    seed: int | None
    continuation: str


@dataclass(frozen=True)
class Run:
    """One run, from its files alone."""

    name: str
    folder: Path
    settings: Config
    environment: Mapping[str, Any]
    metrics: Mapping[str, Curve]
    samples: Sequence[Sample]
    events: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]  # the newest over whole tasks, as docs/evaluation.md has it; empty without one
    troubles: Sequence[str]  # what the page should say about the files themselves

    def curve(self, key: str) -> Curve:
        """A metric, empty where it was not measured."""
        return self.metrics.get(key, Curve(np.empty(0), np.empty(0)))

    @property
    def source(self) -> str:
        """Which text it was trained on: what the shards' manifest said, else the setting."""
        data = self.environment.get("data")
        return str((data.get("source") if isinstance(data, Mapping) else None) or self.settings.data.source)

    @property
    def last_step(self) -> int:
        """The last step that was trained, 0 before the first."""
        steps = self.curve("train/loss").steps
        return int(steps[-1]) if len(steps) else 0


def read(folder: Path) -> Run:
    """Read a run directory; of the records, lines that are damaged are counted and left out.

    Raises:
        GPT2LabError: the folder is no run; its settings or its environment.json are damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise GPT2LabError(f"{folder} is not a run directory: it has no config.yaml; give one such as runs/quickstart")
    troubles: list[str] = []
    metrics = _curves(_lines(folder / "metrics.jsonl", troubles), troubles)
    return Run(
        name=os.fsencode(folder.resolve().name).decode(errors="replace"),  # a folder's name is bytes, not always UTF-8
        folder=folder,
        settings=load([folder / "config.yaml"]),
        environment=_environment(folder / "environment.json"),
        metrics=metrics,
        samples=_samples(_lines(folder / "samples.jsonl", troubles)),
        events=list(_lines(folder / "events.jsonl", troubles)),
        evaluation=_newest_evaluation(folder / "evaluations"),
        troubles=troubles,
    )


def _lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a `.jsonl` file, one at a time, without a last line that is still being written."""
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
        troubles.append(f"{path.name}: {_plural(damaged, 'damaged line')} left out")


def _curves(lines: Iterable[Mapping[str, Any]], troubles: list[str]) -> dict[str, Curve]:
    points: dict[str, tuple[list[float], list[float]]] = {}
    broken: dict[str, list[int]] = {}
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int) or not abs(step) < LARGEST:
            continue
        for key, value in line.items():
            if isinstance(value, int | float) and abs(value) < LARGEST:  # false for NaN as well
                steps, values = points.setdefault(key, ([], []))
                steps.append(step)
                values.append(value)
            elif value is None or isinstance(value, float):  # null is NaN in JSON
                broken.setdefault(key, []).append(step)
    for key, at in broken.items():
        troubles.append(f"{key} was not a finite number at {_plural(len(at), 'step')}, first at step {at[0]:,}")
    return {key: Curve(np.asarray(steps, float), np.asarray(values, float)) for key, (steps, values) in points.items()}


def _samples(lines: Iterable[Mapping[str, Any]]) -> list[Sample]:
    samples = []
    for line in lines:
        step, prompt, seed, text = (line.get(key) for key in ("step", "prompt", "seed", "text"))
        if isinstance(step, int) and isinstance(prompt, str) and isinstance(text, str):
            samples.append(Sample(step, prompt, seed if isinstance(seed, int) else None, text.removeprefix(prompt)))
    return samples


def _environment(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise GPT2LabError(f"{path}: not valid JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _newest_evaluation(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("step_*.json"), reverse=True):
        if "_limit_" in path.name:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return {}


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
