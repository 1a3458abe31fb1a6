"""JSON lines: one object on each line, with the text in one of its fields. Plain, or compressed by gzip or zstd.

The file is read from beginning to end while its chunks are listed. A chunk is about 8 MiB of lines.

Arrow parses a chunk in C++. If that fails, the lines are parsed in Python, to report the line with the problem. Without
Arrow, Python parses all lines and gzip, with the same result, except for absurd numbers and nesting; only zstd needs
Arrow.
"""

import codecs
import contextlib
import functools
import gzip
import json
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2lab import packages
from gpt2lab.data.sources import BadInputError, Chunk, Report, SourceFile, Texts, to_utf8
from gpt2lab.data.sources.arrow import texts_from_arrow
from gpt2lab.files import sampled_digest

CHUNK_BYTES = 8 << 20  # of lines
_COMPRESSION_RATIO = 4  # of text, roughly
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape decodes bytes to that are not UTF-8


def open_file(path: str, field: str = "text") -> SourceFile:
    """Open a file on this disk. Its suffix says whether it is compressed.

    Args:
        path: path of the file.
        field: field with the text.

    Raises:
        GPT2LabError: the file cannot be read, or is compressed by zstd and pyarrow is not installed.
    """
    if path.lower().endswith(".zst"):
        packages.require("pyarrow", path, "data")
    ratio = _COMPRESSION_RATIO if Path(path).suffix.lower() in _COMPRESSIONS else 1
    identity = f"{field} {sampled_digest(Path(path))}"
    return SourceFile(path, os.path.getsize(path) * ratio, identity, functools.partial(_list_chunks, path, field))


def _list_chunks(path: str, field: str) -> Iterator[Chunk]:
    """Chunks of about 8 MiB of lines."""
    compression = _COMPRESSIONS.get(Path(path).suffix.lower())
    line = 1
    for data in _decompress(path, compression) if compression else _read(path):
        yield Chunk(f"{path}, line {line}", functools.partial(_parse, data, path, field, line))
        line += data.count(b"\n")


def _read(path: str) -> Iterator[bytes]:
    """The lines that begin in each block of a plain file."""
    with open(path, "rb") as file:
        for end in range(CHUNK_BYTES, os.path.getsize(path) + CHUNK_BYTES, CHUNK_BYTES):
            data = file.read(max(0, end - file.tell()))
            yield data if data.endswith(b"\n") else data + file.readline()


def _decompress(path: str, compression: str) -> Iterator[bytes]:
    """The lines that end in each block of a compressed file."""
    rest = b""
    try:
        with _open_compressed(path, compression) as stream:
            while block := stream.read(CHUNK_BYTES):
                lines, newline, rest = (rest + block).rpartition(b"\n")
                if newline:
                    yield lines + newline
    except (OSError, EOFError, ValueError, zlib.error) as error:  # Arrow's errors are OSErrors and ValueErrors
        raise BadInputError(f"{path}: cannot be decompressed ({error}); copy it again") from None
    if rest:
        yield rest


def _open_compressed(path: str, compression: str) -> Any:
    if not packages.is_installed("pyarrow"):
        return gzip.open(path)
    import pyarrow

    return pyarrow.input_stream(path, compression=compression)


def _parse(data: bytes, path: str, field: str, first_line: int, report: Report) -> Texts:
    if not data.strip():
        return Texts.join([])
    texts = _parse_with_arrow(data, path, field, report) if packages.is_installed("pyarrow") else None
    return Texts.join(_parse_lines(data, path, field, first_line, report)) if texts is None else texts


def _parse_with_arrow(data: bytes, path: str, field: str, report: Report) -> Texts | None:
    """The texts; None if a line has to be reported."""
    import pyarrow
    import pyarrow.json

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
        # Arrow also accepts several objects on a line, or an object on several lines; these must be reported.
        one_per_line = len(column) == data.rstrip().count(b"\n") + 1 and b"\n\n" not in data
        if one_per_line and not column.null_count:
            return texts_from_arrow(column, path, report)
    return None


def _parse_lines(data: bytes, path: str, field: str, first_line: int, report: Report) -> Iterator[bytes]:
    for number, line in enumerate(data.split(b"\n"), first_line):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        decoded = line.decode("utf-8", "surrogateescape")  # only the text must be UTF-8, as for Arrow
        try:
            value = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            report(f"{path}: line {number} is not JSON ({error}); correct it, or use --on-error skip")
            continue
        text = value.get(field) if isinstance(value, dict) else None
        if isinstance(text, str) and _NOT_UTF8.search(text) and _NOT_UTF8.search(decoded):  # not only as an escape
            report(f"{path}: line {number} is not UTF-8 text; convert the file, or use --on-error skip")
        elif isinstance(text, str):
            yield to_utf8(text)
        else:
            report(f"{path}: line {number} {_describe_missing(value, field)}")


def _describe_missing(value: object, field: str) -> str:
    """Why a line's JSON value has no text in a field."""
    if not isinstance(value, dict):
        return f"is not an object with a field {field!r}; correct it, or use --on-error skip"
    if field in value:
        return f"has no text in the field {field!r}; correct it, or use --on-error skip"
    texts = [str(key) for key, content in value.items() if isinstance(content, str)]
    longest = max(texts, key=lambda key: len(value[key]), default="NAME")
    return f"has no field {field!r} (its fields: {', '.join(value)}); use --text-field {shlex.quote(longest)}"
