"""Write shards. Tokens go directly to a temporary file, which is renamed when the shard is complete.

No shard is held in memory, and its SHA-256 is computed while it is written.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2lab.data.shard_formats import Tokens
from gpt2lab.data.shards import Split
from gpt2lab.files import cannot_write, publish, sha256, temporary_name


class ShardWriter:
    """Writes the shards of a folder, one after the other. The caller holds the lock of the folder.

    Args:
        folder: where to write.
        name: prefix of the file names.
        shard_tokens: tokens of a full shard.
        shards: manifest entries of the existing shards. Entries of new shards are appended to this list.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, shards: list[dict[str, Any]]):
        self.folder, self.name, self.shard_tokens, self.shards = folder, name, shard_tokens, shards
        self._file: BinaryIO | None = None
        self._tokens = 0

    @property
    def is_full(self) -> bool:
        """Whether the open shard is full."""
        return self._file is not None and self._tokens == self.shard_tokens

    def write(self, split: Split, tokens: Tokens) -> int:
        """Append tokens to the open shard, as many as fit. Opens a shard if there is none.

        Args:
            split: split of the shard.
            tokens: `(tokens,)` uint16.

        Returns:
            The number of tokens written.

        Raises:
            GPT2LabError: the file system refused the write.
        """
        if self._file is None:
            self._open(split)
        written = np.ascontiguousarray(tokens[: self.shard_tokens - self._tokens], dtype="<u2")
        self._append(written.tobytes())
        self._tokens += len(written)
        return len(written)

    def close(self) -> bool:
        """Finish the open shard; returns whether there was one.

        Raises:
            GPT2LabError: the file system refused the write.
        """
        if self._file is None:
            return False
        temporary, digest = temporary_name(self._path), self._digest.hexdigest()
        with self._abandon_on_error():
            if not self.is_full:  # the last shard of a split: its header was written for a full one
                self._file.seek(0)
                self._file.write(_npy_header(self._tokens))
                self._file.flush()
                digest = sha256(temporary)
            self._file.close()
            publish(temporary, self._path)
        self._file = None
        self.shards.append({"file": self._path.name, "split": self._split, "tokens": self._tokens, "sha256": digest})
        return True

    def abandon(self) -> None:
        """Delete the open shard, if there is one."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # a full disk raises here once more
                file.close()
            temporary_name(self._path).unlink(missing_ok=True)

    def _open(self, split: Split) -> None:
        self._split, self._tokens, self._digest = split, 0, hashlib.sha256()
        self._path = self.folder / f"{self.name}_{split}_{len(self.shards):06d}.npy"
        with self._abandon_on_error():
            self._file = open(temporary_name(self._path), "wb")  # noqa: SIM115  # until close or abandon
        self._append(_npy_header(self.shard_tokens))

    def _append(self, content: bytes) -> None:
        assert self._file is not None
        self._digest.update(content)
        with self._abandon_on_error():
            self._file.write(content)

    @contextlib.contextmanager
    def _abandon_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abandon()
            raise cannot_write(self._path, error) from error


def _npy_header(tokens: int) -> bytes:
    """The header that `numpy.save` writes before so many tokens: 128 bytes for every number."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (tokens,)})
    assert header.tell() == 128
    return header.getvalue()
