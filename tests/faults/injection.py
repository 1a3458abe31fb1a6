"""Faults that a process injects into itself before its command begins. The package contains no code for this.

Most use Python's audit events (open, mkdir, rename, remove): they name the file, and they are raised before the
operation, in the thread that does it.
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
WRITE_MODES = ("w", "wb", "x", "xb")

Matcher = Callable[[str, tuple[Any, ...]], bool]  # (name of an audit event, its arguments) -> whether it is the one


def run_before(matches: Matcher, action: Callable[[], None]) -> None:
    """Run the action once, right before the first audit event that matches."""
    done = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if not done and event in EVENTS and matches(event, arguments):
            done = True
            action()

    sys.addaudithook(hook)


def kill_self() -> None:
    """Send SIGKILL to this process: it ends at once, without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def limit_file_size(size: int) -> None:
    """Let no file grow beyond `size` bytes from now on: writing fails in the same system call as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def read_rank() -> tuple[int, int]:
    """(rank, number of ranks) of this process, from the environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


# -- points in the writing of a checkpoint


def names(step: int) -> tuple[str, str]:
    """The name of a checkpoint's folder, and its name while it is being written or removed."""
    return f"step_{step:08d}", f".tmp-step_{step:08d}"


def creates(step: int) -> Matcher:
    """Before the temporary folder is created."""
    return lambda event, arguments: event == "os.mkdir" and _file_name(arguments[0]) == names(step)[1]


def opens(step: int, file: str) -> Matcher:
    """Before a file of the temporary folder is opened for writing. The files before it are complete."""

    def matches(event: str, arguments: tuple[Any, ...]) -> bool:
        if event != "open" or arguments[1] not in WRITE_MODES or not isinstance(arguments[0], (str, os.PathLike)):
            return False
        path = Path(arguments[0])
        return path.parent.name == names(step)[1] and path.name in (file, f".tmp-{file}")

    return matches


def has_written(step: int, file: str) -> Matcher:
    """Before the next open of any file after `file` was opened for writing."""
    open_matches, opened = opens(step, file), False

    def matches(event: str, arguments: tuple[Any, ...]) -> bool:
        nonlocal opened
        if opened and event == "open":
            return True
        opened = opened or open_matches(event, arguments)
        return False

    return matches


def renames(step: int, source: int, target: int) -> Matcher:
    """Before the folder is renamed. `source` and `target` are 0 for its final name and 1 for the temporary one."""

    def matches(event: str, arguments: tuple[Any, ...]) -> bool:
        if event != "os.rename":
            return False
        return (_file_name(arguments[0]), _file_name(arguments[1])) == (names(step)[source], names(step)[target])

    return matches


def removes(step: int, index: int) -> Matcher:
    """Before the file with this index, counted from 1, of a folder that is pruned is removed."""
    starts_pruning, count = renames(step, 0, 1), -1

    def matches(event: str, arguments: tuple[Any, ...]) -> bool:
        nonlocal count
        if count < 0:
            count += starts_pruning(event, arguments)
            return False
        count += event == "os.remove"
        return count == index

    return matches


def _file_name(path: object) -> str:
    return Path(os.fsdecode(path)).name if isinstance(path, (str, bytes, os.PathLike)) else ""


MIDDLE = 30_000  # bytes: less than the optimizer file of the tiny model, more than any record


def kill_self_at_point(point: str, step: int) -> None:
    """Kill this process at a point of the writing of the checkpoint of `step`."""
    if point == "half-way in a file":  # the kernel ends the process when the file would grow beyond the middle
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        run_before(opens(step, "optimizer.safetensors"), lambda: limit_file_size(MIDDLE))
    else:
        run_before(POINTS[point](step), kill_self)


POINTS: dict[str, Callable[[int], Matcher]] = {
    "before the temporary folder": creates,
    "after the model's file": lambda step: opens(step, "optimizer.safetensors"),
    "half-way in a file": lambda step: opens(step, "optimizer.safetensors"),
    "after the optimizer's file": lambda step: opens(step, "state.json"),
    "after state.json": lambda step: has_written(step, "state.json"),
    "before SHA256SUMS": lambda step: opens(step, "SHA256SUMS"),
    "before the rename": lambda step: renames(step, 1, 0),
    "after the rename, before pruning": lambda step: renames(step - EVERY, 0, 1),
    "while pruning": lambda step: removes(step - EVERY, 2),
}


# -- records of what the process computes


