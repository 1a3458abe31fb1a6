"""Weights in and out in the layout of Hugging Face's GPT-2: a folder with config.json and model.safetensors.

    state dict (our names, Linear is (out, in))  ◀─read── folder ──▶ transformers, lm-eval, vLLM, ...
                                                 ──write─▶

Large models come as several safetensors files and an index that names them; old ones as pytorch_model.bin, a pickle.
A folder is read from the first of the three that it has, and from no other if that one is damaged.

Two things differ between a state dict and the file. Their layers of attention and MLP are Conv1D, which keeps
weights as (in, out), so those four are transposed. And a tied `lm_head.weight` is not in the file at all.

Reading also takes the layout of OpenAI's models on the Hub: names without `transformer.`, and the causal mask saved
as `h.N.attn.bias`. Nothing in a file is executed: it is JSON, safetensors, or a pickle that torch reads as tensors
and refuses if it holds anything else.
"""

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2lab.config import GPT2_VOCAB_SIZE, SIZES, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write, make_folder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
CARD = "README.md"

_HEAD, _TABLE = "lm_head.weight", "transformer.wte.weight"
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MASK = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$")
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}
_WEIGHT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_MAX_HEADER = 2**23  # bytes; the 580 tensors of GPT-2 XL take 2**16

# Our names of the numbers in config.json, and theirs.
_NUMBERS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
# Settings of config.json that change the mathematics, and the only value that GPT-2 has. Absent means that value.
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a state dict by name: GPT-2's names, our orientation; `lm_head.weight` also when it is tied."""
    C, V = config.n_embd, config.vocab_size
    block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (3 * C, C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (4 * C, C),
        "mlp.c_fc.bias": (4 * C,),
        "mlp.c_proj.weight": (C, 4 * C),
        "mlp.c_proj.bias": (C,),
    }
    return {
        _TABLE: (V, C),
        "transformer.wpe.weight": (config.block_size, C),
        **{f"transformer.h.{n}.{name}": shape for n in range(config.n_layer) for name, shape in block.items()},
        "transformer.ln_f.weight": (C,),
        "transformer.ln_f.bias": (C,),
        _HEAD: (V, C),
    }


