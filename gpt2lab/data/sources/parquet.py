"""Parquet files: one column of text, one chunk for each row group.

Row groups of more than 32 MB of text are decoded from beginning to end while the chunks are listed, and passed on in
batches, because some writers put a million rows into one.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.data.sources import BadInputError, Chunk, InMemoryChunk, Report, SourceFile, Texts, raise_problem
from gpt2lab.data.sources.arrow import texts_from_arrow
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sampled_digest

MAX_CHUNK_BYTES = 32 << 20  # of text; FineWeb-Edu's row groups have 5 MB
_BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class ParquetFile(SourceFile):
    """A parquet file on this disk.

    Attributes:
        path: path of the file.
        name: name in messages and digests.
        column: column with the text.
    """

    path: str
    name: str
    column: str = "text"

    @functools.cached_property
    def text_bytes(self) -> int:  # type: ignore[override]
        """Bytes of text according to the metadata."""
        try:
            return sum(_row_group_sizes(self.path, _read_metadata(self.path), self.column))
        except BadInputError:  # raised again when the file is read
            return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def identity(self) -> str:
        """Return a digest of the column name and of samples of the file."""
        return f"{self.column} {sampled_digest(Path(self.path))}"

    def chunks(self) -> Iterator[Chunk]:
        """List the row groups.

        Raises:
            BadInputError: it is not a complete parquet file.
            GPT2LabError: it has no such column, or not of text.
        """
        metadata = _read_metadata(self.path)
        for number, size in enumerate(_row_group_sizes(self.path, metadata, self.column)):
            row_group = RowGroup(f"{self.name}, row group {number}", self.path, self.column, number, metadata)
            if size <= MAX_CHUNK_BYTES:
                yield row_group
            else:
                yield from row_group.read_in_batches(size)


@dataclass(frozen=True)
class RowGroup(Chunk):
    """A row group of a parquet file on this disk. All row groups of a file share its metadata, which has megabytes."""

    name: str
    path: str
    column: str
    number: int
    metadata: Any

    def read(self, report: Report) -> Texts:
        """Read all rows."""
        with self._open() as file:
            table = file.read_row_group(self.number, columns=[self.column], use_threads=False)
            return texts_from_arrow(table.column(0).combine_chunks(), self.name, report)

    def read_in_batches(self, size: int) -> Iterator[Chunk]:
        """Decode the row group, and return batches of rows as chunks. `size` is the bytes of text in it."""
        rows = max(1, self.metadata.row_group(self.number).num_rows * _BATCH_BYTES // size)
        options = {"row_groups": [self.number], "columns": [self.column], "use_threads": False}
        with self._open(buffer_size=1 << 20) as file:
            for i, batch in enumerate(file.iter_batches(rows, **options)):
                texts = texts_from_arrow(batch.column(0), self.name, raise_problem)
                yield InMemoryChunk(f"{self.name}, batch {i}", texts)

    @contextlib.contextmanager
    def _open(self, buffer_size: int = 0) -> Iterator[Any]:
        import pyarrow.parquet

        options = {"metadata": self.metadata, "pre_buffer": False, "page_checksum_verification": True}
        try:
            with pyarrow.parquet.ParquetFile(self.path, buffer_size=buffer_size, **options) as file:
                yield file
        except (OSError, pyarrow.ArrowException) as error:
            raise BadInputError(
                f"{self.path}: row group {self.number} is damaged ({error}); copy or download the file again"
            ) from None


def _read_metadata(path: str) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInputError(f"{path} is not a complete parquet file ({error}); copy or download it again") from None


def _row_group_sizes(path: str, metadata: Any, column: str) -> list[int]:
    """Bytes of text in each row group according to the metadata. Raises as `ParquetFile.chunks`."""
    import pyarrow

    schema = metadata.schema.to_arrow_schema()
    if column not in schema.names:
        raise GPT2LabError(f"{path} has no column {column!r} (it has: {', '.join(schema.names)}); set --text-field")
    column_type = schema.field(column).type
    if column_type not in (pyarrow.string(), pyarrow.large_string()):
        raise GPT2LabError(f"{path}: column {column!r} holds {column_type}, not text; set --text-field")
    index = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return [group.column(index).total_uncompressed_size for group in groups]
