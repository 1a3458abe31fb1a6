"""A trace of some steps of a run, for `system.profile`."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gpt2lab import files
from gpt2lab.config import SystemConfig

logger = logging.getLogger(__name__)

_FIRST, _LAST = 10, 15  # steps of the process: the first ones allocate memory and compile


class TraceSink:
    """A sink of metrics that records steps with torch's profiler, and writes a Chrome trace of them.

    It begins when the step before the first one is logged, and ends when the last one is. If the run ends earlier, the
    trace holds the steps until then.

    Args:
        path: of the trace.
        first: the first step that is recorded.
        last: the last one.
        device: where the run computes.
    """

    def __init__(self, path: Path, first: int, last: int, device: torch.device):
        self._path, self._first, self._last, self._device = path, first, last, device
        self._profiler: profile | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        """Begin or end after a step.

        Args:
            step: the step.
            values: not used.
        """
        if step >= self._last:
            self.close()
        elif step >= self._first - 1 and self._profiler is None:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
            self._profiler = profile(activities=activities)
            self._profiler.start()

    def close(self) -> None:
        """Write the trace, if one was begun."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        with files.atomic_write(self._path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        logger.info("wrote %s; open it in ui.perfetto.dev", self._path)


def trace_sinks(system: SystemConfig, folder: Path, first_step: int, device: torch.device) -> list[TraceSink]:
    """Return the sink that `system.profile` asks for, if any.

    Args:
        system: the steps to record.
        folder: of the run; receives `trace.json`.
        first_step: steps already taken.
        device: where the run computes.

    Returns:
        One sink or none.
    """
    steps = _list_steps(system, first_step)
    return [TraceSink(folder / "trace.json", *steps, device)] if steps else []


def _list_steps(system: SystemConfig, first_step: int) -> tuple[int, int] | None:
    """The first and the last step that `system.profile` asks for."""
    if isinstance(system.profile, str):
        first, last = map(int, system.profile.split("-"))
        return first, last
    return (first_step + _FIRST, first_step + _LAST) if system.profile else None


def explain_no_trace(system: SystemConfig, first_step: int, max_steps: int) -> str:
    """Say why `system.profile` gives no trace: its steps are not among those that this start trains.

    Args:
        system: the steps to record.
        first_step: steps already taken.
        max_steps: the last step.

    Returns:
        A sentence; empty if there will be a trace, or none is asked for.
    """
    steps = _list_steps(system, first_step)
    if steps is None or (steps[1] > first_step and steps[0] <= max_steps):
        return ""
    asked = f"system.profile {system.profile}" if isinstance(system.profile, str) else "system.profile true"
    return (
        f"{asked} asks for the steps {steps[0]:,} to {steps[1]:,}, but this start trains {first_step + 1:,} to "
        f"{max_steps:,}: no trace is written"
    )
