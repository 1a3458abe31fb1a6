"""Read a model from one file of another project: nanoGPT, build-nanogpt and its descendants, llm.c, a state dict.

    FILE ─▶ format, by its first bytes ─▶ tensors by name ─▶ GPT-2's names ─▶ shapes ─▶ config ─▶ weights
                                          what else the file says ──────────────────────┘

The shapes of the tensors decide all of the config but the number of heads and the kind of GELU, which the file says or
implies. Its pickle, if it is one, is never run (`pickle_reader.py`).
"""

import logging
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import plural
from gpt2lab.model import config_json, gpt2_layout, huggingface, llmc, torch_files, weight_files
from gpt2lab.model.pickle_reader import Record, StoredView, show

logger = logging.getLogger(__name__)

FORMATS = (
    "nanoGPT's ckpt.pt, build-nanogpt's model_*.pt, llm.c's model .bin, a state dict of torch.save with GPT-2's names, "
    "or .safetensors"
)

_HEAD_SIZE = 64  # channels of a head in all published GPT-2 models
_HEAD, _TOKENS, _POSITIONS = "lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"
_STATE_KEYS = ("model", "state_dict", "model_state_dict")
# What torch.compile, DDP, FSDP and Lightning put into the names of tensors.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|model|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BLOCK = re.compile(r"transformer\.h\.(\d{1,4})\.")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OTHER_FILES = {  # by their first bytes
    b"GGUF": "a model of llama.cpp in GGUF; give the weights that it was made from",
    b"\x93NUMPY": "a NumPy array, such as a shard of tokens; it is not a model",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    struct.pack("<i", 20240520): "a shard of tokens for llm.c; it is not a model",
    struct.pack("<i", 20240527): "llm.c's optimizer state; give the model_*.bin beside it",
    struct.pack("<i", 20240327): "llm.c's debugging state; give gpt2_*.bin without debug_state",
}


class Source(NamedTuple):
    """What a file holds: tensors by its own names, how to read one, and what it says about the model.

    `config` may have n_layer, n_head, n_embd, bias and activation, and other values, which are not used.
    """

    project: str
    tensors: Mapping[str, Tensor | StoredView]
    load: Callable[[Any], Tensor]
    config: Mapping[str, Any]
    progress: str = ""


def read(path: Path, dtype: torch.dtype = torch.float32) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Read a model's config and weights.

    Args:
        path: a file in one of `FORMATS`.
        dtype: to convert the weights to.

    Returns:
        The config, and the tensors of `huggingface.shapes(config)`, on the CPU and in memory. When tied,
        `lm_head.weight` is the token embedding itself. Biases that a model was trained without are zeros.

    Raises:
        GPT2LabError: the file is damaged, holds more than data, or is not a GPT-2.
    """
    try:
        source = _open(path)
        tensors = _rename(path, source.tensors)
        config = _find_config(path, tensors, source)
        weights = _load(path, tensors, config, source, dtype)
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not config.tie_word_embeddings and torch.equal(weights[_HEAD], weights[_TOKENS]):
        config = config.model_copy(update={"tie_word_embeddings": True})
        weights[_HEAD] = weights[_TOKENS]
    if "n_head" not in source.config and config.size is None:
        logger.warning(
            f"{path}: does not say how many heads the model has; assuming {config.n_head} of {_HEAD_SIZE} channels, as "
            "in the published models"
        )
    gelu = "exact GELU" if config.activation == "gelu" else "GELU in the tanh approximation"
    logger.info(
        f"{path}: {source.project}{source.progress}; {plural(config.n_layer, 'layer')}, {config.n_embd} channels, "
        f"{plural(config.n_head, 'head')}, {gelu}"
    )
    return config, weights


def _open(path: Path) -> Source:
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(llmc.MAGIC):
        config, tensors = llmc.read(path)
        return Source("llm.c", tensors, lambda tensor: tensor, config)
    if torch_files.is_torch_file(head):
        return _open_torch_file(path)
    if path.suffix == ".safetensors":
        stored = {entry.name: entry.tensor for entry in weight_files.read_safetensors(path)}
        return Source("safetensors", stored, torch.clone, _config_beside(path))
    what = next((what for magic, what in _OTHER_FILES.items() if head.startswith(magic)), None)
    raise GPT2LabError(f"{path}: {what or f'not a model that can be read; give {FORMATS}'}")


def _open_torch_file(path: Path) -> Source:
    file = torch_files.read(path)
    content = file.content if isinstance(file.content, dict) else {}
    key = next((key for key in _STATE_KEYS if isinstance(content.get(key), dict | Record)), None)
    state = content[key] if key else file.content
    if isinstance(state, Record):
        raise GPT2LabError(
            f"{path}: holds an object of {show(state.type)}, and its class cannot be used; load it with the program "
            "that wrote it, and save model.state_dict()"
        )
    tensors = {name: value for name, value in (state if key else content).items() if isinstance(value, StoredView)}
    if not tensors:
        raise GPT2LabError(f"{path}: holds no table of tensors by name; save model.state_dict() with torch.save")
    progress = _describe_progress(file)
    if isinstance(content.get("model_args"), dict):
        # Before it had model_args["bias"], nanoGPT had its own function for GELU, in the tanh approximation.
        config = content["model_args"]
        activation = "gelu" if "bias" in config else "gelu_tanh"
        return Source("nanoGPT", tensors, file.load, {**config, "activation": activation}, progress)
    if isinstance(config := content.get("config"), dict | Record):
        values = config.values if isinstance(config, Record) else config
        # Configs with dropout descend from nanoGPT's, and so does their MLP; build-nanogpt's has no dropout.
        activation = "gelu" if "dropout" in values else "gelu_tanh"
        return Source("build-nanogpt", tensors, file.load, {**values, "activation": activation}, progress)
    return Source("state dict", tensors, file.load, _config_beside(path), progress)


def _config_beside(path: Path) -> dict[str, Any]:
    """The values of config.json, if the file is one that belongs to it."""
    is_part = path.name in (weight_files.SAFETENSORS, weight_files.PICKLE)
    if is_part and path.with_name(huggingface.CONFIG).is_file():
        return config_json.read_config(path.parent).model_dump()
    return {}


def _describe_progress(file: torch_files.TorchFile) -> str:
    """Step and validation loss, if the file has them: `, step 19,072, validation loss 3.0721`."""
    content = file.content if isinstance(file.content, dict) else {}
    step, loss = content.get("step", content.get("iter_num")), content.get("val_loss", content.get("best_val_loss"))
    if isinstance(loss, StoredView) and loss.shape == () and loss.dtype in _DTYPES:  # nanoGPT's
        loss = file.load(loss).item()
    text = f", step {step:,}" if type(step) is int and 0 <= step < 2**48 else ""
    return text + (f", validation loss {loss:.4f}" if type(loss) is float else "")


def _rename(path: Path, tensors: Mapping[str, Tensor | StoredView]) -> dict[str, Tensor | StoredView]:
    """The tensors by GPT-2's names, without causal masks."""
    renamed: dict[str, Tensor | StoredView] = {}
    for stored_name, tensor in tensors.items():
        name = _WRAPPERS.sub("", stored_name)
        if gpt2_layout.IGNORED.match(name):
            continue
        if name != _HEAD and not name.startswith("transformer."):
            name = f"transformer.{name}"
        if name in renamed:
            raise GPT2LabError(f"{path}: holds {show(name)} twice; save model.state_dict() again")
        renamed[name] = tensor
    return renamed