def record_rows(file: Path) -> None:
    """Append to `file`, at every optimizer step, the rows of tokens that passed this rank's model since the last one.

    One JSON object a line: step (as the optimizer counts), rank, ranks, rows.
    """
    import torch

    from gpt2lab.model.gpt2 import GPT2
    from gpt2lab.model.modern import Modern

    step = torch.optim.AdamW.step  # Muon's step comes before it
    rows: list[list[int]] = []

    def record(forward):
        def recording_forward(self, idx, *arguments, **options):
            rows.extend(idx.tolist())
            return forward(self, idx, *arguments, **options)

        return recording_forward

    def recording_step(self, *arguments, **options):
        result = step(self, *arguments, **options)
        rank, ranks = read_rank()
        line = {"step": int(next(iter(self.state.values()))["step"]), "rank": rank, "ranks": ranks, "rows": rows}
        with open(file, "a") as lines:
            lines.write(json.dumps(line) + "\n")
        rows.clear()
        return result

    GPT2.forward, Modern.forward = record(GPT2.forward), record(Modern.forward)
    torch.optim.AdamW.step = recording_step


def save_first_gradients(folder: Path) -> None:
    """Compute in float64, write the gradients of the first optimizer step to `folder/RANK.npz`, and exit."""
    import numpy as np
    import torch

    torch.set_default_dtype(torch.float64)

    def save_and_exit(self, *arguments, **options):
        gradients = [p.grad.numpy() for group in self.param_groups for p in group["params"]]
        np.savez(folder / f"{read_rank()[0]}.npz", *gradients)
        os._exit(0)

    torch.optim.AdamW.step = save_and_exit


# -- faults during training


def hang_at_step(step: int) -> None:
    """Let the optimizer hang in its `step`th update."""
    import torch

    update, count = torch.optim.AdamW.step, 0

    def hanging_step(self, *arguments, **options):
        nonlocal count
        count += 1
        if count == step:
            print("it hangs", flush=True)
            time.sleep(600)
        return update(self, *arguments, **options)

    torch.optim.AdamW.step = hanging_step


def corrupt_steps(value: str, where: str, steps: Container[int], micro_steps: int, digests: Path) -> None:
    """Corrupt the loss or the gradient of some steps on the last rank, and record the weights of every rank.

    Args:
        value: nan, inf or spike (ten thousand times too large).
        where: loss, or gradient: then of one tensor only, after the backward pass and before the all-reduce.
        steps: the steps to corrupt, counted from 1 at the start of this process.
        micro_steps: forward passes a step.
        digests: file for one JSON object per update of the weights: rank, and sha256 of the weights after it.
    """
    import torch

    from gpt2lab.model.gpt2 import GPT2

    rank, ranks = read_rank()
    factor = {"nan": float("nan"), "inf": float("inf"), "spike": 1e4}[value]
    forward, init, step, passes = GPT2.forward, GPT2.__init__, torch.optim.AdamW.step, 0

    def is_corrupted() -> bool:
        return rank == ranks - 1 and (passes - 1) // micro_steps + 1 in steps

    def corrupting_forward(self, *arguments, **options):
        nonlocal passes
        passes += 1
        logits, loss = forward(self, *arguments, **options)
        return logits, loss * factor if loss is not None and where == "loss" and is_corrupted() else loss

    def hooking_init(self, *arguments, **options):
        init(self, *arguments, **options)
        if where == "gradient":
            self.transformer.ln_f.weight.register_hook(
                lambda gradient: gradient * factor if is_corrupted() else gradient
            )

    def digest(optimizer) -> str:
        weights = b"".join(p.detach().numpy().tobytes() for group in optimizer.param_groups for p in group["params"])
        return hashlib.sha256(weights).hexdigest()

    def recording_step(self, *arguments, **options):
        before = digest(self)
        result = step(self, *arguments, **options)
        after = digest(self)
        if after != before:  # a skipped step may call the optimizer, but it does not change the weights
            with open(digests, "a") as lines:
                lines.write(json.dumps({"rank": rank, "sha256": after}) + "\n")
        return result

    GPT2.forward, GPT2.__init__, torch.optim.AdamW.step = corrupting_forward, hooking_init, recording_step


# -- a full disk


def fill_disk_at(metrics: Path, file: str, step: int) -> None:
    """Let no file grow from the writing of `file` of the checkpoint of `step` until files are removed.

    metrics.jsonl grows all the time: it stops growing once that checkpoint is complete.
    """
    if file == metrics.name:
        run_before(renames(step, 1, 0), lambda: limit_file_size(metrics.stat().st_size + 100))
    else:
        run_before(opens(step, file), lambda: limit_file_size(40))
        run_before(frees_space, lambda: limit_file_size(resource.RLIM_INFINITY))


def frees_space(event: str, arguments: tuple[Any, ...]) -> bool:
    """Before files are removed while the size of files is limited."""
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return limited and event in ("os.remove", "shutil.rmtree")
