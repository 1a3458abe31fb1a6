"""Weights in and out in the layout of Hugging Face's GPT-2: a folder with config.json and model.safetensors.

    state dict (our names, Linear is (out, in))  ◀─read── folder ──▶ transformers, lm-eval, vLLM, ...
                                                 ──write─▶

Two things differ between a state dict and the file. Their layers of attention and MLP are Conv1D, which keeps
weights as (in, out), so those four are transposed. And a tied `lm_head.weight` is not in the file at all.

Reading also takes the layout of OpenAI's models on the Hub: names without `transformer.`, and the causal mask saved
as `h.N.attn.bias`. Nothing in a file is executed: it is JSON and safetensors, and pickles are refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2lab.config import GPT2_VOCAB_SIZE, SIZES, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_HEAD, _TABLE = "lm_head.weight", "transformer.wte.weight"
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MASK = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$")
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}
_WEIGHT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

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
        GPT2LabError: the folder is missing, or has no `config.json` or `model.safetensors`; either is damaged; the
            model is not GPT-2; tensors are missing, unexpected, misshapen or not floats of 16 or 32 bits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GPT2LabError(f"{folder}: no such folder; give one that holds {CONFIG} and {WEIGHTS}")
    config = read_config(folder)
    path = _weights_file(folder)
    try:
        with safe_open(path, framework="pt") as file:
            names = _match(path, file, config)
            tensors = {ours: _own(file.get_tensor(theirs), ours, dtype) for ours, theirs in names.items()}
    except (SafetensorError, OSError) as error:
        raise GPT2LabError(f"{path}: cannot read it: {error}; fetch or save it again") from error
    if config.tie_word_embeddings:
        head = tensors.setdefault(_HEAD, tensors[_TABLE])
        if not torch.equal(head, tensors[_TABLE]):
            raise GPT2LabError(
                f"{path}: lm_head.weight differs from {_TABLE}, but {CONFIG} ties them; "
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GPT2LabError(f"cannot make the folder {folder}: {error.strerror}; write elsewhere") from error
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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GPT2LabError(f"{path}: no such file; a model's folder holds {CONFIG} and {WEIGHTS}") from None
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise GPT2LabError(f"{path}: not valid JSON: {error}; fetch or save it again") from error
    if not isinstance(values, dict):
        raise GPT2LabError(f"{path}: expected a JSON object, found {type(values).__name__}")
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


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.is_file():
        return path
    if (folder / f"{WEIGHTS}.index.json").exists():
        raise GPT2LabError(f"{folder}: weights in several files; save them as one {WEIGHTS} (a larger max_shard_size)")
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise GPT2LabError(
            f"{folder / pickles[0]} is a pickle, which can run code when opened, and is not read; "
            f"convert it to {WEIGHTS}"
        )
    present = ", ".join(sorted(file.name for file in folder.iterdir()))
    raise GPT2LabError(f"{folder}: no {WEIGHTS}; the folder holds {present}")


def _match(path: Path, file: Any, config: GPT2Config) -> dict[str, str]:
    """Our name and the file's of every tensor to load, after checking all names, shapes and dtypes."""
    expected = shapes(config)
    names: dict[str, str] = {}
    unexpected = []
    for theirs in sorted(file.keys()):
        if _MASK.match(theirs):
            continue
        ours = theirs if theirs == _HEAD or theirs.startswith("transformer.") else f"transformer.{theirs}"
        if ours in names or ours not in expected:
            unexpected.append(theirs)
        names[ours] = theirs
    optional = {_HEAD} if config.tie_word_embeddings else set()
    if missing := [name for name in expected if name not in names and name not in optional]:
        raise GPT2LabError(f"{path}: {_count(missing)} missing; {CONFIG} and {WEIGHTS} must be of one GPT-2")
    if unexpected:
        raise GPT2LabError(f"{path}: {_count(unexpected)} unexpected; {CONFIG} and {WEIGHTS} must be of one GPT-2")
    for ours, theirs in names.items():
        entry = file.get_slice(theirs)
        found, shape = tuple(entry.get_shape()), expected[ours]
        if _CONV1D.search(ours):
            shape = shape[::-1]
        if found != shape:
            raise GPT2LabError(f"{path}: {theirs} has shape {found}, {CONFIG} asks for {shape}; use files of one model")
        if entry.get_dtype() not in _WEIGHT_DTYPES:
            allowed = ", ".join(_WEIGHT_DTYPES.values())
            raise GPT2LabError(f"{path}: {theirs} is {entry.get_dtype()}; convert it to one of {allowed}")
    return names


def _count(names: list[str]) -> str:
    return f"tensor {names[0]}" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} more"


def _own(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A copy in our orientation that no longer needs the file."""
    tensor = tensor.t() if _CONV1D.search(name) else tensor
    return tensor.to(dtype=dtype, memory_format=torch.contiguous_format, copy=True)
