"""docs/distributed.md: its table is what its formulas give, and its formulas are what the model keeps."""

import re

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.model import flops, ops
from gpt2lab.model.gpt2 import GPT2
from tests.runs import REPOSITORY

PAGE = (REPOSITORY / "docs" / "scaling.md").read_text()
BLOCK, CHECKPOINTED = 36, 4  # bytes a token, channel and block


@pytest.mark.parametrize("size", ["124M", "medium", "large", "xl"])
def test_the_table_of_memory_is_what_the_formulas_say(size):
    config = GPT2Config(size=size)
    N, C, L, T, V = (
        flops.parameters(config),
        config.n_embd,
        config.n_layer,
        config.block_size,
        config.vocab_size,
    )
    whole = 8 * C * (V + T) + 8 * (12 * C * C + 13 * C)
    expected = [
        16 * N,
        2 * N,
        T * (BLOCK * C * L + 4 * V),
        T * (CHECKPOINTED * C * L + BLOCK * C + 4 * V),
        16 * N / 2 + whole,
        16 * N / 8 + whole,
    ]
    (row,) = re.findall(rf"^\| {size} \|(.*)\|$", PAGE, re.MULTILINE)
    for cell, number in zip(row.split("|"), expected, strict=True):
        decimals = len(cell.strip().partition(".")[2])
        assert cell.strip() == f"{number / 1e9:.{decimals}f}"


@pytest.mark.parametrize(("checkpointing", "expected"), [(False, BLOCK), (True, CHECKPOINTED)])
def test_what_a_block_keeps_for_its_gradient(monkeypatch, checkpointing, expected):
    """In bf16, counted as autograd is handed it; the statistics of attention and layer norm are less than 1 byte."""
    monkeypatch.setattr(
        ops, "is_blockwise_faster_for", lambda q: False
    )  # torch's own attention keeps what a card's keeps
    tokens, channels = 320, 128

    def kept(layers: int) -> int:
        shape = {"n_layer": layers, "n_head": 2, "n_embd": channels, "block_size": tokens, "vocab_size": 64}
        model = GPT2(GPT2Config(**shape))
        model.transformer.activation_checkpointing = checkpointing
        storages = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            weight = tokens not in tensor.shape  # and their copies in bf16, which the table has a column for
            if not weight:
                storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu"):
            model.transformer(torch.zeros(1, tokens, dtype=torch.int64))
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    assert (kept(3) - kept(1)) / (2 * tokens * channels) == pytest.approx(expected, abs=1)
