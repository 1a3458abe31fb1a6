"""Replace the shards of a complete folder (`prepare --restart`), so that a failure or a kill at any time loses none.

    new shards ──▶ FOLDER/.replacement/ ──complete──▶ moved into FOLDER, old ones deleted ──▶ manifest.json moved

The preparation in `.replacement` is an ordinary one, and is continued like one. The old shards are used until it is
complete, so the disk must have space for both. While files are moved, FOLDER has a journal and no manifest, as an
unfinished preparation; the next preparation of it completes the move.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpt2lab.data.journal import Journal, close_journal, remove_shards
from gpt2lab.data.shards import MANIFEST, read_manifest, shard_files
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import cannot_write, sync

FOLDER = ".replacement"


def choose_folder(folder: Path, restart: bool) -> Path:
    """Return where a preparation writes: into `folder`, or beside the finished shards that it replaces.

    Args:
        folder: the output folder; it need not exist.
        restart: whether finished shards are to be replaced.

    Raises:
        GPT2LabError: the finished shards must not be replaced, since `prepare` has not written all of them.
    """
    if not restart or (manifest := read_manifest(folder)) is None:
        return folder
    if manifest.source == "pretokenized":
        raise GPT2LabError(
            f"{folder} holds shards of another project, which --restart does not discard; give another --out"
        )
    if foreign := [file.name for file in shard_files(folder) if file.name not in manifest.shards]:
        raise GPT2LabError(
            f"{folder} holds shards of another program, such as {foreign[0]}; move them away, or use another --out"
        )
    return folder / FOLDER


@contextlib.contextmanager
def create(work_folder: Path) -> Iterator[None]:
    """Create the folder that `choose_folder` has returned. It is deleted at the end if nothing was written into it.

    Args:
        work_folder: the folder. The caller holds the lock of the output folder.
    """
    work_folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if work_folder.name == FOLDER:
            with contextlib.suppress(OSError):
                work_folder.rmdir()


def publish(folder: Path) -> bool:
    """Move complete new shards to the place of the old ones. This may be interrupted, and is continued by another call.

    Args:
        folder: the output folder. The caller holds its lock.

    Returns:
        Whether there were complete new shards.

    Raises:
        GPT2LabError: the file system refused a write.
    """
    new = folder / FOLDER
    if (manifest := read_manifest(new) if new.is_dir() else None) is None:
        return False
    try:
        Journal({"source": manifest.source}).write(folder)  # until the end, the folder is unfinished
        (folder / MANIFEST).unlink(missing_ok=True)
        sync(folder)
        for name in manifest.shards:
            if (new / name).exists():  # else it was moved before an interruption
                os.replace(new / name, folder / name)
        remove_shards(folder, keep=manifest.shards)
        sync(folder)
        os.replace(new / MANIFEST, folder / MANIFEST)
        sync(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    shutil.rmtree(new, ignore_errors=True)
    close_journal(folder)
    return True
