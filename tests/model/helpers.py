"""Tiny models, and changes to the files of a saved one."""

from pathlib import Path

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.gpt2 import GPT2

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=50)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tokens(*shape: int, vocab_size: int = TINY.vocab_size, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=seeded(seed))


def random_model(config: GPT2Config, seed: int = 0) -> GPT2:
    """Every parameter random, including biases and layer norms: zeros and ones would hide mixed-up names."""
    generator = seeded(seed)
    model = GPT2(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def same_weights(first: GPT2, second: GPT2) -> bool:
    expected = second.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in first.state_dict().items())


def to_openai_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in OpenAI's models on the Hub: names without a prefix, and causal masks."""
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for n in range(TINY.n_layer):
        renamed[f"h.{n}.attn.bias"] = torch.ones(12, 12).tril().view(1, 1, 12, 12)
        renamed[f"h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    return renamed


def assert_refused(folder: str | Path, match: str) -> None:
    """Loading fails with one line that names the folder, or with a Hub id the id, and matches."""
    with pytest.raises(GPT2LabError, match=match) as caught:
        GPT2.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
