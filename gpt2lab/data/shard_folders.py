"""Folders that hold token shards below or beside one that holds none, for messages."""

import os
from pathlib import Path

from gpt2lab.data import shards
from gpt2lab.errors import GPT2LabError

_SHOWN = 5
_DEPTH = 2  # training keeps the shards of one's own texts in data/files/NAME


def holds_splits(folder: Path) -> bool:
    """Whether a folder holds token shards, by their manifest or names: other programs have .npy and .bin files, too.

    Args:
        folder: the folder; need not exist.
    """
    try:
        if not shards.is_ready(folder):
            return False
        return (folder / shards.MANIFEST).exists() or any(shards.split_of(f.name) for f in shards.shard_files(folder))
    except (OSError, GPT2LabError):  # not readable
        return False


def name_some(folders: list[Path]) -> str:
    """The names of folders, with `…` in place of those beyond the fifth.

    Args:
        folders: at least one.
    """
    return f"{', '.join(map(str, folders[:_SHOWN]))}{', …' * (len(folders) > _SHOWN)}"


def suggest_below(folder: Path) -> str:
    """The end of an error message about a folder without shards.

    Args:
        folder: the folder.

    Returns:
        `; there are some in X, Y` with its subfolders that hold shards; empty if none does.
    """
    found, level = [], [folder]
    for _ in range(_DEPTH):
        level = [below for parent in level for below in _subfolders(parent)]
        found += [below for below in level if holds_splits(below)]
    return f"; there are some in {name_some(sorted(found))}" if found else ""


def check_not_above(folder: Path) -> None:
    """Check that a folder is not the one above folders of shards. Other errors are those of `shards.open_split`.

    Args:
        folder: the folder.

    Raises:
        GPT2LabError: it holds no shards, and a subfolder holds some.
    """
    if not folder.is_dir() or (folder / shards.PREPARING).exists() or shards.shard_files(folder):
        return
    if below := suggest_below(folder):
        raise GPT2LabError(f"{folder} holds no shards{below}")


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir()]
    except OSError:
        return []
