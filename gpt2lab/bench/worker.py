"""One contender in one process: it is told to take steps, and answers with the seconds of each.

A process of its own, because threads, allocator, autocast and compiler leave traces that would help or hinder the next.
Only the one that was asked computes; the others wait at their pipe.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gpt2lab.bench.contenders import Step
from gpt2lab.config import Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.linear import linear
from gpt2lab.system import device as devices


class Taken(NamedTuple):
    """What some steps took."""

    seconds: list[float]
    peak_memory_gib: float


class Worker:
    """A process that makes a step by `make(*arguments)` and takes it when asked.

    Args:
        scratch: folder for whatever the contender writes.

    Raises:
        GPT2LabError: on entering or asking, when the contender cannot run here; the message says why.
    """

    def __init__(self, name: str, make: Callable[..., Step], *arguments: Any, device: str, scratch: str):
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


def _serve(pipe: Connection, make: Callable[..., Step], arguments: tuple[Any, ...], device: str, scratch: str) -> None:
    tempfile.tempdir = scratch  # whoever has ended this process removes what it leaves there
    silence = os.open(os.devnull, os.O_WRONLY)  # what contenders print as they train is of no interest here
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    kind = torch.device(device)
    try:
        step = make(*arguments)
        pipe.send(True)
        while True:
            seconds = []
            for _ in range(pipe.recv()):
                began = time.perf_counter()
                step()
                devices.synchronize(kind)
                seconds.append(time.perf_counter() - began)
            pipe.send(Taken(seconds, devices.peak_memory_gib(kind)))
    except EOFError:
        return
    except Exception as error:  # a rival may fail in any way: it is left out, and the others go on
        kind_of = "" if isinstance(error, GPT2LabError) else f"{type(error).__name__}: "
        pipe.send(f"{kind_of}{error}".partition("\n")[0])


def ours(settings: Mapping[str, Any], tokens: int) -> Step:
    """The step that `gpt2lab train` takes: the command itself runs on a thread, and waits after each step.

    Args:
        settings: of a Config; data, run and what is measured beside the steps are replaced.
        tokens: of the made-up corpus.
    """
    from gpt2lab.training import launch

    folder = tempfile.mkdtemp(prefix="gpt2lab-bench-")
    rng = np.random.default_rng(0)
    for split, size in (("train_000", tokens), ("val_000", 5000)):
        np.save(Path(folder) / f"{split}.npy", rng.integers(0, 50257, size, dtype=np.uint16))
    own = {
        "run": {"name": "bench", "out_dir": folder},
        "data": {"dir": folder},
        "checkpoint": {"every": 0},
        "guard": {"deviations": 0, "stop_after": 10**9},
    }
    quiet = {"max_steps": 10**6, "eval_every": 0, "sample_every": 0, "hellaswag_every": 0}
    config = Config.model_validate({**settings, **own, "train": {**settings["train"], **quiet}})
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    failed: list[BaseException] = []

    class Gate:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            done.release()
            go.acquire()

        def close(self) -> None:
            pass

    def train() -> None:
        try:
            launch.run(config, watch=[Gate()])
        except BaseException as error:  # told to whoever waits for the step
            failed.append(error)
            done.release()

    threading.Thread(target=train, daemon=True).start()
    done.acquire()  # line 0, before the first step

    def step() -> None:
        go.release()
        done.acquire()
        if failed:
            raise failed[0]

    if failed:
        raise failed[0]
    return step


def products(tokens: int, channels: int, vocabulary: int, dtype: str, device: str) -> Step:
    """The matrix products of a GPT-2 step's forward pass, alone: what the hardware can do at best with such shapes."""
    kind: torch.dtype = getattr(torch, dtype)
    shapes = [(channels, 3 * channels), (channels, channels), (channels, 4 * channels), (4 * channels, channels)]
    pairs = [
        (torch.randn(tokens, i, device=device).to(kind), torch.randn(o, i, device=device).to(kind))
        for i, o in [*shapes * 3, (channels, vocabulary)]
    ]

    def step() -> None:
        for x, weight in pairs:
            linear(x, weight)

    return step


def flops_of_products(tokens: int, channels: int, vocabulary: int) -> int:
    """Floating-point operations of one `products` step."""
    return 2 * tokens * channels * (3 * 12 * channels + vocabulary)
