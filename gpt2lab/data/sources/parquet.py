"""Parquet files: the text column of one row group after the other, and of no other column a byte.

A row group is a unit. One that is too big to be held whole (some writers put a million rows into each) is decoded from
front to back by whoever lists the units, and passed on in handy batches.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.data.sources import BadInput, Piece, Ready, Report, Texts, Unit, stop
from gpt2lab.data.sources.arrow import texts_of
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sampled_digest

LARGEST_UNIT = 32 << 20  # bytes of text; FineWeb-Edu's row groups have 5 MB
_BATCH = 8 << 20


@dataclass(frozen=True)
class ParquetFile(Piece):
    """A file on this disk.

    Attributes:
        path: where it is.
        name: what it is called in messages and digests.
        column: which column has the text.
    """

    path: str
    name: str
    column: str = "text"

    @functools.cached_property
    def text_bytes(self) -> int:  # type: ignore[override]
        try:
            return sum(_sizes(self.path, self.column))
        except BadInput:  # told where it is read
            return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def identity(self) -> str:
        return f"{self.column} {sampled_digest(Path(self.path))}"

    def units(self) -> Iterator[Unit]:
        """
        Raises:
            BadInput: it is no parquet file, or not a whole one.
            GPT2LabError: it has no such column, or not of text.
        """
        for number, size in enumerate(_sizes(self.path, self.column)):
            if size <= LARGEST_UNIT:
                yield RowGroup(f"{self.name}, row group {number}", self.path, self.column, number)
            else:
                yield from self._batches(number, size)

    def _batches(self, number: int, size: int) -> Iterator[Unit]:
        import pyarrow

        name = f"{self.name}, row group {number}"
        rows = _metadata(self.path, _version(self.path)).row_group(number).num_rows
        try:
            file = _open(self.path, buffer_size=1 << 20)
            batches = file.iter_batches(
                batch_size=max(1, rows * _BATCH // size), row_groups=[number], columns=[self.column], use_threads=False
            )
            for place, batch in enumerate(batches):
                yield Ready(f"{name}, batch {place}", texts_of(batch.column(0), name, stop))
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(self.path, number, error) from None


@dataclass(frozen=True)
class RowGroup(Unit):
    """One row group of a file on this disk."""

    name: str
    path: str
    column: str
    number: int

    def read(self, report: Report) -> Texts:
        import pyarrow

        try:
            table = _open(self.path).read_row_group(self.number, columns=[self.column], use_threads=False)
            return texts_of(table.column(0).combine_chunks(), self.name, report)
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(self.path, self.number, error) from None


def _open(path: str, buffer_size: int = 0) -> Any:
    import pyarrow.parquet

    # The footer, megabytes in a file of many row groups, is parsed once and not for every unit.
    metadata = _metadata(path, _version(path))
    return pyarrow.parquet.ParquetFile(
        path, metadata=metadata, buffer_size=buffer_size, pre_buffer=False, page_checksum_verification=True
    )


def _version(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _metadata(path: str, version: tuple[int, int]) -> Any:
    """The parsed footer; `version` only says when to parse it again."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path} is not a whole parquet file ({error}); copy or download it again") from None


def _sizes(path: str, column: str) -> list[int]:
    """Bytes of text in each row group, about.

    Raises:
        BadInput: the file is no whole parquet file.
        GPT2LabError: it has no such column, or not of text.
    """
    import pyarrow

    metadata = _metadata(path, _version(path))
    schema = metadata.schema.to_arrow_schema()
    if column not in schema.names:
        raise GPT2LabError(f"{path} has no column {column!r} (it has: {', '.join(schema.names)}); set --text-field")
    kind = schema.field(column).type
    if kind not in (pyarrow.string(), pyarrow.large_string()):
        raise GPT2LabError(f"{path}: column {column!r} holds {kind}, not text; set --text-field")
    place = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return [group.column(place).total_uncompressed_size for group in groups]


def _damaged(path: str, number: int, error: Exception) -> BadInput:
    return BadInput(f"{path}: row group {number} is damaged ({error}); copy or download the file again")
