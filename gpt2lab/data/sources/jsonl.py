"""JSON lines: one object a line, one of its fields the text. Plain, or compressed by gzip or zstd.

A plain file is cut at byte offsets; a unit is the lines that begin between two of them, so that any worker can read any
unit. A compressed one is read from front to back by whoever lists the units, and its lines are passed on.

Arrow parses a whole unit in C++; only where it finds something amiss does Python go through the lines one by one, to
name the line.
"""

import contextlib
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.data.sources import BadInput, Piece, Report, Texts, Unit, to_utf8
from gpt2lab.data.sources.arrow import texts_of
from gpt2lab.files import sampled_digest

UNIT = 8 << 20  # bytes of lines
_RATIO = 4  # by which text compresses, about
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class JsonLines(Piece):
    """A file on this disk, compressed where its name says so."""

    path: str
    field: str = "text"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.path

    @functools.cached_property
    def text_bytes(self) -> int:  # type: ignore[override]
        return os.path.getsize(self.path) * (_RATIO if self._compression else 1)

    @property
    def _compression(self) -> str | None:
        return _COMPRESSIONS.get(Path(self.path).suffix)

    def identity(self) -> str:
        return f"{self.field} {sampled_digest(Path(self.path))}"

    def units(self) -> Iterator[Unit]:
        if self._compression is None:
            for start in range(0, os.path.getsize(self.path), UNIT):
                yield LinesAt(f"{self.path}, byte {start}", self.path, self.field, start, start + UNIT)
        else:
            yield from self._decompressed(self._compression)

    def _decompressed(self, compression: str) -> Iterator[Unit]:
        import pyarrow

        line = 1
        rest = b""
        try:
            with pyarrow.input_stream(self.path, compression=compression) as stream:
                while block := stream.read(UNIT):
                    lines, newline, rest = (rest + block).rpartition(b"\n")
                    if newline:
                        yield Lines(f"{self.path}, line {line}", self.path, self.field, lines + newline, line)
                        line += lines.count(b"\n") + 1
        except (OSError, pyarrow.ArrowException) as error:
            raise BadInput(f"{self.path}: cannot be decompressed beyond line {line} ({error}); copy it again") from None
        if rest:
            yield Lines(f"{self.path}, line {line}", self.path, self.field, rest, line)


@dataclass(frozen=True)
class LinesAt(Unit):
    """The lines of a plain file that begin at the bytes from `start` up to `end`."""

    name: str
    path: str
    field: str
    start: int
    end: int

    def read(self, report: Report) -> Texts:
        try:
            with open(self.path, "rb") as file:
                begin = _line_start(file, self.start)
                end = _line_start(file, self.end)
                file.seek(begin)
                data = file.read(end - begin)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot read it: {error.strerror}") from None
        return _parse(data, self.path, self.field, lambda: 1 + _newlines(self.path, begin), report)


@dataclass(frozen=True)
class Lines(Unit):
    """Lines that are at hand."""

    name: str
    path: str
    field: str
    data: bytes
    first_line: int

    def read(self, report: Report) -> Texts:
        return _parse(self.data, self.path, self.field, lambda: self.first_line, report)


def _line_start(file: io.BufferedReader, offset: int) -> int:
    """The first position at or after `offset` at which a line begins."""
    if offset == 0:
        return 0
    file.seek(offset - 1)
    file.readline()
    return file.tell()


def _newlines(path: str, end: int) -> int:
    """Newlines before a position: only asked for when a line must be named."""
    count = 0
    with open(path, "rb") as file:
        while end > 0 and (block := file.read(min(end, UNIT))):
            count += block.count(b"\n")
            end -= len(block)
    return count


def _parse(data: bytes, path: str, field: str, first_line: Callable[[], int], report: Report) -> Texts:
    import pyarrow
    import pyarrow.json

    if not data.strip():
        return Texts.of([])
    with contextlib.suppress(pyarrow.ArrowException):
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pyarrow.schema([(field, pyarrow.string())]), unexpected_field_behavior="ignore"
            ),
        )
        column = table.column(0).combine_chunks()
        column.validate(full=True)
        # One object a line, no more: several on a line, or one over several, are for the careful reader to name.
        one_a_line = len(column) == data.rstrip().count(b"\n") + 1 and b"\n\n" not in data
        if one_a_line and not column.null_count:
            return texts_of(column, path, report)
    return Texts.of(_one_by_one(data, path, field, first_line(), report))


def _one_by_one(data: bytes, path: str, field: str, first_line: int, report: Report) -> Iterator[bytes]:
    for number, line in enumerate(data.split(b"\n"), first_line):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            report(f"{path}: line {number} is not UTF-8 text; convert the file, or leave such lines out")
            continue
        except (ValueError, RecursionError) as error:
            report(f"{path}: line {number} is not JSON ({error}); mend the file, or leave such lines out")
            continue
        text = value.get(field) if isinstance(value, dict) else None
        if isinstance(text, str):
            yield to_utf8(text)
        else:
            found = f"its fields: {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
            report(f"{path}: line {number} has no text in a field {field!r} ({found}); set --text-field")
