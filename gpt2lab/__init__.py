"""gpt2lab: train GPT-2 from scratch, evaluate it, and export it for other tools.

from gpt2lab import GPT2, GPT2Config, Tokenizer, from_pretrained
"""

TYPE_CHECKING = False  # what type checkers take for True; importing typing would take most of the time of this module
if TYPE_CHECKING:
    from typing import Any

    from gpt2lab.config import GPT2Config
    from gpt2lab.data.tokenizer import Tokenizer
    from gpt2lab.model.gpt2 import GPT2
    from gpt2lab.model.pretrained import from_pretrained

__version__ = "0.1.0"
__all__ = ["GPT2", "GPT2Config", "Tokenizer", "from_pretrained"]

_MODULES = {
    "GPT2": "gpt2lab.model.gpt2",
    "GPT2Config": "gpt2lab.config",
    "Tokenizer": "gpt2lab.data.tokenizer",
    "from_pretrained": "gpt2lab.model.pretrained",
}


def __getattr__(name: str) -> "Any":
    """Import a public name on first access, so that `gpt2lab --help` does not import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'gpt2lab' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
