"""The class of a model's architecture: to build a new model, or to load one from files."""

from pathlib import Path

import torch

from gpt2lab.config import GPT2Config
from gpt2lab.model import config_json, resolve
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.modern import Modern

_CLASSES: dict[str, type[LanguageModel]] = {"gpt2": GPT2, "modern": Modern}


def build(config: GPT2Config, *, generator: torch.Generator | None = None) -> LanguageModel:
    """Build a model with initial weights.

    Args:
        config: the architecture.
        generator: source of the initial weights; None: torch's global one.
    """
    return _CLASSES[config.architecture](config, generator=generator)


def from_pretrained(name: str | Path | resolve.ResolvedCheckpoint) -> LanguageModel:
    """Load a model of any architecture, float32 on the CPU.

    Args:
        name: a Hugging Face folder, a run directory (its newest intact checkpoint), a Hub id such as `gpt2`, a file
            of another project, or the result of `resolve.find_checkpoint`.

    Raises:
        GPT2LabError: see `resolve.find_checkpoint` and `resolve.read`.
    """
    checkpoint = name if isinstance(name, resolve.ResolvedCheckpoint) else resolve.find_checkpoint(name)
    if checkpoint.folder.is_file():  # of a project that trains GPT-2
        return GPT2.from_pretrained(checkpoint)
    config = config_json.read_config(checkpoint.folder)
    return _CLASSES[config.architecture].from_pretrained(checkpoint)
