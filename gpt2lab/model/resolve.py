"""Find the model that a name stands for: a model's folder, a run (its newest intact checkpoint), a Hub id, or a file.

runs/x ──newest checkpoint with correct digests──┐
runs/x/checkpoints/step_00001000 ────────────────┼──▶ folder with config.json and weights ─┐
gpt2, openai-community/gpt2 ──mirror, Hub────────┘                                         ├─▶ config, weights
model_19072.pt ────────────────────────────────────▶ file of another project ──────────────┘
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from gpt2lab import files, progress, resources
from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError, UnreadableError
from gpt2lab.model import foreign, huggingface, names, weight_files

logger = logging.getLogger(__name__)

_SHORT_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
# Forms that a model's weights have on the Hub, best first; only the first that exists is downloaded.
_WEIGHT_FORMS = (
    (weight_files.SAFETENSORS,),
    (weight_files.INDEX, "model-*-of-*.safetensors"),
    (weight_files.PICKLE,),
)
_CHECKPOINT = re.compile(r"step_[0-9]+")
T = TypeVar("T")


class ResolvedCheckpoint(NamedTuple):
    """A folder with a model, and the run and step it belongs to, if any; or a file of another project."""

    folder: Path
    run: Path | None = None
    step: int | None = None


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List the checkpoints of a run.

    Args:
        folder: the run's `checkpoints` folder; need not exist.

    Returns:
        (step, path) of each, oldest first.

    Raises:
        GPT2LabError: the folder is a file, a link to nothing, or cannot be read: that does not mean it is empty.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        if folder.is_symlink():
            raise GPT2LabError(f"{folder} is a link to {os.readlink(folder)}, which does not exist") from None
        return []
    except NotADirectoryError:
        raise GPT2LabError(f"{folder} is a file, not a folder") from None
    except OSError as error:
        raise files.cannot_read(folder, error) from error
    return sorted((int(name[5:]), folder / name) for name in names if _CHECKPOINT.fullmatch(name))


def find_checkpoint(name: str | Path, *, mirror: str | Path | None = None) -> ResolvedCheckpoint:
    """Find the model that a name stands for; verify its digests if it has any, download it if need be.

    Damaged checkpoints of a run are skipped, each with a warning.

    Args:
        name: a run directory, a model's folder, a Hub id, or a file that `foreign.read` reads.
        mirror: folder that holds models of the Hub under their ids, searched before the Hub; `$GPT2LAB_MIRROR` if
            None.

    Returns:
        The model's folder or file, and its run and step where it is a checkpoint.

    Raises:
        GPT2LabError: nothing has that name, it holds no model, or all checkpoints of a run are damaged.
    """
    names.require(name)
    path = Path(name)
    if path.is_dir():
        return _find_in_folder(path)
    if path.is_file():
        return ResolvedCheckpoint(path)
    return ResolvedCheckpoint(_find_on_hub(str(name), mirror or resources.default_mirror()))


def read(checkpoint: ResolvedCheckpoint, dtype: torch.dtype = torch.float32) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Read the model that `find_checkpoint` found.

    Args:
        checkpoint: the model's folder, or a file of another project.
        dtype: to convert the weights to.

    Returns:
        The config, and the tensors of `huggingface.shapes(config)`, on the CPU. When tied, `lm_head.weight` is the
        token embedding itself.

    Raises:
        GPT2LabError: see `huggingface.read` and `foreign.read`.
    """
    if checkpoint.folder.is_file():
        return foreign.read(checkpoint.folder, dtype)
    return huggingface.read(checkpoint.folder, dtype)


def hub_repository(name: str) -> str | None:
    """Return the repository on the Hub that a name stands for, such as `openai-community/gpt2`; None for a path.

    Args:
        name: of a model.
    """
    repository = _SHORT_NAMES.get(name, name)
    is_path = Path(name).exists() or Path(name).suffix in names.SUFFIXES
    return repository if "/" in repository and names.is_hub_id(name) and not is_path else None


