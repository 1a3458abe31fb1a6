"""One contender in one process: it is told to take steps, and answers with the seconds of each.

command ─▶ pipe ─▶ Clock, which the contender calls between two steps ─▶ pipe ─▶ seconds

A process of its own, because threads, allocator, autocast and compiler leave traces that would help or hinder the next.
Only the one that was asked computes; the others wait at their pipe.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from gpt2lab.bench.contenders import Between
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.ops import linear
from gpt2lab.system import device as devices


class Taken(NamedTuple):
    """What some steps took."""

    seconds: list[float]
    peak_memory_gib: float


class Worker:
    """A process that runs `make(between, *arguments)`, and takes steps when asked.

    Args:
        scratch: folder for whatever the contender writes.

    Raises:
        GPT2LabError: on entering or asking, when the contender cannot run here; the message says why.
    """

    def __init__(self, name: str, make: Callable[..., None], *arguments: Any, device: str, scratch: str):
        self.name = name
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(theirs, make, arguments, device, scratch), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()  # it is made

    def take(self, steps: int) -> Taken:
        """Take so many steps."""
        self._pipe.send(steps)
        taken: Taken = self._answer()
        return taken

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise GPT2LabError(f"{self.name}: its process died, perhaps for want of memory") from None
        if isinstance(answer, str):
            raise GPT2LabError(f"{self.name}: {answer}")
        return answer


class Clock:
    """What a contender calls between two steps: it waits until steps are wanted, and tells what they took.

    Everything happens on the process's main thread, as in anybody's training script: in another thread the C library
    takes memory from a heap of another kind, and our step would take a tenth longer.
    """

    def __init__(self, pipe: Connection, device: torch.device):
        self._pipe, self._device = pipe, device
        self._seconds: list[float] = []
        self._wanted = -1  # the first call says that the contender is made
        self._began = 0.0

    def __call__(self) -> None:
        devices.synchronize(self._device)
        if self._wanted > 0:
            self._seconds.append(time.perf_counter() - self._began)
        if self._wanted == len(self._seconds) or self._wanted == -1:
            self._pipe.send(Taken(self._seconds, devices.peak_memory_gib(self._device)))
            self._seconds, self._wanted = [], self._pipe.recv()
        self._began = time.perf_counter()


def _serve(pipe: Connection, make: Callable[..., None], arguments: tuple[Any, ...], device: str, scratch: str) -> None:
    tempfile.tempdir = scratch  # whoever has ended this process removes what it leaves there
    silence = os.open(os.devnull, os.O_WRONLY)  # what contenders print as they train is of no interest here
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        make(Clock(pipe, torch.device(device)), *arguments)
    except EOFError:
        return
    except Exception as error:  # a rival may fail in any way: it is left out, and the others go on
        kind_of = "" if isinstance(error, GPT2LabError) else f"{type(error).__name__}: "
        mend = f"; pip install {error.name}" if isinstance(error, ModuleNotFoundError) else ""
        pipe.send(f"{kind_of}{error}".partition("\n")[0] + mend)


def ours(between: Between, settings: Mapping[str, Any], tokens: int) -> None:
    """The step that `gpt2lab train` takes, by the command itself.

    Args:
        settings: of a Config; data, run and what is measured beside the steps are replaced.
        tokens: of the made-up corpus.
    """
    from gpt2lab.training import run as training_run

    class Gate:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            between()

        def close(self) -> None:
            pass

    with tempfile.TemporaryDirectory(prefix="gpt2lab-bench-") as folder:
        rng = np.random.default_rng(0)
        for split, size in (("train_000", tokens), ("val_000", 5000)):
            np.save(Path(folder) / f"{split}.npy", rng.integers(0, 50257, size, dtype=np.uint16))
        own = {
            "run": {"name": "bench", "out_dir": folder},
            "data": {"dir": folder},
            "checkpoint": {"every": 0},
            "guard": {"spike_sigma": 0, "stop_after": 10**9},
        }
        quiet = {"max_steps": 10**6, "eval_every": 0, "sample_every": 0, "hellaswag_every": 0}
        config = Config.model_validate({**settings, **own, "train": {**settings["train"], **quiet}})
        training_run.run(config, watch=[Gate()])


def products(between: Between, tokens: int, channels: int, vocabulary: int, dtype: str, device: str) -> NoReturn:
    """The matrix products of a GPT-2 step's forward pass, alone: what the hardware can do at best with such shapes."""
    if device == "cpu":
        devices.keep_freed_memory()
    kind: torch.dtype = getattr(torch, dtype)
    shapes = [(channels, 3 * channels), (channels, channels), (channels, 4 * channels), (4 * channels, channels)]
    pairs = [
        (torch.randn(tokens, i, device=device).to(kind), torch.randn(o, i, device=device).to(kind))
        for i, o in [*shapes * 3, (channels, vocabulary)]
    ]
    while True:
        between()
        for x, weight in pairs:
            linear(x, weight)


def flops_of_products(tokens: int, channels: int, vocabulary: int) -> int:
    """Floating-point operations of one `products` step."""
    return 2 * tokens * channels * (3 * 12 * channels + vocabulary)
