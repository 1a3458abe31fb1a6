"""Checks that the disks have room for what is about to be written."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_bytes


class SpaceNeeded(NamedTuple):
    """`size` bytes for `what` below `folder`, which need not exist yet."""

    folder: Path
    size: int
    what: str


def describe_lack(needs: list[SpaceNeeded]) -> str:
    """Describe the first disk that lacks room for `needs` together: how much is needed and free; empty if none does.

    Args:
        needs: what is about to be written; several may go to one disk.
    """
    on_disk: dict[int, list[SpaceNeeded]] = {}
    for need in needs:
        folder = need.folder
        while not folder.exists():
            folder = folder.parent
        on_disk.setdefault(os.stat(folder).st_dev, []).append(need._replace(folder=folder))
    for same_disk in on_disk.values():
        folder, free = same_disk[0].folder, shutil.disk_usage(same_disk[0].folder).free
        if sum(need.size for need in same_disk) > free:
            needed = " and ".join(f"{format_bytes(need.size)} for {need.what}" for need in same_disk)
            return f"{folder}: {needed} needed, {format_bytes(free)} free"
    return ""


def require_space(needs: list[SpaceNeeded], advice: str) -> None:
    """Check that the disks have room for all of `needs` together.

    Args:
        needs: what is about to be written; several may go to one disk.
        advice: what the user can do if space is missing; the end of the message.

    Raises:
        GPT2LabError: a disk does not have enough space; the message says how much is needed.
    """
    if lack := describe_lack(needs):
        raise GPT2LabError(f"{lack}; {advice}")
