"""Writing shards: tokens go straight to the file under a temporary name, hashed on the way, renamed when it is full.

No shard is ever held in memory, and the disk works while the next tokens are being made.
"""

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2lab.data.shards import Split, Tokens, shard_name
from gpt2lab.files import cannot_write, publish, sha256, temporary_name


class ShardWriter:
    """Streams tokens into the shards of a folder whose lock the caller holds.

    Args:
        folder: where.
        name: first part of the file names.
        shard_tokens: tokens of a full shard.
        shards: entries of the manifest for shards that are there already; new ones are appended to it.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int, shards: list[dict[str, Any]] | None = None):
        self.folder, self.name, self.shard_tokens = folder, name, shard_tokens
        self.shards: list[dict[str, Any]] = [] if shards is None else shards
        self._file: BinaryIO | None = None

    def write(self, split: Split, tokens: Tokens) -> int:
        """Append as many of `tokens` `(tokens,)` uint16 as the shard still takes; returns how many that were.

        A shard that is full by then is closed, and listed in `shards`.

        Raises:
            GPT2LabError: the file system refused a write.
        """
        if self._file is None:
            self._begin(split)
        taken = np.ascontiguousarray(tokens[: self.shard_tokens - self._tokens], dtype="<u2")
        self._put(taken.tobytes() if len(taken) < 1024 else taken.view(np.uint8).data)
        self._tokens += len(taken)
        if self._tokens == self.shard_tokens:
            self.close()
        return len(taken)

    def close(self) -> None:
        """Finish the shard that is being written, if any, short as it may be.

        Raises:
            GPT2LabError: the file system refused a write.
        """
        if self._file is None:
            return
        temporary = temporary_name(self._path)
        try:
            digest = self._digest.hexdigest()
            if self._tokens < self.shard_tokens:  # a short one, the last of its split: only now is its header known
                self._file.seek(0)
                self._file.write(_header(self._tokens))
            self._file.close()
            if self._tokens < self.shard_tokens:
                digest = sha256(temporary)
            publish(temporary, self._path)
        except OSError as error:
            self.abandon()
            raise cannot_write(self._path, error) from error
        self._file = None
        entry = {"file": self._path.name, "split": self._split, "tokens": self._tokens, "sha256": digest}
        self.shards.append(entry)

    def abandon(self) -> None:
        """Drop the shard that is being written, if any."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # of a full disk, again; what was written is not wanted any more
                file.close()
            temporary_name(self._path).unlink(missing_ok=True)

    def _begin(self, split: Split) -> None:
        self._split, self._tokens, self._digest = split, 0, hashlib.sha256()
        self._path = self.folder / shard_name(self.name, split, len(self.shards))
        try:
            self._file = open(temporary_name(self._path), "wb", buffering=0)  # noqa: SIM115  # until close or abandon
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._put(_header(self.shard_tokens))

    def _put(self, content: bytes | memoryview) -> None:
        assert self._file is not None
        self._digest.update(content)
        rest = memoryview(content)
        try:
            while len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.abandon()
            raise cannot_write(self._path, error) from error


def _header(tokens: int) -> bytes:
    """What `numpy.save` puts before this many tokens: 128 bytes, whatever the number."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": (tokens,)})
    assert header.tell() == 128
    return header.getvalue()
