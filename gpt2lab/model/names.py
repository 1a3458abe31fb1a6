"""Names of models, and the errors about those that nothing has. Knows no torch, so that they come at once."""

import os
import re
from pathlib import Path

from gpt2lab import files
from gpt2lab.errors import GPT2LabError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # of files of other projects
# The end of a message about a `run.resume` that is no interrupted run.
WEIGHTS_ONLY = "run.resume continues a training run on its data; to start a new one from weights: --train.init_from {}"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Return whether a name could be that of a model of the Hub, such as `gpt2`.

    Args:
        name: that is no folder.
    """
    return _HUB_ID.fullmatch(name) is not None and not name.startswith("runs/")


def require(name: str | Path) -> None:
    """Check that a name is that of a file or folder that may be a model, or could be one of a model of the Hub.

    Args:
        name: of a model.

    Raises:
        GPT2LabError: it is neither; the message says what else it is, or has a similar name that exists.
    """
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise GPT2LabError(
            f"the model's name is {(str(name) and f'{type(name).__name__} {name!r:.60}') or 'empty'}; give a run "
            "directory, a model's folder or file, or a Hub id such as gpt2"
        )
    path = Path(name)
    if path.exists():
        if other := _find_other_kind(path):
            raise GPT2LabError(f"{name} is {other}, not a model; give a run directory, a model's folder, or a Hub id")
        return
    if path.suffix in SUFFIXES:
        advice = "; give a model's file or folder, a run directory, or a Hub id"
        raise GPT2LabError(f"{name}: no such file{suggest(name) or advice}")
    if not is_hub_id(str(name)):
        advice = "; give a run directory, a model's folder, or a Hub id such as gpt2"
        raise GPT2LabError(f"{name}: no such folder{suggest(name) or advice}")


def require_start(resume: str) -> None:
    """Check that the checkpoint or run that `run.resume` names is there.

    Args:
        resume: the setting, neither auto nor never.

    Raises:
        GPT2LabError: nothing has this name; the message has a similar one that exists.
    """
    if os.path.lexists(resume):
        return
    is_model = is_hub_id(resume) and ("/" in resume or resume.startswith("gpt2"))  # most words could be an id
    weights = f"; a model of the Hub has only weights. {WEIGHTS_ONLY.format(resume)}" if is_model else ""
    advice = suggest(resume) or f"; give auto, never or a checkpoint's path{weights}"
    raise GPT2LabError(f"run.resume {resume}: no such folder{advice}")


def require_no_runs(path: Path) -> None:
    """Check that a folder is not one of runs.

    Args:
        path: a folder that is no run.

    Raises:
        GPT2LabError: it holds runs and no model; the message names one of them.
    """
    if not (path / "config.json").exists() and (runs := sorted(path.glob("*/checkpoints"))):
        usable = [run.parent for run in runs if any(run.glob("step_*"))]
        advice = f"give one of them, such as {usable[0]}" if usable else "none of them has a checkpoint yet"
        raise GPT2LabError(f"{path} holds runs, not a model; {advice}")


def _find_other_kind(path: Path) -> str:
    """What a path is that is certainly no model; empty for all others."""
    if path.is_file():
        return "a recipe" if path.suffix in (".yaml", ".yml") else ""
    if any((path / name).exists() for name in ("config.json", "config.yaml", "checkpoints", "metrics.jsonl")):
        return ""
    shards = ("manifest.json", "*train*.npy", "*train*.bin")
    return "a data folder" if any(any(path.glob(pattern)) for pattern in shards) else ""


def suggest(name: str | Path) -> str:
    """The end of an error message: a run or model of a similar name, here or in `runs/`; empty if there is none.

    Args:
        name: that nothing has.
    """
    for path in (Path(name), Path("runs") / name):
        found = files.find_similar_path(path)
        if found and (any((found / "checkpoints").glob("step_*")) or (found / "config.json").exists()):
            return f"; did you mean {found}?"
    return ""
