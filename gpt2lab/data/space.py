"""Is there room on the disks for what is about to be written?"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from gpt2lab.errors import GPT2LabError


class Demand(NamedTuple):
    """So many bytes of something below a folder, which need not exist yet."""

    folder: Path
    size: int
    what: str


def require(demands: list[Demand]) -> None:
    """Check them together, since several may be for one disk.

    Raises:
        GPT2LabError: a disk does not have the space; the message says how much is needed.
    """
    on_disk: dict[int, list[Demand]] = {}
    for demand in demands:
        place = demand.folder
        while not place.exists():
            place = place.parent
        on_disk.setdefault(os.stat(place).st_dev, []).append(demand._replace(folder=place))
    for same_disk in on_disk.values():
        place, free = same_disk[0].folder, shutil.disk_usage(same_disk[0].folder).free
        if sum(demand.size for demand in same_disk) > free:
            needed = " and ".join(f"{_amount(demand.size)} for {demand.what}" for demand in same_disk)
            raise GPT2LabError(
                f"{place}: {needed} needed, {_amount(free)} free; free some space, write elsewhere with --out, or "
                f"take fewer shards with --shards"
            )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
