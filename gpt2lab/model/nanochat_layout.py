"""How Hugging Face's NanoChat names and stores what `modern.py` has: tensors, and the keys of config.json.

The parameters have the same names and shapes in a state dict and in the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2lab.config import GPT2Config

RMS_NORM_EPS = 1e-6
ROPE_BASE = 10_000.0
SOFTCAP = 15.0

MODEL_TYPE = "nanochat"
CLASS_NAME = "NanoChatForCausalLM"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TRANSPOSED = IGNORED = re.compile(r"(?!)")  # no tensor
END_OF_TEXT_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")  # transformers would stop at a quotation mark

# The fields of GPT2Config, and their names in config.json.
FIELDS = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "block_size": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a state dict by name, linear layers as (out, in).

    Args:
        config: the architecture.
    """
    C, V = config.n_embd, config.vocab_size
    layers = {f"self_attn.{name}_proj": (C, C) for name in "qkvo"} | {"mlp.fc1": (4 * C, C), "mlp.fc2": (C, 4 * C)}
    blocks = {f"model.layers.{n}.{name}.weight": shape for n in range(config.n_layer) for name, shape in layers.items()}
    return {EMBEDDING: (V, C), **blocks, HEAD: (V, C)}


def state_name(stored: str) -> str:
    """The name in a state dict of a tensor in a file.

    Args:
        stored: its name there.
    """
    return stored


def fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json that have one possible value; absent means that value.

    Args:
        values: config.json.
    """
    return {
        "intermediate_size": 4 * values["hidden_size"],
        "num_key_value_heads": values["num_attention_heads"],
        "hidden_act": "relu2",
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "final_logit_softcapping": SOFTCAP,
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def more_fields(_path: Path, _values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of GPT2Config that only this architecture has: none."""
    return {}


def settings(config: GPT2Config) -> dict[str, Any]:
    """The keys of config.json that only this architecture has.

    Args:
        config: the architecture.
    """
    shape = {"hidden_size": config.n_embd, "num_attention_heads": config.n_head}
    return {**fixed(shape), "attention_dropout": 0.0, "initializer_range": 0.02}
