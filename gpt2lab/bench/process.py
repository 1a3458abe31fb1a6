"""A contender in a process of its own: the parent asks for steps and receives the duration of each.

    parent: time_steps(n) ──n──▶ pipe ──▶ StepTimer, called by the contender between steps ──seconds──▶ pipe

Processes, because threads, allocator, autocast and compiler leave state that would affect the next contender. Only the
process that was asked computes; the others block on their pipe.
"""

import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device as devices


class StepTimes(NamedTuple):
    """Duration of each step, in seconds, and the peak memory since the process began."""

    seconds: list[float]
    peak_memory_gib: float


class ContenderProcess:
    """A process that runs `train(on_step, *arguments)` and pauses between steps until more are asked for.

    Args:
        name: for error messages.
        train: a contender; it calls `on_step` before each step.
        arguments: of `train`, after `on_step`.
        device: where it computes.
        scratch: folder for its temporary files.

    Raises:
        GPT2LabError: here or in `time_steps`, if the contender cannot run; with the reason.
    """

    def __init__(
        self, name: str, train: Callable[..., None], arguments: tuple[Any, ...], device: torch.device, scratch: str
    ):
        self.name = name
        self._pipe, child_pipe = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(
            target=_serve, args=(child_pipe, train, arguments, device, scratch), daemon=True
        )
        self._process.start()
        child_pipe.close()
        self._receive()  # sent when the contender is ready for its first step

    def time_steps(self, count: int) -> StepTimes:
        """Run so many steps."""
        self._pipe.send(count)
        return self._receive()

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()

    def _receive(self) -> StepTimes:
        try:
            message: StepTimes | str = self._pipe.recv()
        except EOFError:
            raise GPT2LabError(f"{self.name}: its process died, perhaps out of memory") from None
        if isinstance(message, str):
            raise GPT2LabError(f"{self.name}: {message}")
        return message


class StepTimer:
    """The `on_step` of a contender: blocks until steps are asked for, and sends their durations.

    It runs on the main thread of the process. On another thread glibc allocates from another kind of heap, which makes
    our step a tenth slower. The contenders share a GPU, so between its turns each releases the memory that it does not
    hold; the first step of a turn, which allocates it again, is not measured.
    """

    def __init__(self, pipe: Connection, device: torch.device):
        self._pipe, self._device = pipe, device
        self._unmeasured = 1 if device.type == "cuda" else 0  # steps at the beginning of a turn
        self._seconds: list[float] = []
        self._requested: int | None = None  # the first call reports that the contender is ready
        self._step_start = 0.0

    def __call__(self) -> None:
        """End the current step, and begin the next one when it is asked for."""
        devices.synchronize(self._device)
        if self._requested:
            self._seconds.append(time.perf_counter() - self._step_start)
        if self._requested is None or len(self._seconds) == self._requested + self._unmeasured:
            times = StepTimes(self._seconds[self._unmeasured :], devices.peak_memory_gib(self._device))
            if self._device.type == "cuda":
                gc.collect()
            devices.release_memory(self._device)
            self._pipe.send(times)
            self._seconds, self._requested = [], self._pipe.recv()
        self._step_start = time.perf_counter()


def _serve(
    pipe: Connection, train: Callable[..., None], arguments: tuple[Any, ...], device: torch.device, scratch: str
) -> None:
    tempfile.tempdir = scratch  # the parent removes it: this process is killed
    null = os.open(os.devnull, os.O_WRONLY)  # contenders print while they train
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        train(StepTimer(pipe, device), *arguments)
    except EOFError:  # the parent is gone
        return
    except Exception as error:  # a rival may fail in any way; it is left out
        error_type = "" if isinstance(error, GPT2LabError) else f"{type(error).__name__}: "
        hint = f"; pip install {error.name}" if isinstance(error, ModuleNotFoundError) else ""
        pipe.send(f"{error_type}{error}".partition("\n")[0] + hint)
