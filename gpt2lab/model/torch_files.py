"""Read files of `torch.save` without running their pickle and without torch's loader.

    model.pt ─▶ zip (torch 1.6 and newer) ─┐   ┌─▶ content: dicts, numbers, inert records, descriptions of tensors
                pickles (older) ───────────┴───┴─▶ load(description) ─▶ tensor

Only the tensors that are asked for are read, so an optimizer's state in the file costs nothing. Sizes in the file are
compared with the file's own size before memory is allocated.
"""

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gpt2lab.errors import GPT2LabError
from gpt2lab.model import pickle_reader
from gpt2lab.model.pickle_reader import PickleError, StoredView, show

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch.save began files with

_CONTENT = re.compile(r"(?P<folder>[^/]+)/data\.pkl")
_LEGACY_PROTOCOL = 1001
_MAX_DIRECTORY = 2**22  # bytes of a zip's list of entries; GPT-2 XL with its optimizer needs 2**18


class Block(NamedTuple):
    """Where a storage is in the file. `crc` is 0 if the file has no checksum of it."""

    start: int
    size: int
    crc: int = 0


class TorchFile:
    """An open file of `torch.save`.

    Args:
        path: of the file.
        content: what was saved; a tensor is a StoredView.
        blocks: the storages, by key.
    """

    def __init__(self, path: Path, content: Any, blocks: dict[str, Block]):
        self.path, self.content, self._blocks = path, content, blocks
        self._bytes_left = 2 * path.stat().st_size  # a tied matrix may be read twice

    def load(self, view: StoredView) -> Tensor:
        """Read a tensor.

        Args:
            view: of `content`.

        Returns:
            The tensor, on the CPU, in memory of its own.

        Raises:
            GPT2LabError: its bytes are missing or damaged.
        """
        block, dtype = self._blocks.get(view.storage.key), view.dtype
        self._bytes_left -= view.nbytes
        if self._bytes_left < 0:  # many tensors of one storage, or one number repeated
            _refuse(self.path, "describes tensors that are larger than the file; it holds no usual model")
        if block is None or block.size != view.storage.numel * dtype.itemsize:
            _refuse(self.path, "lacks the bytes of a tensor, or has another number of them; download or copy it again")
        data = torch.empty(view.span * dtype.itemsize, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(block.start + view.offset * dtype.itemsize)
            if file.readinto(data.numpy()) != len(data):  # type: ignore[arg-type]
                _refuse(self.path, "ends in the middle of a tensor; download or copy it again")
        if block.crc and len(data) == block.size and zlib.crc32(data.numpy()) != block.crc:  # type: ignore[arg-type]
            _refuse(self.path, "is damaged: a tensor does not have its checksum; download or copy it again")
        return data.view(dtype).as_strided(view.shape, view.stride)


def is_torch_file(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle, or of a zip archive as `torch.save` writes it."""
    return head.startswith((ZIP_MAGIC, b"\x80"))


def read(path: Path) -> TorchFile:
    """Open a file of `torch.save`.

    Args:
        path: the file.

    Returns:
        Its content, and the means to read its tensors.

    Raises:
        GPT2LabError: it is damaged, or holds more than data; see `pickle_reader`.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        return _read_zip(path) if is_zip else _read_legacy(path)
    except PickleError as error:
        _refuse(path, str(error))
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GPT2LabError(f"{path}: {reason}") from None


class _BoundedFile(io.FileIO):
    """A file for `zipfile`, which would read a list of entries of any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(_MAX_DIRECTORY + 1 if size is None or size < 0 else min(size, _MAX_DIRECTORY + 1))
        if len(data) > _MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return data


def _read_zip(path: Path) -> TorchFile:
    blocks: dict[str, Block] = {}
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise PickleError(
                    "is TorchScript, which is code; save the model's state_dict() with torch.save instead"
                )
            for entry in archive.infolist():
                if entry.filename in blocks:
                    raise PickleError(f"is a zip archive with two entries {show(entry.filename)}")
                blocks[entry.filename] = _find_block(file, path.stat().st_size, entry)
    except (PickleError, OSError):
        raise
    except Exception:  # zipfile has no common class for what can be wrong
        raise PickleError("is a damaged or incomplete zip archive; download or copy it again") from None
    folders = [match["folder"] for name in blocks if (match := _CONTENT.fullmatch(name))]
    if len(folders) != 1:
        raise PickleError("is a zip archive that torch.save did not write (it has no data.pkl)")
    prefix = f"{folders[0]}/"
    if _read_block(path, blocks.get(f"{prefix}byteorder"), default=b"little") != b"little":
        raise PickleError("was written on a machine with big-endian numbers, which is not supported")
    content, _ = pickle_reader.read(io.BytesIO(_read_block(path, blocks[f"{prefix}data.pkl"])))
    data = f"{prefix}data/"
    storages = {name.removeprefix(data): block for name, block in blocks.items() if name.startswith(data)}
    return TorchFile(path, content, storages)


def _find_block(file: io.FileIO, file_size: int, entry: zipfile.ZipInfo) -> Block:
    """Where an entry's bytes are. They must be stored as they are: compressed, a small file could hold any amount."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        raise PickleError(
            f"has a compressed or encrypted entry, {show(entry.filename)}, which torch.save does not write; load it "
            "where it was written, and save it again"
        )
    file.seek(entry.header_offset)
    header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if not header.startswith(ZIP_MAGIC) or start + entry.file_size > file_size:
        raise zipfile.BadZipFile
    return Block(start, entry.file_size, entry.CRC)


def _read_block(path: Path, block: Block | None, default: bytes = b"") -> bytes:
    if block is None:
        return default
    if block.size > pickle_reader.MAX_SIZE:
        raise PickleError(f"has a pickle of {block.size:,} bytes; a model needs less than {pickle_reader.MAX_SIZE:,}")
    with open(path, "rb") as file:
        file.seek(block.start)
        data = file.read(block.size)
    if block.crc and zlib.crc32(data) != block.crc:
        raise PickleError("is damaged: its pickle does not have its checksum; download or copy it again")
    return data


def _read_legacy(path: Path) -> TorchFile:
    """Read the form before torch 1.6: pickles (number, version, system, content, keys), then each storage."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read(pickle_reader.MAX_SIZE))
    if not stream.getvalue().startswith(LEGACY_MAGIC):
        raise PickleError(
            "is a pickle that torch.save did not write, or is damaged; none of it was run. Load it with the program "
            "that wrote it, and save model.state_dict() with torch.save"
        )
    stream.seek(len(LEGACY_MAGIC))
    (version, _), (system, _) = pickle_reader.read(stream), pickle_reader.read(stream)
    if version != _LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("was written by an unknown version of torch or on another kind of machine; save it again")
    content, storages = pickle_reader.read(stream)
    keys, _ = pickle_reader.read(stream)
    # Not sorted: long texts that are equal take long to compare. The keys of `storages` are short.
    is_complete = isinstance(keys, list) and len(keys) == len(storages)
    if not is_complete or not all(isinstance(key, str) and key in storages for key in keys) or len({*keys}) < len(keys):
        raise PickleError("is damaged: its list of tensors does not belong to it")
    blocks: dict[str, Block] = {}
    position = stream.tell()
    for key in keys:
        blocks[key] = Block(position + 8, storages[key].numel * storages[key].dtype.itemsize)  # 8 bytes: its length
        position = blocks[key].start + blocks[key].size
    if position > size:
        raise PickleError("ends in the middle of a tensor; download or copy it again")
    return TorchFile(path, content, blocks)
