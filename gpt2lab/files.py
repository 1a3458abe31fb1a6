"""Writing files so that a crash leaves either the old or the new content, and checking them later.

- `atomic_write` for a file, `atomic_directory` for a directory: both write under a temporary name next to the target,
  sync to disk, then rename.
- `write_digests` and `verify_digests` for a `SHA256SUMS` that `sha256sum --check` reads as well.
- `DirectoryLock` against two processes that write to one directory.
- `require_space` before a long job.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from gpt2lab.errors import GPT2LabError, UnreadableError, find_similar

DIGESTS = "SHA256SUMS"
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # where a file should be
_TEMPORARY = ".tmp-"
_DIGEST_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^/]+)")  # only files of the directory itself


def sync(path: Path) -> None:
    """Flush a file or a directory to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The hidden name next to `path` that it is written under; rename is atomic within a file system."""
    return path.with_name(f"{_TEMPORARY}{path.name}")


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed process left unfinished in `folder`. The caller holds the directory's lock."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def publish(temporary: Path, path: Path) -> None:
    """Sync a file written under a temporary name next to `path`, and rename it to `path`."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def cannot_write(path: Path, error: OSError, elsewhere: str = "write elsewhere") -> GPT2LabError:
    """The error to raise when the file system refuses a write to `path`; `elsewhere` is what else can be done."""
    advice = "free space"
    if isinstance(error, PermissionError):
        advice = "check the owner and mode of the folder,"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        advice = f"remove the file {_first_file(path)}, which is in place of a folder,"
    return GPT2LabError(f"cannot write {path}: {error.strerror or error}; {advice} or {elsewhere}")


def _first_file(path: Path) -> Path:
    """The parent of `path` that is a file where a folder should be; its parent folder if none is."""
    return next((parent for parent in reversed(path.parents) if parent.is_file()), path.parent)


def cannot_read(path: Path, error: OSError) -> UnreadableError:
    """The error to raise when the system refuses to read `path`, which exists."""
    advice = "its owner and mode" if isinstance(error, PermissionError) else "the disk"
    return UnreadableError(f"cannot read {path}: {error.strerror or error}; check {advice}")


@contextlib.contextmanager
def atomic_write(path: str | Path, *, elsewhere: str = "write elsewhere") -> Iterator[Path]:
    """Write a file. On error, the old file stays as it was.

    Args:
        path: the file; its directory is created if missing.
        elsewhere: what the user can do instead, in the message of the error.

    Yields:
        A temporary path to write to. It is synced and renamed to `path` at the end.

    Raises:
        GPT2LabError: the file system refused the write (full, read-only, over a size limit).
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        publish(temporary, path)
    except OSError as error:
        raise cannot_write(path, error, elsewhere) from error
    finally:
        with contextlib.suppress(OSError):  # there may be no directory
            temporary.unlink()


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Write a directory with a `SHA256SUMS`. An existing one is replaced; on error it stays as it was.

    Args:
        path: the directory.

    Yields:
        A temporary directory to fill. It is synced and renamed to `path` at the end.

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
        if path.exists():  # a directory cannot be renamed onto another one
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
    """The hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path) -> str:
    """A digest of the size of a file and 64 blocks of 64 KiB, evenly spaced, first and last included.

    It costs little however large the file is, and tells a changed file from the one that was read before. Unlike
    `sha256` it does not cover every byte; files of up to 4 MiB are read completely.

    Args:
        path: the file.

    Returns:
        The digest in hexadecimal.

    Raises:
        GPT2LabError: the file cannot be read.
    """
    block_size, blocks = 1 << 16, 64
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            if size <= block_size * blocks:
                digest.update(file.read())
            else:
                for block in range(blocks):
                    file.seek((size - block_size) * block // (blocks - 1))
                    digest.update(file.read(block_size))
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror or error}") from None
    return digest.hexdigest()


def find_similar_path(path: str | Path) -> Path | None:
    """Find an existing path each part of which is similar to that of `path`.

    Args:
        path: the path; it is returned if it exists.

    Returns:
        The path; None if there is none.
    """
    found = Path(Path(path).anchor)
    for part in Path(path).relative_to(found).parts:
        if not (found / part).exists():
            try:
                guess = find_similar(part, sorted(entry.name for entry in found.iterdir() if entry.name[0] != "."))
            except OSError:
                return None
            if guess is None or _numbers_differ(part, guess):
                return None
            part = guess
        found /= part
    return found


