"""Files of named tensors: safetensors, in one file or several with an index, and PyTorch's old pickles.

Reading executes nothing: a file is safetensors, JSON, or a pickle of which only data is read (`torch_files.py`). What
the names mean is up to the caller (`huggingface.py`).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt2lab import files
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import torch_files
from gpt2lab.model.config_json import read_json
from gpt2lab.model.pickle_reader import StoredView

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}
_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
_MAX_HEADER = 2**23  # bytes; the 580 tensors of GPT-2 XL take 2**16


class StoredTensor(NamedTuple):
    """A tensor in a file; those of safetensors files are mapped into memory and read when they are used."""

    path: Path
    name: str
    tensor: Tensor


def read_folder(folder: Path) -> list[StoredTensor]:
    """Open the weights of a model's folder: the first form that it has, and no other if that one is damaged.

    Args:
        folder: holds `model.safetensors`, else shards with an index, else `pytorch_model.bin`.

    Returns:
        The tensors of all files.

    Raises:
        GPT2LabError: there are no weights, or a file is missing or damaged, or a pickle holds more than tensors.
    """
    if (folder / SAFETENSORS).is_file():
        return read_safetensors(folder / SAFETENSORS)
    if (folder / INDEX).is_file():
        return [stored for path in _list_shards(folder / INDEX) for stored in read_safetensors(path)]
    if (folder / PICKLE).is_file():
        return _read_pickle(folder / PICKLE)
    names = ", ".join(sorted(file.name for file in folder.iterdir()))
    raise GPT2LabError(f"{folder}: no {SAFETENSORS}; the folder holds {names}; convert its weights to {SAFETENSORS}")


def _list_shards(index: Path) -> list[Path]:
    """The files that an index names. Only plain names are accepted, so that no file elsewhere is opened."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise GPT2LabError(f"{index}: no weight_map, which names the file of each tensor; download or save it again")
    paths = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if not _SHARD_NAME.fullmatch(name):
            raise GPT2LabError(
                f"{index}: {name!r} is not the name of a .safetensors file in its folder; download it again"
            )
        paths.append(index.parent / name)
        if not paths[-1].is_file():
            raise GPT2LabError(f"{paths[-1]}: no such file, but {INDEX} names it; download it as well")
    return paths


def read_safetensors(path: Path) -> list[StoredTensor]:
    """Open one file.

    Args:
        path: the file.

    Returns:
        Its tensors, mapped into memory.

    Raises:
        GPT2LabError: the file is damaged.
    """
    try:
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
        if header_size > _MAX_HEADER:  # before the library allocates it
            raise GPT2LabError(
                f"{path}: cannot read it: its first 8 bytes announce a header of {header_size:,} bytes, and GPT-2 "
                f"needs less than {_MAX_HEADER:,}; download or save it again"
            )
        tensors = load_file(path)
    except PermissionError as error:
        raise files.cannot_read(path, error) from error
    except (SafetensorError, OSError) as error:
        raise GPT2LabError(f"{path}: cannot read it: {error}; download or save it again") from error
    except (RuntimeError, TypeError):  # torch's, with many lines
        raise GPT2LabError(
            f"{path}: cannot read it: a tensor in it has a shape that is not possible; download or save it again"
        ) from None
    return [StoredTensor(path, name, tensor) for name, tensor in tensors.items()]


def _read_pickle(path: Path) -> list[StoredTensor]:
    file = torch_files.read(path)
    views = file.content if isinstance(file.content, dict) else {}
    if not views or not all(isinstance(view, StoredView) for view in views.values()):
        raise GPT2LabError(f"{path}: not a table of tensors by name; use the model's {SAFETENSORS} instead")
    return [StoredTensor(path, name, file.load(view)) for name, view in views.items()]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: the header's length (8 bytes), the header (JSON), then the bytes of every tensor.

    The library's own writer needs all tensors contiguous and on the CPU at the same time, makes the file readable by
    its owner only, and reports a full disk as something other than an OSError. This one copies one tensor at a time,
    from any device and with any strides.

    Args:
        path: the file.
        tensors: float32, float16, bfloat16, int64 or uint8, by name.

    Raises:
        OSError: the file system refused; the file is then incomplete (write inside `files.atomic_write`).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
