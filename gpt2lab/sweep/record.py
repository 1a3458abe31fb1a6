"""`sweep.json`, the record of a sweep, and what the run directories say about its runs.

Whether a run is finished is read from its own files, so runs that a cluster's queue has trained count as well. The
record adds what they do not know: runs that wait or have failed, with their errors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gpt2lab import __version__, files
from gpt2lab.config import Config, load_run
from gpt2lab.errors import GPT2LabError
from gpt2lab.sweep.grid import Sweep
from gpt2lab.tracking.records import SWEEP, read_json

Status = Literal["waiting", "running", "finished", "failed", "stopped"]
# Settings that do not change what a run learns. All others must be as they were when the run began.
_MAY_CHANGE = ("run.name", "run.out_dir", "run.resume", "data.mirror", "checkpoint.", "tracking.", "system.")
_TAIL = 1 << 16  # bytes from the end of metrics.jsonl that hold its last line


class State(NamedTuple):
    """What has become of a run."""

    status: Status = "waiting"
    seconds: float = 0.0
    error: str = ""


def last_step(folder: Path) -> int:
    """The last step in the metrics of a run directory.

    Args:
        folder: the run directory.

    Returns:
        The step; -1 if there is none.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return -1
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]  # without one that is still being written
    try:
        return int(json.loads(lines[-1])["step"]) if lines else -1
    except (ValueError, KeyError, TypeError):
        return -1


def is_finished(folder: Path, max_steps: int) -> bool:
    """Whether a run has been trained to its end: its last metrics, and its last checkpoint unless all were deleted.

    Args:
        folder: the run directory.
        max_steps: its number of steps.
    """
    checkpoints = folder / "checkpoints"
    saved = not checkpoints.exists() or (checkpoints / f"step_{max_steps:08d}").is_dir()
    return last_step(folder) == max_steps and saved


def check_unchanged(sweep: Sweep) -> None:
    """Check that the runs that have begun have the settings of this sweep: with others their losses would not compare.

    Args:
        sweep: about to be trained.

    Raises:
        GPT2LabError: a setting has changed.
    """
    for run in sweep.runs:
        folder = sweep.folder / run.name
        if not (folder / "config.yaml").exists():
            continue
        before, now = _relevant(load_run(folder)), _relevant(run.config)
        if changed := [name for name in now if before.get(name) != now[name]]:
            name = changed[0]
            raise GPT2LabError(
                f"{folder} began with {name} {before.get(name)}, now it is {now[name]}; set it back, or give the sweep "
                "another --run.name"
            )


def _relevant(config: Config) -> dict[str, Any]:
    flat = config.flat().items()
    kept = {name: value for name, value in flat if not name.startswith(_MAY_CHANGE) or name == "system.precision"}
    return kept | {"model.size": None}  # sets others


def describe_change(sweep: Sweep) -> str:
    """Say how the runs differ from those that the record has, if the grid was changed.

    Args:
        sweep: about to be trained.

    Returns:
        A sentence; empty if the runs are the same, or there is no record.
    """
    recorded = read(sweep.folder)
    if not recorded:
        return ""
    before, now = {str(row.get("name")) for row in recorded["runs"]}, {run.name for run in sweep.runs}
    parts = [f"{new} run{'s are' if new > 1 else ' is'} new"] if (new := len(now - before)) else []
    if gone := sorted(before - now):
        names = ", ".join(gone[:4]) + (", …" if len(gone) > 4 else "")
        stay = "are no longer in it and stay" if len(gone) > 1 else "is no longer in it and stays"
        parts.append(f"{len(gone)} {stay} in the folder ({names})")
    return f"the grid of {sweep.folder} has changed: {', '.join(parts)}" if parts else ""


def read(folder: Path) -> dict[str, Any]:
    """Read sweep.json.

    Args:
        folder: of the sweep.

    Returns:
        Its content; an empty object if there is none.

    Raises:
        GPT2LabError: the file is damaged.
    """
    content = read_json(folder / SWEEP)
    if content and not (
        isinstance(content.get("runs"), list) and all(isinstance(row, dict) for row in content["runs"])
    ):
        raise GPT2LabError(f"{folder / SWEEP} is damaged; restore it or remove it")
    return content


def write(sweep: Sweep, states: Mapping[str, State]) -> None:
    """Write sweep.json.

    Args:
        sweep: its runs.
        states: by name of the run.
    """
    runs = [
        {"name": run.name, "settings": dict(run.settings), **states.get(run.name, State())._asdict()}
        for run in sweep.runs
    ]
    content = {
        "gpt2lab": __version__,
        "config": list(sweep.recipes),
        "overrides": dict(sweep.overrides),
        "plan": sweep.plan,
        "runs": runs,
    }
    with files.atomic_write(sweep.folder / SWEEP) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def initial_states(sweep: Sweep) -> dict[str, State]:
    """The states before training: finished runs, and all others as waiting.

    Args:
        sweep: about to be trained.

    Returns:
        By name of the run. The seconds of finished runs are those of the record.
    """
    seconds = {row.get("name"): row.get("seconds") for row in read(sweep.folder).get("runs", ())}
    states = {}
    for run in sweep.runs:
        done = is_finished(sweep.folder / run.name, run.config.train.max_steps)
        spent = seconds.get(run.name)
        states[run.name] = State("finished" if done else "waiting", spent if isinstance(spent, int | float) else 0.0)
    return states
