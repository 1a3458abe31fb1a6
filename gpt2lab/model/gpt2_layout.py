"""How Hugging Face's GPT-2 names and stores what `gpt2.py` has: tensors, and the keys of config.json.

A state dict and the file differ in two ways. The file's attention and MLP layers are Conv1D, which stores weights as
(in, out), so these four are transposed. And a tied `lm_head.weight` is not stored. Reading also accepts the layout of
OpenAI's models on the Hub: names without `transformer.`, and the causal mask stored as `h.N.attn.bias`.
"""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError

MODEL_TYPE = "gpt2"
CLASS_NAME = "GPT2LMHeadModel"
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
IGNORED = re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$")  # the causal mask
END_OF_TEXT_KEYS = ("bos_token_id", "eos_token_id")

# The fields of GPT2Config, and their names in config.json.
FIELDS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
# Values of activation_function in config.json, and of GPT2Config.activation.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# Settings of config.json that change the computation, and the only value that GPT-2 has. Absent means that value.
FIXED: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a state dict by name, linear layers as (out, in); the head also when it is tied.

    Args:
        config: the architecture.
    """
    C, V = config.n_embd, config.vocab_size
    layers = {
        "ln_1": (C,),
        "attn.c_attn": (3 * C, C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (4 * C, C),
        "mlp.c_proj": (C, 4 * C),
    }
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (V, C), "transformer.wpe.weight": (config.block_size, C)}
    blocks = {f"h.{n}.{name}": shape for n in range(config.n_layer) for name, shape in layers.items()}
    for name, shape in (blocks | {"ln_f": (C,)}).items():
        tensors |= {f"transformer.{name}.weight": shape, f"transformer.{name}.bias": shape[:1]}
    return tensors | {HEAD: (V, C)}


def state_name(stored: str) -> str:
    """The name in a state dict of a tensor in a file.

    Args:
        stored: its name there.
    """
    return stored if stored == HEAD or stored.startswith("transformer.") else f"transformer.{stored}"


def fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json that have one possible value; absent means that value.

    Args:
        values: config.json.
    """
    return FIXED if values.get("n_inner") is None else FIXED | {"n_inner": 4 * values["n_embd"]}


def more_fields(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of GPT2Config that only this architecture has.

    Args:
        path: of config.json, for messages.
        values: its content.

    Raises:
        GPT2LabError: the activation function is another one.
    """
    activation = values.get("activation_function", "gelu_new")
    if activation not in list(_ACTIVATIONS):  # it may be of any type
        known = ", ".join(_ACTIVATIONS)
        raise GPT2LabError(
            f"{path}: activation_function is {reprlib.repr(activation)}; only models with {known} can be read"
        )
    return {"activation": _ACTIVATIONS[activation]}


def settings(config: GPT2Config) -> dict[str, Any]:
    """The keys of config.json that only this architecture has.

    Args:
        config: the architecture.
    """
    return {
        "n_ctx": config.block_size,
        "activation_function": next(key for key, value in _ACTIVATIONS.items() if value == config.activation),
        **FIXED,
        "initializer_range": 0.02,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"), 0.0),
    }
