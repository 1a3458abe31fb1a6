"""The disk space of a run: how many checkpoints it keeps, and whether they fit. Checked before the first step."""

import math
from pathlib import Path
from typing import NamedTuple

from gpt2lab import disk_space, files
from gpt2lab.config import Config
from gpt2lab.disk_space import SpaceNeeded
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_bytes, plural
from gpt2lab.model import flops, resolve
from gpt2lab.training.checkpoint import BYTES_PER_PARAMETER
from gpt2lab.training.run_directory import RunDirectory

_STATE_BYTES = 50_000  # of a checkpoint besides tensors: their names, state.json
_STEP_BYTES = 500  # of a line of metrics.jsonl
_REPORT_BYTES = 5_000_000  # report, curves and samples


class CheckpointSpace(NamedTuple):
    """The checkpoints of a run on disk.

    Attributes:
        each: bytes of one.
        kept: how many there are at the end, at most.
        most: how many there are at the same time, at most: one is complete before an older one is removed.
    """

    each: int
    kept: int
    most: int

    def line(self) -> str:
        """Return a line for the summary of the run."""
        times = f"{self.kept} kept" + (", and one being written" if self.most > self.kept else "")
        return f"checkpoints: {format_bytes(self.each)} each, at most {times}: {format_bytes(self.each * self.most)}"


def plan_checkpoints(config: Config) -> CheckpointSpace:
    """Count the checkpoints that a whole run has on disk.

    Args:
        config: all settings.

    Returns:
        Their number and size.
    """
    keep, last_step = config.checkpoint, config.train.max_steps
    written = math.ceil(last_step / keep.every) if keep.every else 1
    kept = keep.keep_last + (keep.keep_best and config.train.eval_every > 0)
    if keep.keep_every and keep.every:
        kept += last_step // math.lcm(keep.every, keep.keep_every)
    kept = min(written, kept)
    each = BYTES_PER_PARAMETER * flops.parameters(config.model) + _STATE_BYTES
    return CheckpointSpace(each, kept, min(written, kept + 1))


def require_space(config: Config, directory: RunDirectory, *, remove_unfinished: bool = True) -> CheckpointSpace:
    """Check, on rank 0, that the disk has room for what the run will still write.

    Args:
        config: all settings.
        directory: of the run; the checkpoints that it has already take no new space.
        remove_unfinished: delete a checkpoint that a killed process left unfinished first, because it takes space. The
            directory must be locked.

    Returns:
        The checkpoints of the run.

    Raises:
        GPT2LabError: there is not enough space; on every rank.
    """
    space = plan_checkpoints(config)

    def check() -> None:
        if remove_unfinished and directory.checkpoints.is_dir():
            files.remove_temporaries(directory.checkpoints)
        present = len(resolve.list_checkpoints(directory.checkpoints))
        if lack := disk_space.describe_lack(_list_needs(config, directory.path, present)):
            advice = ["free space", "move run.out_dir to another disk", *_find_help(config, directory.path, present)]
            raise GPT2LabError(f"{lack}; {', '.join(advice[:-1])}, or {advice[-1]}")

    directory.dist.on_main(check)
    return space


def _list_needs(config: Config, folder: Path, present: int) -> list[SpaceNeeded]:
    """What a run in `folder`, which has `present` checkpoints, will still write."""
    space, steps = plan_checkpoints(config), config.train.max_steps
    missing = max(1, space.most - present)
    what = f"{missing} more checkpoint{'s' * (missing > 1)} of {format_bytes(space.each)}"
    return [
        SpaceNeeded(folder, missing * space.each, what),
        SpaceNeeded(folder, _STEP_BYTES * steps + _REPORT_BYTES, f"records of {plural(steps, 'step')} and the report"),
    ]


def _find_help(config: Config, folder: Path, present: int) -> list[str]:
    """The change of settings with which the run fits on the disk; empty if there is none."""
    keep, train = config.checkpoint, config.train
    checkpoints, records = (need.size for need in _list_needs(config, folder, present))
    if records - _REPORT_BYTES > checkpoints:
        advice = "lower train.max_steps"
        changed: dict[str, object] = {"train": train.model_copy(update={"max_steps": 1})}
    else:
        fewest = {"keep_last": 1, "keep_best": False, "keep_every": 0}
        names = [name for name, value in fewest.items() if getattr(keep, name) != value]
        advice = f"set {' and '.join(f'checkpoint.{name} {str(fewest[name]).lower()}' for name in names)}"
        changed = {"checkpoint": keep.model_copy(update=fewest)}
    helps = not disk_space.describe_lack(_list_needs(config.model_copy(update=changed), folder, present))
    return [advice] if helps else []
