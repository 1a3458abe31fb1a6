"""The architecture of a model's folder, from its `config.json`. Knows no torch, so that a plan can read it."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2lab.config import SIZES, GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import gpt2_layout, nanochat_layout

CONFIG = "config.json"
LAYOUTS: dict[str, Any] = {"gpt2": gpt2_layout, "modern": nanochat_layout}  # by architecture


def read_config(folder: str | Path) -> GPT2Config:
    """Read the architecture from `config.json`.

    Args:
        folder: holds the file.

    Returns:
        The config, with `size` set if it is a published one.

    Raises:
        GPT2LabError: the file is missing or damaged, or describes a model that is neither GPT-2 nor NanoChat.
    """
    path = Path(folder) / CONFIG
    values = read_json(path)
    model_type = values.get("model_type")  # of any type
    architecture = next((name for name, layout in LAYOUTS.items() if model_type == layout.MODEL_TYPE), None)
    if architecture is None:
        known = " and ".join(layout.MODEL_TYPE for layout in LAYOUTS.values())
        raise GPT2LabError(f"{path}: model_type is {reprlib.repr(model_type)}; only {known} can be read")
    layout = LAYOUTS[architecture]
    if missing := [key for key in layout.FIELDS.values() if values.get(key) is None]:
        raise GPT2LabError(f"{path}: {', '.join(missing)} missing; use the {CONFIG} that belongs to the weights")
    for key in layout.FIELDS.values():
        if not isinstance(values[key], int | float | str):  # not a list, of which `fixed` would compute
            raise GPT2LabError(f"{path}: {key}: should be a number, found {reprlib.repr(values[key])}")
    for key, value in layout.fixed(values).items():
        if values.get(key, value) != value:
            raise GPT2LabError(
                f"{path}: {key} is {reprlib.repr(values[key])}, {layout.MODEL_TYPE} has {reprlib.repr(value)}; this "
                "model cannot be read"
            )
    fields = {field: values[key] for field, key in layout.FIELDS.items()}
    fields |= {"architecture": architecture, "tie_word_embeddings": values.get("tie_word_embeddings", True)}
    return make_config(path, fields | layout.more_fields(path, values), layout.FIELDS)


def make_config(path: Path, fields: Mapping[str, Any], names: Mapping[str, str] | None = None) -> GPT2Config:
    """Check the architecture that a file describes.

    Args:
        path: of the file, for messages.
        fields: of GPT2Config, without `size`.
        names: the file's names of the fields, where they differ.

    Returns:
        The config, with `size` set if it is a published one.

    Raises:
        GPT2LabError: a value is not valid.
    """
    shape = (fields["n_layer"], fields["n_head"], fields["n_embd"])
    size = next((size for size, published in SIZES.items() if published == shape), None)
    try:
        return GPT2Config.model_validate({**fields, "size": size})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "model"
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        found = reprlib.repr(first["input"])
        raise GPT2LabError(f"{path}: {(names or {}).get(field, field)}: {message}, found {found}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        GPT2LabError: the file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GPT2LabError(f"{path}: no such file; a model's folder holds config.json and model.safetensors") from None
    except OSError as error:
        raise GPT2LabError(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise GPT2LabError(f"{path}: not valid JSON: {error}; download or save it again") from error
    if not isinstance(values, dict):
        raise GPT2LabError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
