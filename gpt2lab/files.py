"""Writing files so that a crash leaves the old one or the new one, never half of either.

Every wing that writes (shards, checkpoints, metrics, plots) uses these few functions:

- `atomic_write` for one file and `atomic_directory` for a folder that must appear whole: both write under a
  temporary name beside the target, sync to disk, then rename.
- `write_digests` / `verify_digests` for a `SHA256SUMS` that `sha256sum --check` reads as well.
- `DirectoryLock` against two processes in one folder.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpt2lab.errors import GPT2LabError

DIGESTS = "SHA256SUMS"
_TEMPORARY = ".tmp-"
_DIGEST_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^/]+)")  # a file of this folder, none elsewhere


def sync(path: Path) -> None:
    """Flush a file's or a directory's contents to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The name under which `path` is prepared: hidden, beside it (rename is atomic within a file system)."""
    return path.with_name(f"{_TEMPORARY}{path.name}")


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`. Call it with the folder's lock held."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is synced and replaces `path`, on error it is removed.

    Raises:
        GPT2LabError: the file system refused the write (full, read-only, over a size limit).
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Sync what was written under a temporary name beside `path`, and give it that name."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def cannot_write(path: Path, error: OSError) -> GPT2LabError:
    """What to tell the user when the file system refuses a write."""
    return GPT2LabError(f"cannot write {path}: {error.strerror or error}; free space or write elsewhere")


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it gets a `SHA256SUMS`, is synced and renamed to `path`.

    An existing `path` is replaced. On any error the temporary folder is removed and `path` is as it was.

    Raises:
        GPT2LabError: the file system refused a write.
    """
    path = Path(path)
    temporary = temporary_name(path)
    replaced = temporary.with_name(f"{temporary.name}-replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        write_digests(temporary)
        sync(temporary)
        if path.exists():  # out of the way by a rename: at no time is there half of it
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(path, replaced)
        os.replace(temporary, path)
        sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path) -> str:
    """A digest that is cheap however big the file: of its size, its first and last 64 KiB, and 62 places between.

    Tells a changed source from the one that was read before; a file of up to 4 MiB is read in whole. It does not
    vouch for every byte, as `sha256` does.

    Raises:
        GPT2LabError: the file cannot be read.
    """
    block, places = 1 << 16, 64
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            if size <= block * places:
                digest.update(file.read())
            else:
                for place in range(places):
                    file.seek((size - block) * place // (places - 1))
                    digest.update(file.read(block))
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror or error}") from None
    return digest.hexdigest()


def write_digests(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file of `folder`, in the format of the `sha256sum` tool."""
    names = sorted(file.name for file in folder.iterdir() if file.name != DIGESTS)
    digests = folder / DIGESTS
    digests.write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names), encoding="utf-8")
    sync(digests)


def verify_digests(folder: Path, required: Iterable[str] = ()) -> None:
    """Check every file that `SHA256SUMS` lists. Files beside them (a tokenizer that somebody added) do not matter.

    Raises:
        GPT2LabError: `SHA256SUMS` is missing, malformed or does not list a `required` file; a file is missing, was
            changed or cannot be read.
    """
    try:
        text = (folder / DIGESTS).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise GPT2LabError(f"{folder} has no readable {DIGESTS}, so it is incomplete") from error
    *lines, rest = text.split("\n")  # not splitlines, which takes some damaged line ends for whole ones
    listed = {match["name"]: match["digest"] for line in lines if (match := _DIGEST_LINE.fullmatch(line))}
    if rest or not listed or len(listed) != len(lines) or not listed.keys() >= set(required):
        raise GPT2LabError(f"{folder / DIGESTS} is damaged")
    for name, digest in listed.items():
        try:
            found = sha256(folder / name)
        except (OSError, ValueError) as error:
            raise GPT2LabError(f"{folder / name} cannot be read: {error}") from error
        if found != digest:
            raise GPT2LabError(f"{folder / name} does not match its sha256 in {DIGESTS}: the file is damaged")


class DirectoryLock:
    """Keeps two processes out of one folder; the kernel lets go when its owner dies, however it dies.

    Raises:
        GPT2LabError: on entering, when another live process holds the lock, or the folder cannot be written to.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / ".lock"
        self._file: int | None = None

    def __enter__(self) -> "DirectoryLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise GPT2LabError(f"cannot write into {self.path.parent}: {error.strerror}; use another folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._file, 200).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            self._file = None
            if not isinstance(error, BlockingIOError):
                raise GPT2LabError(
                    f"cannot lock {self.path}: {error.strerror}; use a folder on another disk"
                ) from error
            raise GPT2LabError(
                f"{self.path.parent} is in use by another process ({owner}); wait, end it, or use another folder"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)  # the empty file stays: removing it would race with the next owner's open
            self._file = None