def _numbers_differ(name: str, other: str) -> bool:
    """Whether two names have different numbers, as run_1 and run_2: they are different things, not misspelled."""
    numbers, others = re.findall(r"\d+", name), re.findall(r"\d+", other)
    return bool(numbers and others) and numbers != others


def require_folder(path: str | Path, name: str = "") -> None:
    """Check that a folder exists.

    Args:
        path: of the folder.
        name: of the option or setting that gives it, with which the message begins.

    Raises:
        GPT2LabError: there is none, or the path is a file.
    """
    if Path(path).is_dir():
        return
    words = f"{name} {path}".lstrip()
    if Path(path).exists():
        raise GPT2LabError(f"{words} is a file, not a folder")
    raise GPT2LabError(f"{words}: no such folder{suggest_path(path)}")


def suggest_path(path: str | Path) -> str:
    """The end of an error message about a path that does not exist.

    Args:
        path: the path.

    Returns:
        `; did you mean X?` with a similar path that exists; empty if there is none, or the path itself exists.
    """
    found = None if Path(path).exists() else find_similar_path(path)
    return f"; did you mean {found}?" if found is not None else ""


def write_digests(folder: Path) -> None:
    """Write `SHA256SUMS` of all other files in `folder`, in the format of `sha256sum`."""
    names = sorted(file.name for file in folder.iterdir() if file.name != DIGESTS)
    digests = folder / DIGESTS
    digests.write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names), encoding="utf-8")
    sync(digests)


def verify_digests(folder: Path, required: Iterable[str] = (), ignored: Collection[str] = ()) -> None:
    """Check every file that `SHA256SUMS` lists. Other files in the directory are not checked.

    Args:
        folder: the directory.
        required: names that must be listed.
        ignored: names of files that may be missing or changed.

    Raises:
        UnreadableError: the system refuses to read a file.
        GPT2LabError: `SHA256SUMS` is missing, malformed or does not list a required file; a file is missing or changed.
    """
    try:
        text = (folder / DIGESTS).read_bytes().decode()
    except (*_MISSING, UnicodeDecodeError) as error:
        raise GPT2LabError(f"{folder} has no readable {DIGESTS}, so it is incomplete") from error
    except OSError as error:
        raise cannot_read(folder / DIGESTS, error) from error
    *lines, rest = text.split("\n")  # str.splitlines would also accept some damaged line ends
    listed = {match["name"]: match["digest"] for line in lines if (match := _DIGEST_LINE.fullmatch(line))}
    if rest or not listed or len(listed) != len(lines) or not listed.keys() >= set(required):
        raise GPT2LabError(f"{folder / DIGESTS} is damaged")
    for name in sorted(listed.keys() - set(ignored)):
        try:
            actual = sha256(folder / name)
        except (*_MISSING, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise GPT2LabError(f"{folder / name} cannot be read: {reason}") from error
        except OSError as error:
            raise cannot_read(folder / name, error) from error
        if actual != listed[name]:
            raise GPT2LabError(f"{folder / name} does not match its sha256 in {DIGESTS}: the file is damaged")


class DirectoryLock:
    """A lock on a directory, held by one process. The kernel releases it when that process ends, even when killed.

    At the end its file is deleted, and each directory that it created, if nothing was written into it.

    Args:
        folder: the directory; it is created if missing.

    Raises:
        GPT2LabError: on entering: another process holds the lock, or the directory is not writable.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / ".lock"
        self._file: int | None = None

    def __enter__(self) -> "DirectoryLock":
        try:
            parents = self.path.parents
            self._created = list(itertools.takewhile(lambda parent: not parent.exists(), parents))  # inner first
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
                raise GPT2LabError(f"cannot lock {self.path}: {error.strerror}; use another disk") from error
            raise GPT2LabError(
                f"{self.path.parent} is in use by another process ({owner}); wait, end it, or use another folder"
            ) from error
        if not self._is_current():  # the last owner has removed it since
            os.close(self._file)
            return self.__enter__()
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
        except OSError as error:
            self.__exit__()
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
            for folder in self._created:
                folder.rmdir()  # fails if something was written
        os.close(self._file)
        self._file = None

    def _is_current(self) -> bool:
        """Whether the locked file is still the one at the path."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return False
