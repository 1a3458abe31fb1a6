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
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt2lab.data.sources import BadInputError, Chunk, Report, Source, SourceFile, Texts, jsonl, parquet
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import cannot_read, find_similar_path, sampled_digest
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
        if others := [path for path in _list_files(folder, "--input") if not path.lower().endswith(SUFFIXES)]:
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
    matched: dict[str, str] = {}  # by real path, in order: links must not multiply the text
    for pattern in patterns:
        if os.path.isdir(pattern):
            paths = _list_folder(pattern, option)
        else:
            # A name may contain [ or *, and is then no pattern that matches itself.
            found = glob.glob(pattern, recursive=True) or [pattern] * os.path.exists(pattern)
            paths = _choose_names(path for path in found if _is_file(path, option))
            if not paths:
                raise GPT2LabError(f"{option} {_describe_missing(pattern)}")
        for path in paths:
            if not path.lower().endswith(SUFFIXES):
                raise GPT2LabError(f"{option} {path}: the suffix must be one of {', '.join(SUFFIXES)}{_convert(path)}")
            matched.setdefault(os.path.realpath(path), path)
    return list(matched.values())


def _describe_missing(pattern: str) -> str:
    """Why a pattern matches no file."""
    if os.path.lexists(pattern):
        return f"{pattern} is no regular file"
    if any(character in pattern for character in "*?["):
        return f"{pattern!r} matches no file; quote patterns, and use ** to match any folders"
    guess = find_similar_path(pattern)
    means_file = pattern.lower().endswith(SUFFIXES)
    if guess is None or (means_file and guess.is_dir() and not has_files(guess)):
        return f"{pattern!r} matches no file; give a text file or a folder"
    return f"{pattern!r} matches no file; did you mean {guess}?"


def _convert(path: str) -> str:
    """The end of a message about a file of another format: how its text can be read."""
    suffix = os.path.splitext(path.lower())[1]
    if suffix in (".csv", ".tsv", ".json"):
        return "; convert it to .jsonl: one JSON object a line, with the text in its field 'text'"
    if suffix in (".gz", ".zst", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z"):
        return "; unpack it"
    if suffix in (".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".html", ".htm"):
        return "; export its text to a .txt file"
    return "; copy it to a .txt file if it is plain text"


def _convert_encoding(path: str, content: bytes) -> str:
    """The end of a message about a file in another encoding: the command that converts it."""
    is_utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if b"\0" in content and not is_utf16:
        return ", and holds zero bytes: it is not a text file"
    encoding, certainty = ("UTF-16", "") if is_utf16 else ("WINDOWS-1252", ", if it is from Windows")
    converted = f"{os.path.splitext(path)[0]}_utf8.txt"
    return f"; convert it{certainty}: iconv -f {encoding} -t UTF-8 {shlex.quote(path)} > {shlex.quote(converted)}"


def _is_file(path: str, option: str) -> bool:
    """Whether a path is a file; a link to nothing is refused if it may stand for text."""
    if not os.path.exists(path) and (path.lower().endswith(SUFFIXES) or not os.path.splitext(path)[1]):
        raise GPT2LabError(f"{option} {path} is a link to a file that does not exist; correct or remove it")
    return os.path.isfile(path)


def _choose_names(paths: Iterable[str]) -> list[str]:
    """Sort paths, and keep one of those that lead to the same file, the one with the fewest folders."""
    names: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (path.count(os.sep), path)):
        names.setdefault(os.path.realpath(path), path)
    return sorted(names.values())


def _list_files(folder: str, option: str) -> list[str]:
    """The files of a folder and its subfolders, sorted; hidden ones are ignored. Folders are entered once."""

    def refuse(error: OSError) -> None:
        raise cannot_read(Path(error.filename), error)

    found, entered = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(parent)) in entered:  # a link leads here, perhaps back to a folder above it
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [os.path.join(parent, name) for name in names if name[0] != "."]
    return _choose_names(path for path in found if _is_file(path, option))


def _list_folder(folder: str, option: str) -> list[str]:
    """The files of a folder and its subfolders that can be read, sorted."""
    files = _list_files(folder, option)
    if readable := [path for path in files if path.lower().endswith(SUFFIXES)]:
        return readable
    raise GPT2LabError(
        f"{option} {folder} is a folder without files of a format that is read: {', '.join(SUFFIXES)}"
        f"{_convert(files[0]) if files else ''}"
    )


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
            report(f"{path} is not UTF-8 text (byte {error.start}){_convert_encoding(path, text)}")
        else:
            texts.append(text.removeprefix(codecs.BOM_UTF8))  # Windows editors write it; it would be three tokens
    return Texts.join(texts)