def newest_valid(folder: Path, read: Callable[[Path], T]) -> T | None:
    """Read the newest intact checkpoint; each damaged one that is skipped is logged as a warning.

    Args:
        folder: a run's `checkpoints` folder.
        read: reads a checkpoint; raises GPT2LabError if it is damaged.

    Returns:
        What `read` returned; None if there are no checkpoints.

    Raises:
        UnreadableError: the system refuses to read the folder or a checkpoint.
        GPT2LabError: there are checkpoints, and all are damaged.
    """
    checkpoints = list_checkpoints(folder)
    for left, (_, path) in reversed(list(enumerate(checkpoints))):
        try:
            return read(path)
        except UnreadableError:  # it may be intact, and newer than all that could be read
            raise
        except GPT2LabError as error:
            logger.warning("%s%s", error, "; trying the checkpoint before it" if left else "")
    if checkpoints:
        raise GPT2LabError(f"{folder}: no checkpoint is intact; remove the folder to start over, or use another run")
    return None


def _find_in_folder(path: Path) -> ResolvedCheckpoint:
    if os.path.lexists(path / "checkpoints") or (path / "metrics.jsonl").exists():
        return _find_newest(path, path / "checkpoints")
    if list_checkpoints(path):
        return _find_newest(path.parent, path)
    if (path / files.DIGESTS).exists():
        with progress.Phase(f"checking {path.name}"):
            files.verify_digests(path, ignored=(huggingface.CARD,))  # users may edit the model card
    if path.parent.name == "checkpoints" and _CHECKPOINT.fullmatch(path.name):
        return ResolvedCheckpoint(path, path.parent.parent, int(path.name[5:]))
    names.require_no_runs(path)
    return ResolvedCheckpoint(path)


def _find_newest(run: Path, checkpoints: Path) -> ResolvedCheckpoint:
    def verify(path: Path) -> Path:
        with progress.Phase(f"checking {path.name}"):
            files.verify_digests(path, required=(huggingface.CONFIG, huggingface.WEIGHTS))
        return path

    path = newest_valid(checkpoints, verify)
    if path is None:
        raise GPT2LabError(
            f"{run} has no checkpoint yet: wait for the first one (checkpoint.every), or, if the training was stopped "
            "before it, start it again"
        )
    return ResolvedCheckpoint(path, run, int(path.name[5:]))


def _find_on_hub(name: str, mirror: str | Path | None) -> Path:
    """A model's folder in the mirror, or in Hugging Face's cache, into which it is downloaded if need be."""
    repository = _SHORT_NAMES.get(name, name)
    if mirror is not None:
        for folder in (Path(mirror) / name, Path(mirror) / repository):
            if (folder / huggingface.CONFIG).is_file():
                return folder
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    needed = f"{name}/{huggingface.CONFIG} and {name}/{huggingface.WEIGHTS}"
    # Not the option of a mirror, which some verbs lack and others call by another name.
    place = f"a folder that holds {needed} as ${resources.MIRROR_VARIABLE}"
    advice = f"give its folder, or {place if mirror is None else f'put {needed} into the mirror {mirror}'}"
    try:
        for form in _WEIGHT_FORMS:
            patterns = [huggingface.CONFIG, *form]
            # No caller may show a Phase here: it would hide the bars of huggingface_hub.
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
            if (folder / form[0]).is_file():
                return folder
    except RepositoryNotFoundError:
        raise GPT2LabError(
            f"{name}: no such folder, and no such model on the Hub, or no access to it (HF_TOKEN)"
            f"{names.suggest(name) or f'; {advice}'}"
        ) from None
    except Exception as error:  # errors of the network, the cache and the library have no common class
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise GPT2LabError(
            f"{name}: no such folder, and the Hub cannot be reached{offline}: {reason}"
            f"{names.suggest(name) or f'; {advice}'}"
        ) from None
    forms = ", ".join(form[0] for form in _WEIGHT_FORMS)
    raise GPT2LabError(f"{name}: the Hub, or its cache when offline, has none of {forms} of it; {advice}")