def read(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[GPT2Config, dict[str, Tensor]]:
    """The architecture and a complete state dict, on the CPU.

    Returns:
        The config, and the tensors of `shapes(config)`: contiguous, in memory of their own (not mapped from the
        file), converted to `dtype`. When tied, `lm_head.weight` is the token embedding itself.

    Raises:
        GPT2LabError: the folder is missing, or has no `config.json` or no weights; either is damaged; a pickle holds
            more than tensors; the model is not GPT-2; tensors are missing, unexpected, misshapen or not floats of 16
            or 32 bits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GPT2LabError(f"{folder}: no such folder; give one that holds {CONFIG} and {WEIGHTS}")
    config = read_config(folder)
    with contextlib.ExitStack() as stack:
        stored = [one for path in _weights_files(folder) for one in _open(path, stack)]
        matched = _match(folder, stored, config)
        tensors = {ours: _own(one, ours, dtype) for ours, one in matched.items()}
    if config.tie_word_embeddings:
        head = tensors.setdefault(_HEAD, tensors[_TABLE])
        if not torch.equal(head, tensors[_TABLE]):
            raise GPT2LabError(
                f"{matched[_HEAD].path}: lm_head.weight differs from {_TABLE}, but {CONFIG} ties them; "
                f'set "tie_word_embeddings": false there'
            )
        tensors[_HEAD] = tensors[_TABLE]
    return config, tensors


def write(folder: str | Path, config: GPT2Config, state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, which is made if need be; each whole or not at all.

    Args:
        state: a GPT2's state dict, on any device, in one dtype (which config.json names). A live model's will do: one
            tensor at a time is copied.

    Raises:
        GPT2LabError: the file system refused.
    """
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(config)
    folder = Path(folder)
    make_folder(folder)
    tensors = {
        name: tensor.t() if _CONV1D.search(name) else tensor
        for name, tensor in state.items()
        if not (name == _HEAD and config.tie_word_embeddings)
    }
    with atomic_write(folder / WEIGHTS) as temporary:
        save_tensors(temporary, tensors)
    with atomic_write(folder / CONFIG) as temporary:
        text = json.dumps(_to_json(config, state[_TABLE].dtype), indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: the header's length (8 bytes), the header (JSON), then every tensor's bytes.

    The library's own writer wants all tensors contiguous and on the CPU at once, makes the file readable by its
    owner alone, and reports a full disk as something other than an OSError. This one takes a tensor at a time, from
    any device and with any strides.

    Args:
        tensors: float32, float16, bfloat16, int64 or uint8.

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


def read_config(folder: str | Path) -> GPT2Config:
    """The architecture that a folder's `config.json` describes.

    Raises:
        GPT2LabError: the file is missing or damaged, or describes something that is not GPT-2.
    """
    path = Path(folder) / CONFIG
    values = _read_json(path)
    if values.get("model_type") != "gpt2":
        raise GPT2LabError(f"{path}: model_type is {values.get('model_type')!r}; only gpt2 can be read")
    if absent := [key for key in _NUMBERS.values() if values.get(key) is None]:
        raise GPT2LabError(f"{path}: {', '.join(absent)} missing; take {CONFIG} from where the weights come from")
    for key, only in _FIXED.items():
        if values.get(key, only) != only:
            raise GPT2LabError(f"{path}: {key} is {values[key]!r}, GPT-2 has {only!r}; this model cannot be read")
    if values.get("n_inner") not in (None, 4 * values["n_embd"]):
        raise GPT2LabError(f"{path}: n_inner is {values['n_inner']!r}, GPT-2 has 4 x n_embd; this model cannot be read")
    return _from_json(path, values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GPT2LabError(f"{path}: no such file; a model's folder holds {CONFIG} and {WEIGHTS}") from None
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8, or brackets without end
        raise GPT2LabError(f"{path}: not valid JSON: {error}; fetch or save it again") from error
    if not isinstance(values, dict):
        raise GPT2LabError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _from_json(path: Path, values: Mapping[str, Any]) -> GPT2Config:
    numbers = {ours: values[theirs] for ours, theirs in _NUMBERS.items()}
    shape = (numbers["n_layer"], numbers["n_head"], numbers["n_embd"])
    size = next((size for size, published in SIZES.items() if published == shape), None)
    try:
        return GPT2Config.model_validate(
            {**numbers, "size": size, "tie_word_embeddings": values.get("tie_word_embeddings", True)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = _NUMBERS.get(str(first["loc"][0]), first["loc"][0]) if first["loc"] else "model"
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise GPT2LabError(f"{path}: {key}: {message}, found {first['input']!r}") from None


def _to_json(config: GPT2Config, dtype: torch.dtype) -> dict[str, Any]:
    end_of_text = GPT2_VOCAB_SIZE - 1 if config.vocab_size >= GPT2_VOCAB_SIZE else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in _NUMBERS.items()},
        "n_ctx": config.block_size,
        **_FIXED,
        "initializer_range": 0.02,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text),
        "tie_word_embeddings": config.tie_word_embeddings,
        "dtype": str(dtype).removeprefix("torch."),
    }


class _Stored(NamedTuple):
    """A tensor in a file: what is known of it before it is read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


def _weights_files(folder: Path) -> list[Path]:
    """The files that together hold a folder's weights, of the best kind that is there."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise GPT2LabError(
            f"{folder / pickles[0]} is a pickle, which can run code when opened, and is not read; "
            f"convert it to {WEIGHTS}"
        )
    present = ", ".join(sorted(file.name for file in folder.iterdir()))
    raise GPT2LabError(f"{folder}: no {WEIGHTS}; the folder holds {present}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Plain names only: an index from elsewhere is not to say what else we open."""
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise GPT2LabError(f"{index}: no weight_map, which says where each tensor is; fetch or save it again")
    paths = []
    for name in sorted({str(name) for name in named.values()}):
        if not _SHARD.fullmatch(name):
            raise GPT2LabError(f"{index}: {name!r} is not the name of a .safetensors file beside it; fetch it again")
        paths.append(index.parent / name)
        if not paths[-1].is_file():
            raise GPT2LabError(f"{paths[-1]}: no such file, but {INDEX} names it; fetch it as well")
    return paths


def _open(path: Path, stack: contextlib.ExitStack) -> list[_Stored]:
    """The tensors of a file, which stays open as long as the stack."""
    if path.name == PICKLE:
        return _unpickle(path)
    try:
        with open(path, "rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
        if length > _MAX_HEADER:
            raise GPT2LabError(
                f"{path}: cannot read it: its first 8 bytes announce a header of {length:,} bytes, and GPT-2 needs "
                f"less than {_MAX_HEADER:,}; fetch or save it again"
            )
        file = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise GPT2LabError(f"{path}: cannot read it: {error}; fetch or save it again") from error
    stored = []
    for name in file.keys():  # noqa: SIM118  # no mapping
        entry = file.get_slice(name)
        dtype = _WEIGHT_DTYPES.get(entry.get_dtype(), entry.get_dtype())
        stored.append(_Stored(path, name, tuple(entry.get_shape()), dtype, functools.partial(file.get_tensor, name)))
    return stored


def _unpickle(path: Path) -> list[_Stored]:
    """The tensors of a pickle, by torch's reader that makes nothing else. What it refuses stays refused."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of forms that it then refuses
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make it raise nearly anything
        raise GPT2LabError(
            f"{path}: a pickle, damaged or with more in it than tensors, which could be code; nothing of it was run. "
            f"Take the model's {WEIGHTS} instead"
        ) from error
    if not isinstance(tensors, dict) or not all(_is_plain(tensor) for tensor in tensors.values()):
        raise GPT2LabError(f"{path}: not a table of tensors by name; take the model's {WEIGHTS} instead")
    stored = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        read = functools.partial(tensors.__getitem__, name)
        stored.append(_Stored(path, str(name), tuple(tensor.shape), dtype, read))
    return stored


def _is_plain(tensor: object) -> bool:
    """Whether it is a tensor with numbers in memory, not sparse and not on the meta device."""
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"


def _match(folder: Path, stored: list[_Stored], config: GPT2Config) -> dict[str, _Stored]:
    """The tensor to load for each of our names, after checking all names, shapes and dtypes."""
    expected = shapes(config)
    matched: dict[str, _Stored] = {}
    unexpected = []
    for one in sorted(stored, key=lambda one: one.name):
        if _MASK.match(one.name):
            continue
        prefix = "" if one.name == _HEAD or one.name.startswith("transformer.") else "transformer."
        ours = prefix + one.name
        if ours in matched or ours not in expected:
            unexpected.append(one.name)
        matched[ours] = one
    where = stored[0].path if len({one.path for one in stored}) == 1 else folder
    optional = {_HEAD} if config.tie_word_embeddings else set()
    if missing := [name for name in expected if name not in matched and name not in optional]:
        raise GPT2LabError(f"{where}: {_count(missing)} missing; {CONFIG} and the weights must be of one GPT-2")
    if unexpected:
        raise GPT2LabError(f"{where}: {_count(unexpected)} unexpected; {CONFIG} and the weights must be of one GPT-2")
    for ours, one in matched.items():
        shape = expected[ours]
        if _CONV1D.search(ours):
            shape = shape[::-1]
        if one.shape != shape:
            raise GPT2LabError(
                f"{one.path}: {one.name} has shape {one.shape}, {CONFIG} asks for {shape}; use files of one model"
            )
        if one.dtype not in _WEIGHT_DTYPES.values():
            allowed = ", ".join(_WEIGHT_DTYPES.values())
            raise GPT2LabError(f"{one.path}: {one.name} is {one.dtype}; convert it to one of {allowed}")
    return matched


def _count(names: list[str]) -> str:
    return f"tensor {names[0]}" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} more"


def _own(stored: _Stored, name: str, dtype: torch.dtype) -> Tensor:
    """A copy in our orientation that no longer needs the file."""
    try:
        tensor = stored.read()
    except (SafetensorError, OSError) as error:
        raise GPT2LabError(f"{stored.path}: cannot read it: {error}; fetch or save it again") from error
    tensor = tensor.t() if _CONV1D.search(name) else tensor
    return tensor.to(dtype=dtype, memory_format=torch.contiguous_format, copy=True)
