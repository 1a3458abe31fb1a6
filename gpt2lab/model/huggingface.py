"""Read and write models in the layout of Hugging Face: a folder with config.json and model.safetensors.

    config, state dict  ◀─read── folder ──▶ transformers, lm-eval, vLLM, ...
                         ──write─▶

GPT-2 is stored as `gpt2_layout.py` says, the modern architecture as `nanochat_layout.py` says.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpt2lab.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.files import atomic_write
from gpt2lab.model import config_json, weight_files
from gpt2lab.model.config_json import LAYOUTS
from gpt2lab.model.weight_files import StoredTensor

CONFIG = config_json.CONFIG
WEIGHTS = weight_files.SAFETENSORS
CARD = "README.md"

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """List the tensors of a model's state dict; `lm_head.weight` also when it is tied.

    Args:
        config: the architecture.

    Returns:
        The shape of each tensor by name, linear layers as (out, in).
    """
    return LAYOUTS[config.architecture].shapes(config)  # type: ignore[no-any-return]


def vocabulary_tensors(config: GPT2Config) -> tuple[str, str]:
    """The names of the token embedding and the output head in a state dict: one row for each token.

    Args:
        config: the architecture.
    """
    layout = LAYOUTS[config.architecture]
    return layout.EMBEDDING, layout.HEAD


def read(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Read a model's config and weights.

    Args:
        folder: holds `config.json` and weights in a form that `weight_files.read_folder` reads.
        dtype: to convert the weights to.

    Returns:
        The config, and the tensors of `shapes(config)`, on the CPU: contiguous and in memory of their own, not mapped
        from the file. When tied, `lm_head.weight` is the token embedding itself.

    Raises:
        GPT2LabError: the folder, its `config.json` or its weights are missing or damaged; the model is not GPT-2;
            tensors are missing, unexpected, of another shape, or not floats of 16 or 32 bits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GPT2LabError(f"{folder}: no such folder; give one that holds {CONFIG} and {WEIGHTS}")
    config = config_json.read_config(folder)
    stored = _match_tensors(folder, weight_files.read_folder(folder), config)
    weights = {
        name: _to_file_layout(name, entry.tensor, config).to(dtype, memory_format=torch.contiguous_format, copy=True)
        for name, entry in stored.items()
    }
    if config.tie_word_embeddings:
        embedding, head = vocabulary_tensors(config)
        if head in weights and not torch.equal(weights[head], weights[embedding]):
            raise GPT2LabError(
                f"{stored[head].path}: {head} differs from {embedding}, but {CONFIG} ties them; "
                f'set "tie_word_embeddings": false there'
            )
        weights[head] = weights[embedding]
    return config, weights


def write(folder: str | Path, config: GPT2Config, state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`, each completely or not at all.

    Args:
        folder: created if need be.
        config: the architecture.
        state: a GPT2's state dict, on any device, in one dtype (which config.json names). One tensor at a time is
            copied.

    Raises:
        GPT2LabError: the file system refused.
    """
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(config)
    folder = Path(folder)
    embedding, head = vocabulary_tensors(config)
    tensors = {
        name: _to_file_layout(name, tensor, config)
        for name, tensor in state.items()
        if not (name == head and config.tie_word_embeddings)
    }
    with atomic_write(folder / WEIGHTS) as temporary:
        weight_files.save_tensors(temporary, tensors)
    write_config(folder, config, state[embedding].dtype)


def write_config(folder: Path, config: GPT2Config, dtype: torch.dtype) -> None:
    """Write `config.json`.

    Args:
        folder: exists.
        config: the architecture.
        dtype: of the weights.

    Raises:
        GPT2LabError: the file system refused.
    """
    layout = LAYOUTS[config.architecture]
    end_of_text = GPT2_VOCAB_SIZE - 1 if config.vocab_size >= GPT2_VOCAB_SIZE else None
    values = {
        "architectures": [layout.CLASS_NAME],
        "model_type": layout.MODEL_TYPE,
        **{key: getattr(config, field) for field, key in layout.FIELDS.items()},
        **layout.settings(config),
        **dict.fromkeys(layout.END_OF_TEXT_KEYS, end_of_text),
        "tie_word_embeddings": config.tie_word_embeddings,
        "dtype": str(dtype).removeprefix("torch."),
    }
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _to_file_layout(name: str, tensor: Tensor, config: GPT2Config) -> Tensor:
    """Convert between Linear's (out, in) and Conv1D's (in, out), which is its own inverse."""
    return tensor.t() if LAYOUTS[config.architecture].TRANSPOSED.search(name) else tensor


def _match_tensors(folder: Path, stored: list[StoredTensor], config: GPT2Config) -> dict[str, StoredTensor]:
    """The stored tensors by their names in a state dict: those needed, no others, with checked shapes."""
    layout = LAYOUTS[config.architecture]
    if config.n_layer > len(stored):  # a wrong number could ask for names without end
        raise GPT2LabError(
            f"{folder / CONFIG}: {config.n_layer:,} layers, but the weights are {len(stored):,} tensors; use {CONFIG} "
            "and weights of one model"
        )
    expected = shapes(config)
    matched: dict[str, StoredTensor] = {}
    unexpected = []
    for entry in sorted(stored, key=lambda entry: entry.name):
        if layout.IGNORED.match(entry.name):
            continue
        name = layout.state_name(entry.name)
        if name in matched or name not in expected:
            unexpected.append(entry.name)
        matched[name] = entry
    optional = {layout.HEAD} if config.tie_word_embeddings else set()
    missing = [name for name in expected if name not in matched and name not in optional]
    for names, problem in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            path = stored[0].path if len({entry.path for entry in stored}) == 1 else folder
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise GPT2LabError(f"{path}: tensor {names[0]}{more} {problem}; use {CONFIG} and weights of one model")
    for name, (path, stored_name, tensor) in matched.items():
        shape = expected[name][::-1] if layout.TRANSPOSED.search(name) else expected[name]
        if tensor.shape != shape:
            raise GPT2LabError(
                f"{path}: {stored_name} has shape {tuple(tensor.shape)}, {CONFIG} asks for {shape}; "
                "use files of one model"
            )
        if tensor.dtype not in _WEIGHT_DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise GPT2LabError(f"{path}: {stored_name} is {dtype}; convert it to float32, float16 or bfloat16")
    return matched
