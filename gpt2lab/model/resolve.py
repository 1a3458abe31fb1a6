"""Which folder of weights a name means: a folder of a model, a run (its newest good checkpoint), or a model of the Hub.

runs/x ──newest checkpoint whose digests verify──┐
runs/x/checkpoints/step_00001000 ────────────────┼──▶ folder with config.json and weights
gpt2, openai-community/gpt2 ──mirror, Hub────────┘
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from gpt2lab import files, resources
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import huggingface

_HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Weights as the Hub may have them, the best first; what stands behind is fetched only where it has none of these.
_FORMS = (
    (huggingface.WEIGHTS,),
    (huggingface.INDEX, "model-*-of-*.safetensors"),
    (huggingface.PICKLE,),
)
Good = TypeVar("Good")


class ResolvedCheckpoint(NamedTuple):
    """A folder of weights, and the run it belongs to, if any."""

    folder: Path
    run: Path | None = None
    step: int | None = None


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a run's `checkpoints` folder, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted((int(path.name[5:]), path) for path in found)


def find_checkpoint(
    name: str | Path, *, mirror: str | Path | None = None, warn: Callable[[str], None] = lambda text: None
) -> ResolvedCheckpoint:
    """The folder that a run directory, a model's folder or a Hub id means.

    Args:
        mirror: folder that holds models of the Hub under their ids, consulted before the Hub.
        warn: hears of every damaged checkpoint that is passed over.

    Raises:
        GPT2LabError: there is nothing of that name, it holds no model, or all of a run's checkpoints are damaged.
    """
    path = Path(name)
    if str(name) and path.is_dir():
        if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").exists():
            return _newest(path, path / "checkpoints", warn)
        if list_checkpoints(path):
            return _newest(path.parent, path, warn)
        if (path / files.DIGESTS).exists():
            files.verify_digests(path, ignored=(huggingface.CARD,))  # people write more into a model card
        if (path / "state.json").exists() and path.parent.name == "checkpoints":
            return ResolvedCheckpoint(path, path.parent.parent, _step(path))
        if not (path / huggingface.CONFIG).exists() and (runs := sorted(path.glob("*/checkpoints"))):
            raise GPT2LabError(f"{path} holds runs, not a model; give one of them, such as {runs[0].parent}")
        return ResolvedCheckpoint(path)
    if str(name) and path.exists():
        raise GPT2LabError(f"{name} is a file; give the folder that holds {huggingface.CONFIG}, or a run directory")
    if not _HUB_NAME.fullmatch(str(name)) or str(name).count("/") > 1 or str(name).startswith("runs/"):
        raise GPT2LabError(f"{name}: no such folder; give a run directory, a model's folder, or a Hub id such as gpt2")
    return ResolvedCheckpoint(_from_hub(str(name), mirror or resources.default_mirror()))


def newest_valid(folder: Path, read: Callable[[Path], Good], warn: Callable[[str], None]) -> Good | None:
    """What `read` makes of the newest checkpoint in `folder` that it does not refuse; None where there are none.

    Args:
        read: raises GPT2LabError for a damaged checkpoint; `warn` hears of it, and the one before it is tried.

    Raises:
        GPT2LabError: there are checkpoints, and none of them is good.
    """
    present = list_checkpoints(folder)
    for _, path in reversed(present):
        try:
            return read(path)
        except GPT2LabError as error:
            warn(f"{error}; trying the checkpoint before it")
    if present:
        raise GPT2LabError(f"{folder}: no checkpoint is intact; remove the folder to start over, or use another run")
    return None


def _newest(run: Path, folder: Path, warn: Callable[[str], None]) -> ResolvedCheckpoint:
    path = newest_valid(folder, _intact, warn)
    if path is None:
        raise GPT2LabError(f"{run} has no checkpoint yet; wait for the first one (checkpoint.every)")
    return ResolvedCheckpoint(path, run, int(path.name[5:]))


def _intact(checkpoint: Path) -> Path:
    files.verify_digests(checkpoint, required=(huggingface.CONFIG, huggingface.WEIGHTS))
    return checkpoint


def _step(path: Path) -> int | None:
    try:
        return int(json.loads((path / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _from_hub(name: str, mirror: str | Path | None) -> Path:
    """A model's folder in the mirror or in Hugging Face's cache, which is filled from the Hub unless HF_HUB_OFFLINE."""
    repository = _HUB_NAMES.get(name, name)
    if mirror is not None:
        for known in (name, repository):
            if (Path(mirror) / known / huggingface.CONFIG).is_file():
                return Path(mirror) / known
    ways = (
        f"give its folder, or a --mirror that holds {name}/{huggingface.CONFIG} and {name}/{huggingface.WEIGHTS} "
        "(or $GPT2LAB_MIRROR)"
    )
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        for form in _FORMS:
            wanted = [huggingface.CONFIG, *form]
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
            if (folder / form[0]).is_file():
                return folder
    except RepositoryNotFoundError:
        raise GPT2LabError(
            f"{name}: no such folder, and no such model on the Hub, or none that you may see (HF_TOKEN); {ways}"
        ) from None
    except Exception as error:  # whatever the network, the cache or the library has to say
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GPT2LabError(
            f"{name} is no folder here, and cannot be fetched from the Hub{offline}: {reason}; {ways}"
        ) from None
    raise GPT2LabError(
        f"{name}: the Hub, or without it its cache, has none of {', '.join(form[0] for form in _FORMS)} of it; {ways}"
    )
