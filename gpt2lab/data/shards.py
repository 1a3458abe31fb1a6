"""Token shards: how a corpus is stored on disk, and how its tokens are read.

    prepare ──▶ NAME_val_000000.npy NAME_train_000001.npy … manifest.json ──open_split──▶ TokenStream ──▶ loader

A shard is a one-dimensional uint16 array of GPT-2 token ids. Every document begins with 50256 (`<|endoftext|>`) and may
continue in the next shard. The shards of both splits are numbered together, val first. `manifest.json` lists them with
their digests and is written last. Until then the folder holds a file `.preparing` and is not read.

`open_split` maps the shards of a split into memory. `TokenStream` reads any range of tokens across shard boundaries. It
also reads shards of other projects that have no manifest (`shard_formats.py`). Their file names must contain `train` or
`val`. If none contains `val`, the end of train is the validation split.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab.data import shard_formats, tokenizer
from gpt2lab.data.shard_formats import DTYPE, Tokens, map_shard
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write, suggest_path

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]

MANIFEST = "manifest.json"
PREPARING = ".preparing"
SPLITS: tuple[Split, Split] = ("val", "train")  # in the order in which they are written
SHARD_NAME = re.compile(r".+_(?:train|val)_\d{6}\.npy")  # of the shards that `prepare` writes

# Where there is no val, it is the last tenth of train, at most so many tokens as in a usual shard.
_MAX_HELD_OUT, _MIN_HELD_OUT = 100_000_000, 1024


class Shard(NamedTuple):
    """A shard as the manifest describes it."""

    split: str
    tokens: int
    sha256: str


class Manifest(NamedTuple):
    """The content of `manifest.json`.

    Attributes:
        source: name of the source.
        documents: number of documents of each split.
        tokens: number of tokens of each split.
        shards: shards by file name.
        content: everything, as parsed.
    """

    source: str
    documents: dict[Split, int]
    tokens: dict[Split, int]
    shards: dict[str, Shard]
    content: dict[str, Any]


class TokenStream:
    """The tokens of one split, read through memory maps of its shards.

    Args:
        folder: folder of the shards.
        split: name of the split.
        files: the shards, in order.
        manifest: the manifest of the folder, if there is one.
        bounds: the first token of the split and the token after its last, of those in the files; None for all.

    Attributes:
        held_out: whether the split is a part of the train shards, since there are none of val.
        documents: number of documents according to the manifest; None without one.
        starts: int64 `(shards + 1,)`, position of the first token of every shard, and the number of all tokens.
        fingerprint: hexadecimal SHA-256 of the shards' names, token counts, first and last 4,096 tokens, and the
            digests in the manifest.

    Raises:
        GPT2LabError: on construction, if a file is not a complete shard.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        files: list[Path],
        manifest: Manifest | None = None,
        bounds: tuple[int, int] | None = None,
    ):
        self.folder, self.split, self.files, self.held_out = folder, split, files, bounds is not None
        self.documents = manifest.documents[split] if manifest else None
        self._shards = [map_shard(file) for file in files]
        self._skipped = 0  # tokens of the first file that come before the split
        if bounds is not None:
            self._restrict(*bounds)
        files = self.files
        self.starts: npt.NDArray[np.int64] = np.cumsum([0, *map(len, self._shards)], dtype=np.int64)
        digests = [manifest.shards[file.name].sha256 if manifest else "" for file in files]
        ends = [hashlib.sha256(shard[:4096].tobytes() + shard[-4096:].tobytes()).hexdigest() for shard in self._shards]
        parts = zip((file.name for file in files), map(len, self._shards), ends, digests, strict=True)
        self.fingerprint = hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()

    def _restrict(self, first: int, end: int) -> None:
        """Leave out the tokens before `first` and from `end` on, and files without others."""
        parts, position = [], 0
        for file, shard in zip(self.files, self._shards, strict=True):
            start, stop = max(0, first - position), min(len(shard), end - position)
            if start < stop:
                parts.append((file, shard[start:stop], start))
            position += len(shard)
        self.files, self._shards, self._skipped = [p[0] for p in parts], [p[1] for p in parts], parts[0][2]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, position: int) -> tuple[Path, int]:
        """Find the shard with a token; returns its file and the token's index in it.

        Args:
            position: position of the token in the split.
        """
        assert 0 <= position < len(self)
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.files[shard], position - int(self.starts[shard]) + (0 if shard else self._skipped)

    def read(self, start: int, count: int) -> Tokens:
        """Copy the tokens from `start` to `start + count`.

        Args:
            start: position of the first token.
            count: number of tokens.

        Returns:
            uint16 `(count,)`.
        """
        return self.gather(np.array([start], dtype=np.int64), count).reshape(count)

    def gather(self, starts: npt.NDArray[np.int64], length: int) -> Tokens:
        """Copy one row of tokens from each of several positions.

        Args:
            starts: int64 `(n,)`, positions of the first tokens.
            length: tokens of a row.

        Returns:
            uint16 `(n, length)`.
        """
        assert length >= 0
        assert not len(starts) or (starts.min() >= 0 and starts.max() + length <= len(self))
        rows = np.empty((len(starts), length), dtype=DTYPE)
        shards = np.searchsorted(self.starts, starts, side="right") - 1
        offsets = starts - self.starts[shards]
        # Slicing row by row reads billions of tokens a second at 1024 tokens a row, for any number of shards.
        for row, shard, offset in zip(rows, shards.tolist(), offsets.tolist(), strict=True):
            part = self._shards[shard][offset : offset + length]
            row[: len(part)] = part
            filled = len(part)
            while filled < length:  # continue in the next shard
                shard += 1
                part = self._shards[shard][: length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
        return rows


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder; None if there is none.

    Args:
        folder: folder of the shards.

    Raises:
        GPT2LabError: the manifest is unreadable or inconsistent, names files outside the folder, or was made with
            another tokenizer.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, tokenizer_name, source = content["version"], content["tokenizer"], str(content["source"])
        documents = {split: int(content["splits"][split]["documents"]) for split in SPLITS}
        tokens = {split: int(content["splits"][split]["tokens"]) for split in SPLITS}
        rows = [(str(s["file"]), Shard(str(s["split"]), int(s["tokens"]), str(s["sha256"]))) for s in content["shards"]]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GPT2LabError(
            f"{path} is not a manifest of shards ({type(error).__name__}: {error}); move it away if it is another "
            f"program's, else remove {folder} and prepare it again"
        ) from None
    if version != 1 or tokenizer_name != tokenizer.NAME:
        raise GPT2LabError(
            f"{path}: version {version}, tokenizer {tokenizer_name!r}; need 1, {tokenizer.NAME!r}; use other shards"
        )
    for name, shard in rows:
        if Path(name).name != name or "\\" in name or name in ("", "..") or shard.split not in SPLITS:
            raise GPT2LabError(f"{path}: {name!r} is no shard of this folder; remove {folder} and prepare it again")
    shards = dict(rows)
    sums = {split: sum(shard.tokens for shard in shards.values() if shard.split == split) for split in SPLITS}
    if sums != tokens or len(shards) != len(rows):
        raise GPT2LabError(f"{path}: its token counts do not add up; remove {folder} and prepare it again")
    return Manifest(source, documents, tokens, shards, content)


def write_manifest(
    folder: Path,
    info: Mapping[str, Any],
    documents: Mapping[Any, int],
    tokens: Mapping[Any, int],
    shards: Sequence[Mapping[str, Any]],
) -> None:
    """Write the manifest, which marks a folder as complete.

    Args:
        folder: folder of the shards.
        info: source, revision, and everything else to record.
        documents: number of documents of each split.
        tokens: number of tokens of each split.
        shards: file, split, tokens and sha256 of each shard, in order.

    Raises:
        GPT2LabError: the file system refused the write.
    """
    splits = {split: {"tokens": tokens[split], "documents": documents[split]} for split in SPLITS}
    content = {"version": 1, "tokenizer": tokenizer.NAME, **info, "splits": splits, "shards": shards}
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_split(folder: str | Path, split: Split) -> TokenStream:
    """Open the shards of one split, in numeric order of their names.

    Args:
        folder: folder of the shards.
        split: `train` or `val`.

    Without a manifest and without shards of val, the last tenth of the tokens is val, and the rest is train.

    Raises:
        GPT2LabError: the folder is unfinished, has no shard of the split, or not those of its manifest, undamaged.
    """
    folder = Path(folder)
    present = shard_files(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        if (folder / PREPARING).exists():
            raise GPT2LabError(f"{folder} is incomplete; run the same prepare command again, or remove it")
        if not present:
            raise GPT2LabError(f"{folder} holds no shards (.npy or .bin); name another folder, or use gpt2lab prepare")
        files = [file for file in present if split_of(file.name) == split]
        has_val = any(split_of(file.name) == "val" for file in present)
        if not has_val and (stream := _hold_out(folder, split, [f for f in present if split_of(f.name) == "train"])):
            return stream
        if not files:
            raise GPT2LabError(f"{folder} holds no shard of the split {split!r}; a file name must contain {split!r}")
        return TokenStream(folder, split, files)

    advice = f"remove {folder} and prepare it again"
    names = {file.name for file in present if split_of(file.name)}
    if missing := sorted(manifest.shards.keys() - names):
        raise GPT2LabError(f"{folder / missing[0]} is missing, {MANIFEST} lists it; restore it, or {advice}")
    if extra := sorted(names - manifest.shards.keys()):
        raise GPT2LabError(f"{folder / extra[0]} is not listed in {MANIFEST}; move it to another folder, or {advice}")
    files = [file for file in present if file.name in names and manifest.shards[file.name].split == split]
    if not files:
        raise GPT2LabError(f"{folder / MANIFEST} lists no shard of the split {split!r}; {advice}")
    stream = TokenStream(folder, split, files, manifest)
    for file, count in zip(files, np.diff(stream.starts).tolist(), strict=True):
        if count != (expected := manifest.shards[file.name].tokens):
            raise GPT2LabError(f"{file} holds {count} tokens, {MANIFEST} says {expected}; restore it, or {advice}")
    return stream


def held_out_border(arrays: Sequence[npt.NDArray[Any]]) -> int | None:
    """Find where val begins in train shards that have no val beside them.

    Args:
        arrays: the tokens of each shard.

    Returns:
        Number of tokens before it, the end of a document if one is near; None if the shards are too short.
    """
    total = sum(map(len, arrays))
    size = min(total // 10, _MAX_HELD_OUT)
    if size < _MIN_HELD_OUT:
        return None
    border, position = total - size, 0
    for array in arrays:
        start, stop = max(0, border - position), max(0, border + size // 8 - position)
        if len(ends := np.flatnonzero(array[start:stop] == tokenizer.EOT)):
            return position + start + int(ends[0])
        position += len(array)
    return border


def _hold_out(folder: Path, split: Split, files: list[Path]) -> TokenStream | None:
    """One of the splits of train shards without val; None if they are too short to be divided."""
    arrays = [map_shard(file) for file in files]
    total, border = sum(map(len, arrays)), held_out_border(arrays)
    if border is None:
        return None
    if split == "train":
        return TokenStream(folder, split, files, bounds=(0, border))
    logger.info(f"{folder} has no shard of val: the last {total - border:,} of its {total:,} tokens are val")
    return TokenStream(folder, split, files, bounds=(border, total))


def is_ready(folder: Path) -> bool:
    """Whether a folder holds shards, and not of an unfinished preparation."""
    is_complete = (folder / MANIFEST).exists() or not (folder / PREPARING).exists()
    return is_complete and folder.is_dir() and bool(shard_files(folder))


def shard_files(folder: Path) -> list[Path]:
    """List the shards of both splits, in numeric order of their names. Hidden files are ignored.

    Args:
        folder: folder of the shards.

    Raises:
        GPT2LabError: the folder does not exist or cannot be read.
    """
    try:
        files = [file for file in folder.iterdir() if file.suffix in shard_formats.SUFFIXES and file.name[0] != "."]
    except OSError as error:
        guess = suggest_path(folder)
        raise GPT2LabError(
            f"{folder}: {error.strerror}{guess or '; put token shards there or name another folder'}"
        ) from None
    return sorted(files, key=lambda file: _numeric_key(file.name))


def split_of(name: str) -> Split | None:
    """Return the split in a file name: the last `train` or `val` (`medieval_train_000001.npy` is train), or None."""
    train, val = name.lower().rfind("train"), name.lower().rfind("val")
    if train == val == -1:
        return None
    return "train" if train > val else "val"


def _numeric_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
