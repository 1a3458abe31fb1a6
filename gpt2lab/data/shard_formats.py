"""File formats of token shards: NumPy's `.npy`, llm.c's `.bin`, and nanoGPT's `.bin`, which has no header.

Shards of uint16 are mapped into memory as they are. Those of wider integers must be converted first
(`gpt2lab prepare pretokenized --out`). Files of other kinds are recognized by their first bytes and their token ids.
"""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2lab.data.tokenizer import VOCAB_SIZE
from gpt2lab.errors import GPT2LabError

Tokens = npt.NDArray[np.uint16]

SUFFIXES = (".npy", ".bin")
DTYPE = np.dtype("<u2")

REPAIR = "copy it again, or repeat its preparation with --restart"  # the advice about a damaged shard

_BIN_MAGIC, _BIN_VERSION, _BIN_HEADER = 20240520, 1, 256  # llm.c: 256 int32 that begin with magic, version, tokens
_LLAMA_MAGIC = 20240801  # llm.c's shards of Llama 3's tokens
_SAMPLE = 65_536  # tokens at the beginning of a file without header, by which its format is recognized
_CHARACTERS = "meta.pkl"  # nanoGPT writes it beside shards of characters rather than GPT-2's tokens


class WideShardError(GPT2LabError):
    """A shard of integers other than uint16, which `prepare pretokenized --out` converts."""


def map_shard(path: Path) -> Tokens:
    """Map a shard into memory.

    Args:
        path: the file.

    Returns:
        uint16 `(tokens,)`, read-only.

    Raises:
        WideShardError: the shard holds other integers.
        GPT2LabError: the file is not a complete shard.
    """
    tokens = map_integers(path)
    if tokens.dtype != DTYPE:
        folder = path.parent
        command = f"gpt2lab prepare pretokenized --input {shlex.quote(str(folder))} --out "
        command += shlex.quote(f"{folder}_uint16")
        raise WideShardError(f"{path} holds {tokens.dtype} rather than uint16; convert the folder: {command}")
    return tokens


def map_integers(path: Path) -> npt.NDArray[Any]:
    """Map a shard of any integers into memory.

    Args:
        path: the file.

    Returns:
        `(tokens,)` of the file's dtype, read-only.

    Raises:
        GPT2LabError: the file is not a complete shard.
    """
    try:
        tokens = _map_bin(path) if path.suffix == ".bin" else np.lib.format.open_memmap(path, mode="r")
        if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
            raise ValueError(f"{tokens.dtype} of shape {tokens.shape} rather than integers of one dimension")
        extra_bytes = path.stat().st_size - tokens.offset - tokens.nbytes
    except GPT2LabError:
        raise
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror or error}") from None
    except Exception as error:  # numpy raises exceptions of many types for a damaged file
        raise GPT2LabError(f"{path} is truncated, damaged or not a shard ({error}); {REPAIR}") from None
    if extra_bytes or not len(tokens):
        reason = f"{extra_bytes} bytes follow its {len(tokens)} tokens" if extra_bytes else "it holds no tokens"
        raise GPT2LabError(f"{path} is damaged or not a shard ({reason}); {REPAIR}")
    # A plain ndarray over the same memory: slicing a np.memmap takes several times as long.
    return tokens.view(np.ndarray)


def _map_bin(path: Path) -> "np.memmap[Any, np.dtype[Any]]":
    """Map a `.bin` file: by its header if it has llm.c's, else as tokens from the first byte on."""
    header = np.fromfile(path, dtype="<i4", count=_BIN_HEADER)
    if not len(header) or header[0] not in (_BIN_MAGIC, _LLAMA_MAGIC):
        return _map_raw(path)
    if header[0] == _LLAMA_MAGIC:
        raise ValueError("llm.c wrote it with Llama 3's tokens, which are not GPT-2's")
    if len(header) < _BIN_HEADER or header[1] != _BIN_VERSION or header[2] < 0:
        raise ValueError(f"its header is not that of llm.c's version {_BIN_VERSION}")
    return np.memmap(path, dtype=DTYPE, mode="r", offset=header.nbytes, shape=(int(header[2]),))


def _map_raw(path: Path) -> "np.memmap[Any, np.dtype[Any]]":
    """Map a file without header. Ids above GPT-2's show that it holds something else."""
    if (path.parent / _CHARACTERS).exists():
        raise GPT2LabError(
            f"{path}: {_CHARACTERS} beside it says that its ids are characters, as of nanoGPT's shakespeare_char, not "
            f"GPT-2's tokens; prepare the text: gpt2lab prepare files --input {shlex.quote(str(path.parent))}/input.txt"
        )
    size = path.stat().st_size
    sample = np.fromfile(path, dtype=DTYPE, count=_SAMPLE)
    dtype: np.dtype[Any] = DTYPE
    if len(sample) >= 8 and sample.any() and not sample[1::2].any():  # the upper halves of wider integers
        dtype = np.dtype("<i4") if sample[2::4].any() else np.dtype("<i8")
    elif not sample.any() or sample.max() >= VOCAB_SIZE:
        raise ValueError("it has no header of llm.c, and as plain uint16 its ids are not GPT-2's")
    if size % dtype.itemsize:
        raise ValueError(f"{size} bytes are no whole number of {dtype} tokens")
    return np.memmap(path, dtype=dtype, mode="r")