def _find_config(path: Path, tensors: Mapping[str, Tensor | StoredView], source: Source) -> GPT2Config:
    c_attn = "transformer.h.0.attn.c_attn.weight"
    for name in (_TOKENS, _POSITIONS, c_attn):
        if name not in tensors or len(tensors[name].shape) != 2:
            names = ", ".join(show(name) for name in list(source.tensors)[:3])
            raise GPT2LabError(
                f"{path}: not a GPT-2: no matrix {name} among its {len(source.tensors)} tensors ({names}, ...); give "
                f"{FORMATS}"
            )
    vocab_size, n_embd = tensors[_TOKENS].shape
    n_layer = len({match[1] for name in tensors if (match := _BLOCK.match(name))})
    for field, value in (("n_layer", n_layer), ("n_embd", n_embd)):
        if field in source.config and source.config[field] != value:
            raise GPT2LabError(
                f"{path}: its tensors have {field} {value}, and its config says {show(source.config[field])}; "
                "save the model again"
            )
    n_head = source.config.get("n_head", n_embd // _HEAD_SIZE if n_embd % _HEAD_SIZE == 0 else None)
    if n_head is None:
        raise GPT2LabError(
            f"{path}: does not say how many heads the model has, and {n_embd} channels are no multiple of "
            f'{_HEAD_SIZE}; save {{"model": model.state_dict(), "config": {{"n_head": ...}}}}'
        )
    return config_json.make_config(
        path,
        {
            "n_layer": n_layer,
            "n_head": n_head if type(n_head) is int and abs(n_head) < 2**31 else show(n_head),
            "n_embd": n_embd,
            "block_size": tensors[_POSITIONS].shape[0],
            "vocab_size": vocab_size,
            "tie_word_embeddings": _is_tied(tensors),
            "activation": source.config.get("activation", "gelu_tanh"),
        },
    )


def _load(
    path: Path,
    tensors: Mapping[str, Tensor | StoredView],
    config: GPT2Config,
    source: Source,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    expected = huggingface.shapes(config)
    has_biases = any(name.endswith(".bias") for name in tensors)
    optional = {name for name in expected if name.endswith(".bias") and not has_biases}
    optional |= {_HEAD} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in tensors and name not in optional]
    unexpected = [name for name in tensors if name not in expected]
    for names, problem in ((missing, "lacks"), (unexpected, "is not a GPT-2, or not only one: it also has")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise GPT2LabError(f"{path}: {problem} {show(names[0])}{more}; save model.state_dict() of a GPT-2")
    # torch's Linear has (out, in), OpenAI's and Hugging Face's Conv1D (in, out). attn.c_proj is square and cannot tell.
    is_conv1d = tuple(tensors["transformer.h.0.attn.c_attn.weight"].shape) == (config.n_embd, 3 * config.n_embd)
    weights: dict[str, Tensor] = {}
    for name, shape in expected.items():
        if name == _HEAD and config.tie_word_embeddings:
            weights[name] = weights[_TOKENS]
        elif name not in tensors:
            weights[name] = torch.zeros(shape, dtype=dtype)
        else:
            transpose = is_conv1d and gpt2_layout.TRANSPOSED.search(name) is not None
            _check(path, name, tensors[name], shape[::-1] if transpose else shape)
            tensor = source.load(tensors[name])
            weights[name] = (tensor.t() if transpose else tensor).to(dtype).contiguous()
    return weights


def _check(path: Path, name: str, tensor: Tensor | StoredView, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise GPT2LabError(f"{path}: {name} has shape {tuple(tensor.shape)}, and the other tensors ask for {shape}")
    if tensor.dtype not in _DTYPES:
        raise GPT2LabError(f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}; convert it to float32")


def _is_tied(tensors: Mapping[str, Tensor | StoredView]) -> bool:
    """Whether the file has no output head, or one that is the token embedding; equal copies are found later."""
    head = tensors.get(_HEAD)
    return head is None or (isinstance(head, StoredView) and head == tensors[_TOKENS])
