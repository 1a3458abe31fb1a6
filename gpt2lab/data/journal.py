"""What an unfinished output folder records, so that an interrupted preparation can be continued.

`.preparing` is the journal. It is written when the preparation starts and again after every shard, and removed when
`manifest.json` has been written. `.preparing.hashes` holds the 8-byte hashes of all documents so far, and `.parts/` the
encoded chunks where they are cached.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2lab.data.encoded_cache import EncodedCache
from gpt2lab.data.shards import MANIFEST, PREPARING, SHARD_NAME, shard_files
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write, remove_temporaries, sha256

HASHES = f"{PREPARING}.hashes"
_MIN_KEPT_BYTES = 10_000_000  # of encoded chunks: fewer are encoded again in seconds


@dataclass
class Journal:
    """The content of `.preparing`.

    Attributes:
        settings: everything that the shards depend on.
        shards: entries of the finished shards, as in the manifest.
        states: for each finished shard, the state of the `ShardBuilder` after it.
    """

    settings: dict[str, Any]
    shards: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Journal | None":
        """Read the journal of a folder; None if there is none that can be used."""
        try:
            content = json.loads((folder / PREPARING).read_text(encoding="utf-8"))
            return cls(content["settings"], content["shards"], content["states"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write the journal.

        Raises:
            GPT2LabError: the file system refused the write.
        """
        with atomic_write(folder / PREPARING) as path:
            path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def drop_damaged(self, folder: Path) -> None:
        """Drop the first shard that is missing or damaged, and all shards after it."""
        hashes = folder / HASHES
        hash_count = hashes.stat().st_size // 8 if hashes.is_file() else 0

        def is_intact(shard: dict[str, Any], state: dict[str, Any]) -> bool:
            path = folder / str(shard["file"])
            return path.is_file() and sha256(path) == shard["sha256"] and state["hashes"] <= hash_count

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            intact = [*pool.map(is_intact, self.shards, self.states), False].index(False)
        del self.shards[intact:], self.states[intact:]


def open_journal(folder: Path, settings: dict[str, Any], restart: bool) -> Journal:
    """Start a journal, or continue that of an interrupted preparation, and delete files that do not belong to it.

    Args:
        folder: the output folder. The caller holds its lock.
        settings: everything that the shards depend on.
        restart: discard what an unfinished preparation with other settings has written.

    Raises:
        GPT2LabError: the folder holds shards of another program, or of a preparation with other settings.
    """
    remove_temporaries(folder)
    if (foreign := shard_files(folder)) and not (folder / PREPARING).exists():
        raise GPT2LabError(
            f"{foreign[0]} is a shard, but there is no {MANIFEST} that says of which text; use another --out or remove "
            f"{folder}, or train on these shards: gpt2lab train --data.dir {shlex.quote(str(folder))}"
        )
    journal, cache = Journal.read(folder), EncodedCache(folder)
    if journal is not None and (changes := describe_changes(settings, journal.settings)):
        if not restart and (journal.shards or cache.size()):
            raise GPT2LabError(
                f"{folder} holds an unfinished preparation that was made {changes}; give another --out, or --restart "
                "to discard it"
            )
        discard(folder)
        journal = None
    if journal is None:
        cache.remove()
        journal = Journal(settings)
    else:
        journal.drop_damaged(folder)
        remove_temporaries(cache.folder)
    remove_shards(folder, keep={shard["file"] for shard in journal.shards})
    journal.write(folder)
    return journal


@contextlib.contextmanager
def discard_if_failed(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """If the preparation inside the context fails, delete what it leaves, or say that it is kept.

    Finished shards are kept, and encoded chunks if it would take long to encode them again.

    Args:
        folder: the output folder. The caller holds its lock.
        settings: of the preparation. What one with other settings has left is not touched.

    Raises:
        GPT2LabError, KeyboardInterrupt: as raised inside, with what is kept in the message.
    """
    try:
        yield
    except (GPT2LabError, KeyboardInterrupt) as error:
        journal = Journal.read(folder)
        if journal is None or describe_changes(settings, journal.settings):
            raise
        if not journal.shards and EncodedCache(folder).size() < _MIN_KEPT_BYTES:
            discard(folder)
            raise
        kept = f"{folder} keeps what is finished: the same command continues there"
        raise type(error)("; ".join([*filter(None, [str(error)]), kept])) from error


def require_own_folder(folder: Path) -> None:
    """Check that a folder holds nothing but what preparations write. Hidden files do not count.

    Neither do folders of other preparations: training keeps those of one's own texts in `data/files/NAME`.

    Args:
        folder: the output folder; it need not exist.

    Raises:
        GPT2LabError: the folder holds other files and is not of a preparation.
    """
    if not folder.is_dir() or (folder / PREPARING).exists() or (folder / MANIFEST).exists():
        return
    files = [file for file in folder.iterdir() if file.name[0] != "." and file not in shard_files(folder)]
    others = sorted(file.name for file in files if not any((file / name).exists() for name in (PREPARING, MANIFEST)))
    if others:
        raise GPT2LabError(
            f"{folder} holds {others[0]!r}, which is not from a preparation; give a new or empty folder with --out"
        )


def describe_changes(settings: dict[str, Any], recorded: dict[str, Any]) -> str:
    """Describe the first setting that differs from the recorded one, after `was made`; empty if none does."""
    for key, value in settings.items():
        if (before := recorded.get(key)) == value:
            continue
        if key == "source":
            return f"from {before}, not from {value}"
        if key == "source_digest" or (key == "revision" and settings["source"] == "files"):
            return "from another text"
        return f"with other settings ({key} {before!r} rather than {value!r})"
    return ""


def discard(folder: Path) -> None:
    """Delete an unfinished preparation. The journal goes last, so that this can be interrupted as well."""
    remove_shards(folder)
    close_journal(folder)


def close_journal(folder: Path) -> None:
    """Delete everything except the shards and the manifest."""
    EncodedCache(folder).remove()
    (folder / HASHES).unlink(missing_ok=True)
    (folder / PREPARING).unlink(missing_ok=True)


def remove_shards(folder: Path, keep: Collection[str] = ()) -> None:
    """Delete the shards that preparations have written.

    Args:
        folder: folder of the shards.
        keep: names of shards to keep.
    """
    for file in shard_files(folder):
        if file.name not in keep and SHARD_NAME.fullmatch(file.name):
            file.unlink()
