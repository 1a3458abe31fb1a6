"""Parquet files: one column of text, one chunk for each row group.

Row groups of more than 32 MB of text are decoded from beginning to end while the chunks are listed, and passed on in
batches, because some writers put a million rows into one.
"""

import contextlib
import functools
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpt2lab import packages
from gpt2lab.data.sources import BadInputError, Chunk, Report, SourceFile, Texts, in_memory_chunk, raise_problem
from gpt2lab.data.sources.arrow import texts_from_arrow
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sampled_digest

MAX_CHUNK_BYTES = 32 << 20  # of text; FineWeb-Edu's row groups have 5 MB
_BATCH_BYTES = 8 << 20


def open_file(path: str, name: str, column: str = "text") -> SourceFile:
    """Open a parquet file on this disk.

    Args:
        path: path of the file.
        name: name in messages and digests.
        column: column with the text.

    Raises:
        GPT2LabError: pyarrow is not installed; the file cannot be read, or has no such column, or not of text.
    """
    packages.require("pyarrow", path, "data")
    try:
        text_bytes = sum(_row_group_sizes(path, _read_metadata(path), column))
    except BadInputError:  # raised again when the chunks are listed
        text_bytes = os.path.getsize(path)
    identity = f"{column} {sampled_digest(Path(path))}"
    return SourceFile(name, text_bytes, identity, functools.partial(list_chunks, path, name, column))


def list_chunks(path: str, name: str, column: str) -> Iterator[Chunk]:
    """List the row groups of a file. All of them share its metadata, which has megabytes.

    Args:
        path: path of the file.
        name: name in messages.
        column: column with the text.

    Raises:
        BadInputError: it is not a complete parquet file.
        GPT2LabError: it has no such column, or not of text.
    """
    metadata = _read_metadata(path)
    for number, size in enumerate(_row_group_sizes(path, metadata, column)):
        row_group = RowGroup(f"{name}, row group {number}", path, column, number, metadata)
        if size <= MAX_CHUNK_BYTES:
            yield Chunk(row_group.name, row_group.read)
        else:
            yield from row_group.read_in_batches(size)


class RowGroup(NamedTuple):
    """A row group of a parquet file on this disk."""

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
                yield in_memory_chunk(f"{self.name}, batch {i}", texts)

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
    """Bytes of text in each row group according to the metadata. Raises as `list_chunks`."""
    import pyarrow

    schema = metadata.schema.to_arrow_schema()
    text_types = (pyarrow.string(), pyarrow.large_string())
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]

    def sizes(name: str) -> list[int]:
        return [group.column(paths.index(name)).total_uncompressed_size for group in groups]

    def advice() -> str:
        texts = [name for name, kind in zip(schema.names, schema.types, strict=True) if kind in text_types]
        largest = max(texts, key=lambda name: sum(sizes(name)), default="NAME")
        return f"use --text-field {shlex.quote(largest)}"

    if column not in schema.names:
        raise GPT2LabError(f"{path} has no column {column!r} (it has: {', '.join(schema.names)}); {advice()}")
    column_type = schema.field(column).type
    if column_type not in text_types:
        raise GPT2LabError(f"{path}: column {column!r} holds {column_type}, not text; {advice()}")
    return sizes(column)
