"""What can be done to a process from within, before its command begins. Nothing in the package knows of it.

Most goes by Python's audit events (open, mkdir, rename, remove), which name the file and come before the deed, in
whichever thread it is done.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from tests.faults.runs import EVERY

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree")
WRITING = ("w", "wb", "x", "xb")


def at(wanted: Callable[[str, tuple[Any, ...]], bool], deed: Callable[[], None]) -> None:
    """Do the deed once, right before the first audit event that is wanted."""
    done = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if not done and event in EVENTS and wanted(event, arguments):
            done = True
            deed()

    sys.addaudithook(hook)


def die() -> None:
    """SIGKILL to oneself: from any thread, at once, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def limit_file_size(size: int) -> None:
    """From now on no file grows beyond `size` bytes: writing fails as on a full disk, in the same system call."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# -- points of a checkpoint's writing


def names(step: int) -> tuple[str, str]:
    """The folder of a checkpoint, and its name while it is being written or removed."""
    return f"step_{step:08d}", f".tmp-step_{step:08d}"


def begins(step: int) -> Callable[[str, tuple[Any, ...]], bool]:
    """Before the temporary folder is made."""
    return lambda event, arguments: event == "os.mkdir" and _name(arguments[0]) == names(step)[1]


def opens(step: int, file: str) -> Callable[[str, tuple[Any, ...]], bool]:
    """Before a file of the temporary folder is opened for writing; those before it are complete."""

    def wanted(event: str, arguments: tuple[Any, ...]) -> bool:
        if event != "open" or arguments[1] not in WRITING or not isinstance(arguments[0], (str, os.PathLike)):
            return False
        path = Path(arguments[0])
        return path.parent.name == names(step)[1] and path.name in (file, f".tmp-{file}")

    return wanted


def written(step: int, file: str) -> Callable[[str, tuple[Any, ...]], bool]:
    """The first time any file is opened after `file` was."""
    open_it, seen = opens(step, file), False

    def wanted(event: str, arguments: tuple[Any, ...]) -> bool:
        nonlocal seen
        if seen and event == "open":
            return True
        seen = seen or open_it(event, arguments)
        return False

    return wanted


def renames(step: int, source: int, target: int) -> Callable[[str, tuple[Any, ...]], bool]:
    """Before the folder is renamed; `source` and `target` pick its names: 0 the final one, 1 the temporary."""

    def wanted(event: str, arguments: tuple[Any, ...]) -> bool:
        if event != "os.rename":
            return False
        return (_name(arguments[0]), _name(arguments[1])) == (names(step)[source], names(step)[target])

    return wanted


def removes(step: int, nth: int) -> Callable[[str, tuple[Any, ...]], bool]:
    """Before the nth file of a folder that is pruned is removed."""
    pruned, count = renames(step, 0, 1), -1

    def wanted(event: str, arguments: tuple[Any, ...]) -> bool:
        nonlocal count
        if count < 0:
            count += pruned(event, arguments)
            return False
        count += event == "os.remove"
        return count == nth

    return wanted


def _name(path: object) -> str:
    return Path(os.fsdecode(path)).name if isinstance(path, (str, bytes, os.PathLike)) else ""


MIDDLE = 30_000  # bytes: less than the tiny model's optimizer file has, more than any record


def die_before_point(point: str, step: int) -> None:
    """Arrange for death at a point of the writing of the checkpoint of `step`."""
    if point == "half-way in a file":  # the kernel ends the process when the file would grow beyond the middle
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        at(opens(step, "optimizer.safetensors"), lambda: limit_file_size(MIDDLE))
    else:
        at(POINTS[point](step), die)


POINTS: dict[str, Callable[[int], Callable[[str, tuple[Any, ...]], bool]]] = {
    "before the temporary folder": begins,
    "after the model's file": lambda step: opens(step, "optimizer.safetensors"),
    "half-way in a file": lambda step: opens(step, "optimizer.safetensors"),
    "after the optimizer's file": lambda step: opens(step, "state.json"),
    "after state.json": lambda step: written(step, "state.json"),
    "before SHA256SUMS": lambda step: opens(step, "SHA256SUMS"),
    "before the rename": lambda step: renames(step, 1, 0),
    "after the rename, before pruning": lambda step: renames(step - EVERY, 0, 1),
    "while pruning": lambda step: removes(step - EVERY, 2),
}


# -- looking on


def record_rows(file: Path) -> None:
    """Append to `file`, at every optimizer step, the rows of tokens that went through this rank's model since the last.

    One JSON object a line: step (the optimizer's own count), rank, ranks, rows.
    """
    import torch

    from gpt2lab.model.gpt2 import GPT2

    forward, update = GPT2.forward, torch.optim.AdamW.step
    rows: list[list[int]] = []

    def recorded_forward(self, idx, *arguments, **more):
        rows.extend(idx.tolist())
        return forward(self, idx, *arguments, **more)

    def recorded_update(self, *arguments):
        result = update(self, *arguments)
        step = int(next(iter(self.state.values()))["step"])
        rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        with open(file, "a") as lines:
            lines.write(json.dumps({"step": step, "rank": rank, "ranks": ranks, "rows": rows}) + "\n")
        rows.clear()
        return result

    GPT2.forward, torch.optim.AdamW.step = recorded_forward, recorded_update


def save_first_gradients(folder: Path) -> None:
    """Compute in float64; at the first optimizer step write the gradients to `folder/RANK.npz` and be done."""
    import numpy as np
    import torch

    torch.set_default_dtype(torch.float64)

    def save_and_leave(self, *arguments):
        gradients = [p.grad.numpy() for group in self.param_groups for p in group["params"]]
        np.savez(folder / f"{os.environ.get('RANK', '0')}.npz", *gradients)
        os._exit(0)

    torch.optim.AdamW.step = save_and_leave


# -- in the midst of training


def hang_at_step(step: int) -> None:
    """The optimizer does not return from its `step`th update."""
    import torch

    update, taken = torch.optim.AdamW.step, 0

    def hanging(self, *arguments):
        nonlocal taken
        taken += 1
        if taken == step:
            print("it hangs", flush=True)
            time.sleep(600)
        return update(self, *arguments)

    torch.optim.AdamW.step = hanging


def poison(kind: str, where: str, steps: Container[int], micro_steps: int, digests: Path) -> None:
    """Spoil the loss or the gradient of some steps on the last rank, and append what every rank's weights become.

    Args:
        kind: nan, inf or spike (ten thousand times too large).
        where: loss, or gradient: then only that of one tensor, after the backward pass, before it is sent.
        steps: which, counted from 1 at the start of this process.
        micro_steps: forward passes a step.
        digests: a file for one JSON object an update: rank, and sha256 of the weights after it.
    """
    import torch

    from gpt2lab.model.gpt2 import GPT2

    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    factor = {"nan": float("nan"), "inf": float("inf"), "spike": 1e4}[kind]
    forward, build, update, passes = GPT2.forward, GPT2.__init__, torch.optim.AdamW.step, 0

    def spoilt() -> bool:
        return rank == ranks - 1 and (passes - 1) // micro_steps + 1 in steps

    def spoiling_forward(self, *arguments):
        nonlocal passes
        passes += 1
        logits, loss = forward(self, *arguments)
        return logits, loss * factor if where == "loss" and spoilt() else loss

    def spoiling_build(self, *arguments, **more):
        build(self, *arguments, **more)
        if where == "gradient":
            self.transformer.ln_f.weight.register_hook(lambda gradient: gradient * factor if spoilt() else gradient)

    def digest(optimizer) -> str:
        weights = b"".join(p.detach().numpy().tobytes() for group in optimizer.param_groups for p in group["params"])
        return hashlib.sha256(weights).hexdigest()

    def witnessed_update(self, *arguments):
        before = digest(self)
        result = update(self, *arguments)
        if (after := digest(self)) != before:  # a step that is skipped calls the optimizer too, which changes nothing
            with open(digests, "a") as lines:
                lines.write(json.dumps({"rank": rank, "sha256": after}) + "\n")
        return result

    GPT2.forward, GPT2.__init__, torch.optim.AdamW.step = spoiling_forward, spoiling_build, witnessed_update


# -- a full disk


def fill_disk_at(metrics: Path, file: str, step: int) -> None:
    """No file may grow from when `file` of the checkpoint of `step` is to be written until files are removed.

    metrics.jsonl grows all the time: it may not once that checkpoint is there.
    """
    if file == metrics.name:
        at(renames(step, 1, 0), lambda: limit_file_size(metrics.stat().st_size + 100))
    else:
        at(opens(step, file), lambda: limit_file_size(40))
        at(frees_space, lambda: limit_file_size(resource.RLIM_INFINITY))


def frees_space(event: str, arguments: tuple[Any, ...]) -> bool:
    """Before files are removed, while they may not grow."""
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return limited and event in ("os.remove", "shutil.rmtree")
