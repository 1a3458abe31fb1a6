"""The `files` source: text that lies on this disk as .txt, .jsonl (.gz, .zst) or .parquet, named by glob patterns.

A .txt file is one document. Many small ones in a row are one piece, so that a hundred thousand of them cost no more
than a few large files do.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.data.sources import BadInput, Piece, Report, Source, Texts, Unit
from gpt2lab.data.sources.jsonl import JsonLines
from gpt2lab.data.sources.parquet import ParquetFile
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sampled_digest

_GROUP = 4 << 20  # bytes of small text files that make one piece
KINDS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def source(patterns: Sequence[str], field: str = "text") -> Source:
    """The files that the patterns match: in the order of the patterns, by name within each, none twice.

    Args:
        patterns: paths or globs; `**` goes into folders.
        field: of JSON objects, or column of parquet files.

    Raises:
        GPT2LabError: a pattern matches nothing, or a file of another kind.
    """
    pieces: list[Piece] = []
    texts: list[tuple[str, int]] = []

    def close_group() -> None:
        if texts:
            pieces.append(TextFiles(tuple(path for path, _ in texts), sum(size for _, size in texts)))
            texts.clear()

    for path in _matches(patterns):
        if path.endswith(".txt"):
            texts.append((path, os.path.getsize(path)))
            if sum(size for _, size in texts) >= _GROUP or len(texts) == 1000:
                close_group()
            continue
        close_group()
        if path.endswith(".parquet"):
            pieces.append(ParquetFile(path, path, field))
        else:
            pieces.append(JsonLines(path, field))
    close_group()
    return Source("files", "files", f"{len(_matches(patterns))} files", tuple(pieces))


def _matches(patterns: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not paths:
            raise GPT2LabError(f"--input {pattern!r} matches no file; quote patterns, and let ** stand for any folders")
        for path in paths:
            if not path.endswith(KINDS):
                raise GPT2LabError(f"--input {path}: not one of the kinds that are read: {', '.join(KINDS)}")
            found[path] = None
    return list(found)


@dataclass(frozen=True)
class TextFiles(Piece, Unit):
    """Some text files, each one document: a piece, and the one unit of it."""

    paths: tuple[str, ...]
    text_bytes: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.paths[0] if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"

    def identity(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path} {sampled_digest(Path(path))}\n".encode())
        return digest.hexdigest()

    def units(self) -> Iterator[Unit]:
        yield self

    def read(self, report: Report) -> Texts:
        texts = []
        for path in self.paths:
            try:
                raw = Path(path).read_bytes()
                raw.decode("utf-8")
            except OSError as error:
                raise BadInput(f"{path}: cannot read it: {error.strerror}") from None
            except UnicodeDecodeError as error:
                report(f"{path} is not UTF-8 text (byte {error.start}); convert it, or leave it out")
                continue
            texts.append(raw)
        return Texts.of(texts)
