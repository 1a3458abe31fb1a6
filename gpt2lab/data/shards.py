"""Token shards: how a corpus lies on disk, and how its tokens are read.

    documents ──prepare──▶ NAME_val_000000.npy NAME_train_000001.npy … manifest.json ──open_split──▶ TokenStream

A shard is a 1-D uint16 array of GPT-2 ids. Every document is preceded by 50256 and may run on into the next shard.
One counter numbers the shards of both splits, val first. `manifest.json` says what they hold and is written last; until
then the folder carries the mark `.preparing`, and is not read.

`open_split` also reads shards without a manifest, as other projects write them: `.npy` of the same kind, and llm.c's
`.bin`. Their file names say which split they are of.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gpt2lab.data import tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write

Split = Literal["train", "val"]
Tokens = npt.NDArray[np.uint16]

MANIFEST = "manifest.json"
PREPARING = ".preparing"
SHARD_TOKENS = 100_000_000

SPLITS: tuple[Split, Split] = ("val", "train")  # in the order they are written
SHARD_NAME = re.compile(r".+_(?:train|val)_\d{6}\.npy")
_DTYPE = np.dtype("<u2")
_BIN_MAGIC, _BIN_VERSION, _BIN_HEADER = 20240520, 1, 256  # llm.c: 256 int32, the first three: magic, version, tokens


class Shard(NamedTuple):
    """A file as the manifest describes it."""

    split: str
    tokens: int
    sha256: str


class Manifest(NamedTuple):
    """What `manifest.json` says: documents and tokens by split, shards by file name; `content` is all of it."""

    source: str
    documents: dict[Split, int]
    tokens: dict[Split, int]
    shards: dict[str, Shard]
    content: dict[str, Any]


class TokenStream:
    """The tokens of one split, end to end over its shards, read through memory maps.

    Attributes:
        folder, split: what was opened.
        files: the shards, in order.
        documents: how many the manifest counts; None without one.
        starts: position of every shard's first token, and the end: `(shards + 1,)` int64.
        fingerprint: hexadecimal sha256 over the shards' names, token counts, first and last 4,096 tokens and, from a
            manifest, digests.

    Raises:
        GPT2LabError: on construction, when a file is not a whole shard.
    """

    def __init__(self, folder: Path, split: Split, files: list[Path], manifest: Manifest | None = None):
        self.folder, self.split, self.files = folder, split, files
        self.documents = manifest.documents[split] if manifest else None
        self._shards = [_map_shard(file) for file in files]
        self.starts: npt.NDArray[np.int64] = np.cumsum([0, *map(len, self._shards)], dtype=np.int64)
        digests = [manifest.shards[file.name].sha256 if manifest else "" for file in files]
        ends = [hashlib.sha256(shard[:4096].tobytes() + shard[-4096:].tobytes()).hexdigest() for shard in self._shards]
        parts = zip((file.name for file in files), map(len, self._shards), ends, digests, strict=True)
        self.fingerprint = hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, position: int) -> tuple[Path, int]:
        """The shard that holds a position, and the token's offset in it."""
        assert 0 <= position < len(self)
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.files[shard], position - int(self.starts[shard])

    def read(self, start: int, count: int) -> Tokens:
        """Tokens `start` to `start + count`, `(count,)` uint16, in memory of their own."""
        return self.gather(np.array([start], dtype=np.int64), count).reshape(count)

    def gather(self, starts: npt.NDArray[np.int64], length: int) -> Tokens:
        """One row of `length` tokens from each of the positions `starts` `(n,)`: `(n, length)` uint16."""
        assert length >= 0
        assert not len(starts) or (starts.min() >= 0 and starts.max() + length <= len(self))
        rows = np.empty((len(starts), length), dtype=_DTYPE)
        shards = np.searchsorted(self.starts, starts, side="right") - 1
        offsets = starts - self.starts[shards]
        # A slice for each row: billions of tokens a second at 1024 a row, and indifferent to the number of shards.
        for row, shard, offset in zip(rows, shards.tolist(), offsets.tolist(), strict=True):
            piece = self._shards[shard][offset : offset + length]
            row[: len(piece)] = piece
            filled = len(piece)
            while filled < length:  # over the border into the next shard
                shard += 1
                piece = self._shards[shard][: length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
        return rows


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none.

    Raises:
        GPT2LabError: it is unreadable, contradicts itself, names files outside the folder, or another tokenizer's ids.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, made_with, source = content["version"], content["tokenizer"], str(content["source"])
        documents = {split: int(content["splits"][split]["documents"]) for split in SPLITS}
        tokens = {split: int(content["splits"][split]["tokens"]) for split in SPLITS}
        rows = [(str(s["file"]), Shard(str(s["split"]), int(s["tokens"]), str(s["sha256"]))) for s in content["shards"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GPT2LabError(
            f"{path} is not a manifest of shards ({type(error).__name__}: {error}); move it away if it is another "
            f"program's, else remove {folder} and prepare it again"
        ) from None
    if version != 1 or made_with != tokenizer.NAME:
        raise GPT2LabError(
            f"{path}: version {version}, tokenizer {made_with!r}; need 1, {tokenizer.NAME!r}; set another --data.dir"
        )
    shards = dict(rows)
    for name, shard in rows:
        if Path(name).name != name or "\\" in name or name in ("", "..") or shard.split not in SPLITS:
            raise GPT2LabError(f"{path}: {name!r} is not the name of a shard in this folder; prepare it again")
    sums = {split: sum(shard.tokens for shard in shards.values() if shard.split == split) for split in SPLITS}
    if sums != tokens or len(shards) != len(rows):
        raise GPT2LabError(f"{path} contradicts itself: its shards do not add up; remove {folder} and prepare it again")
    return Manifest(source, documents, tokens, shards, content)


def shard_name(name: str, split: Split, number: int) -> str:
    """The file name of a shard that `prepare` writes."""
    return f"{name}_{split}_{number:06d}.npy"


def write_manifest(
    folder: Path,
    about: Mapping[str, Any],
    documents: Mapping[str, int],
    tokens: Mapping[str, int],
    entries: Sequence[Mapping[str, Any]],
) -> None:
    """Declare the shards of a folder complete.

    Args:
        about: source, revision, and whatever else is worth keeping.
        documents, tokens: by split.
        entries: file, split, tokens and sha256 of each shard, in order.

    Raises:
        GPT2LabError: the file system refused it.
    """
    splits = {split: {"tokens": tokens[split], "documents": documents[split]} for split in SPLITS}
    content = {"version": 1, "tokenizer": tokenizer.NAME, **about, "splits": splits, "shards": entries}
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_split(folder: str | Path, split: Split) -> TokenStream:
    """Memory-map the shards of one split, in numeric order.

    Raises:
        GPT2LabError: the folder is missing, unfinished, or has no shard of that split; a shard is truncated, of another
            format or dtype; the manifest does not agree with the files.
    """
    folder = Path(folder)
    present = shard_files(folder)
    manifest = read_manifest(folder)
    if manifest is None and (folder / PREPARING).exists():
        raise GPT2LabError(f"{folder} was left half prepared; prepare it again, or remove it")
    if not present and manifest is None:
        raise GPT2LabError(f"{folder} holds no shards (.npy or .bin); put some there or set --data.dir")
    if manifest is None:
        files = [file for file in present if split_of(file.name) == split]
        if not files:
            raise GPT2LabError(
                f"{folder} holds no shard of the split {split!r}; put one there: its file name must contain {split!r}"
            )
        return TokenStream(folder, split, files)

    again = f"remove {folder} and prepare it again"
    found = {file.name for file in present if split_of(file.name)}
    if missing := sorted(manifest.shards.keys() - found):
        raise GPT2LabError(f"{folder / missing[0]} is missing, {MANIFEST} lists it; restore it, or {again}")
    if extra := sorted(found - manifest.shards.keys()):
        raise GPT2LabError(f"{folder / extra[0]} is not listed in {MANIFEST}; move it to another folder, or {again}")
    files = [file for file in present if file.name in found and manifest.shards[file.name].split == split]
    if not files:
        raise GPT2LabError(f"{folder / MANIFEST} lists no shard of the split {split!r}; {again}")
    stream = TokenStream(folder, split, files, manifest)
    for file, count in zip(files, np.diff(stream.starts).tolist(), strict=True):
        if count != manifest.shards[file.name].tokens:
            raise GPT2LabError(
                f"{file} holds {count} tokens, {MANIFEST} says {manifest.shards[file.name].tokens}; "
                f"restore it, or {again}"
            )
    return stream


def is_ready(folder: Path) -> bool:
    """Whether a folder holds shards that nobody is still writing."""
    return folder.is_dir() and bool(shard_files(folder)) and not (folder / PREPARING).exists()


def shard_files(folder: Path) -> list[Path]:
    """Every shard of a folder, both splits, in numeric order; hidden files are none.

    Raises:
        GPT2LabError: the folder does not exist or cannot be read.
    """
    try:
        names = [file for file in folder.iterdir() if file.suffix in (".npy", ".bin") and file.name[0] != "."]
    except OSError as error:
        raise GPT2LabError(f"{folder}: {error.strerror}; put token shards there or set --data.dir") from None
    return sorted(names, key=lambda file: _numeric(file.name))


def split_of(name: str) -> Split | None:
    """The split that a file name speaks of: the last `train` or `val` in it (`medieval_train_000001.npy` is train)."""
    train, val = name.lower().rfind("train"), name.lower().rfind("val")
    if train == val == -1:
        return None
    return "train" if train > val else "val"


def _numeric(name: str) -> list[tuple[int, str]]:
    """Sort key under which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _map_shard(path: Path) -> Tokens:
    """The tokens of one file as a plain, read-only ndarray `(tokens,)` over its memory map.

    Raises:
        GPT2LabError: the file is not a shard, or is shorter or longer than its header says.
    """
    try:
        with open(path, "rb") as file:
            count = (_read_bin_header if path.suffix == ".bin" else _read_npy_header)(path, file)
            offset = file.tell()
        size = path.stat().st_size
        if size != offset + count * _DTYPE.itemsize:
            raise GPT2LabError(
                f"{path} is {'truncated' if size < offset + count * _DTYPE.itemsize else 'too long'}: its header says "
                f"{count} tokens, the file holds {max(0, size - offset) // _DTYPE.itemsize}; copy or prepare it again"
            )
        if not count:
            raise GPT2LabError(f"{path} holds no tokens; remove it")
        # The view drops the subclass: slicing a np.memmap costs several times more than slicing an ndarray.
        return np.memmap(path, dtype=_DTYPE, mode="r", offset=offset, shape=(count,)).view(np.ndarray)
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror or error}") from None


def _read_npy_header(path: Path, file: BinaryIO) -> int:
    """Number of tokens; the file is left at the first one. Only the header is parsed: nothing is ever unpickled."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # numpy parses the header as Python: a damaged one raises nearly anything
        raise GPT2LabError(
            f"{path} is {_emptiness(path)}not a whole .npy file ({error}); copy or prepare it again"
        ) from None
    if dtype != _DTYPE or len(shape) != 1:
        raise GPT2LabError(
            f"{path} holds {dtype} of shape {shape}; shards hold one dimension of little-endian uint16; "
            f"save it again with numpy.save(path, tokens.astype('<u2'))"
        )
    return int(shape[0])


def _read_bin_header(path: Path, file: BinaryIO) -> int:
    """Number of tokens; the file is left at the first one."""
    header = np.frombuffer(file.read(_BIN_HEADER * 4), dtype="<i4")
    if len(header) < _BIN_HEADER or header[0] != _BIN_MAGIC or header[1] != _BIN_VERSION or header[2] < 0:
        raise GPT2LabError(
            f"{path} is {_emptiness(path)}not a .bin shard of llm.c (magic {_BIN_MAGIC}, version {_BIN_VERSION}); "
            f"write it with llm.c's scripts, or as .npy"
        )
    return int(header[2])


def _emptiness(path: Path) -> str:
    return "" if path.stat().st_size else "empty (0 bytes), "
