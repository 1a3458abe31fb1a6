"""The `files` source: .txt, .jsonl (.gz, .zst) and .parquet files on this disk, selected by glob patterns.

A .txt file is one document. Consecutive small .txt files form one chunk, so that a corpus of 100,000 of them is read as
fast as one of a few large files.
"""

import codecs
import functools
import glob
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from gpt2lab.data.sources import BadInputError, Chunk, Report, Source, SourceFile, Texts, jsonl, parquet
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import sampled_digest, suggest_path
from gpt2lab.formatting import plural

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_GROUP_BYTES = 4 << 20
_GROUP_FILES = 1000


def source(patterns: Sequence[str], field: str = "text") -> Source:
    """Open the files that match the patterns: in the order of the patterns, sorted within each, without repetitions.

    Args:
        patterns: paths or globs; `**` matches any folders. A folder stands for the files in it and its subfolders.
        field: field of JSON objects, or column of parquet files, with the text.

    Raises:
        GPT2LabError: a pattern matches no file, or a file with another suffix; or all files are empty.
    """
    paths = require(patterns)
    for folder in filter(os.path.isdir, patterns):
        if others := [path for path in _list_files(folder) if not path.lower().endswith(SUFFIXES)]:
            logger.info(f"{folder}: {plural(len(others), 'file')} of other formats left out, such as {others[0]}")
    files: list[SourceFile] = []
    group: list[str] = []
    group_bytes = 0
    for path, next_path in zip(paths, [*paths[1:], ""], strict=True):
        if _is_text(path):
            group.append(path)
            group_bytes += os.path.getsize(path)
            if group_bytes >= _GROUP_BYTES or len(group) == _GROUP_FILES or not _is_text(next_path):
                files.append(_open_texts(group, group_bytes))
                group, group_bytes = [], 0
        elif path.lower().endswith(".parquet"):
            files.append(parquet.open_file(path, path, field))
        else:
            files.append(jsonl.open_file(path, field))
    return Source("files", "files", f"{len(paths)} files", tuple(files))


def require(patterns: Sequence[str], option: str = "--input") -> list[str]:
    """Check that patterns match files that can be read, and that have text.

    Args:
        patterns: paths or globs, as for `source`.
        option: name of the option for messages.

    Returns:
        The paths of the files, in order, without repetitions.

    Raises:
        GPT2LabError: see `source`.
    """
    paths = _expand(patterns, option)
    if not any(map(os.path.getsize, paths)):
        raise GPT2LabError(f"{option} {paths[0]} is empty{f', as all {len(paths)} files are' * (len(paths) > 1)}")
    return paths


def has_files(folder: Path) -> bool:
    """Whether a folder or its subfolders hold a file that `source` reads.

    Args:
        folder: the folder.
    """
    return any(path.name.lower().endswith(SUFFIXES) for path in folder.rglob("[!.]*"))


def _is_text(path: str) -> bool:
    return path.lower().endswith(".txt")


def _expand(patterns: Sequence[str], option: str) -> list[str]:
    matched: dict[str, None] = {}  # keeps the order
    for pattern in patterns:
        found = glob.glob(pattern, recursive=True) or [pattern] * os.path.exists(pattern)  # a name may contain [ or *
        paths = sorted(path for path in found if os.path.isfile(path))
        if os.path.isdir(pattern):
            paths = _list_folder(pattern, option)
        elif not paths:
            if os.path.lexists(pattern):
                kind = "no regular file" if os.path.exists(pattern) else "a link to a file that does not exist"
                raise GPT2LabError(f"{option} {pattern} is {kind}")
            is_pattern = any(character in pattern for character in "*?[")
            advice = "quote patterns, and use ** to match any folders" if is_pattern else "give a text file or a folder"
            guess = "" if is_pattern else suggest_path(pattern)
            raise GPT2LabError(f"{option} {pattern!r} matches no file{guess or f'; {advice}'}")
        for path in paths:
            if not path.lower().endswith(SUFFIXES):
                raise GPT2LabError(f"{option} {path}: the suffix must be one of {', '.join(SUFFIXES)}")
            matched[path] = None
    return list(matched)


def _list_files(folder: str) -> list[str]:
    """The files of a folder and its subfolders, sorted; hidden ones are ignored."""
    return sorted(path for path in glob.glob(f"{glob.escape(folder)}/**", recursive=True) if os.path.isfile(path))


def _list_folder(folder: str, option: str) -> list[str]:
    """The files of a folder and its subfolders that can be read, sorted."""
    readable = [path for path in _list_files(folder) if path.lower().endswith(SUFFIXES)]
    if not readable:
        raise GPT2LabError(
            f"{option} {folder} is a folder without files of a format that is read: {', '.join(SUFFIXES)}"
        )
    return readable


def _open_texts(paths: list[str], text_bytes: int) -> SourceFile:
    """A group of text files, each of them a document. It is a single chunk."""
    name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path} {sampled_digest(Path(path))}\n".encode())
    chunk = Chunk(name, functools.partial(_read_texts, paths))
    return SourceFile(name, text_bytes, digest.hexdigest(), functools.partial(iter, (chunk,)))


def _read_texts(paths: list[str], report: Report) -> Texts:
    texts = []
    for path in paths:
        try:
            text = Path(path).read_bytes()
            text.decode("utf-8")
        except OSError as error:
            raise BadInputError(f"{path}: cannot read it: {error.strerror}") from None
        except UnicodeDecodeError as error:
            report(f"{path} is not UTF-8 text (byte {error.start}); convert it, or leave it out")
        else:
            texts.append(text.removeprefix(codecs.BOM_UTF8))  # Windows editors write it; it would be three tokens
    return Texts.join(texts)
