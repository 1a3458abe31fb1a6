"""docs/distributed.md: its table of memory follows from its formulas, and these from what autograd keeps.

The bytes of a sequence are those of `gpt2lab plan`, too.
"""

import re

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.model import flops, ops
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.planning import memory
from tests.training.test_run import REPOSITORY

PAGE = (REPOSITORY / "docs" / "distributed.md").read_text()
BLOCK, CHECKPOINTED = 36, 4  # bytes per token, channel and block


@pytest.mark.parametrize("size", ["124M", "medium", "large", "xl"])
def test_the_table_of_memory_follows_the_formulas(size):
    config = GPT2Config(size=size)
    N, C, L = flops.parameters(config), config.n_embd, config.n_layer
    T, V = config.block_size, config.vocab_size
    unsharded = 8 * C * (V + T) + 8 * (12 * C * C + 13 * C)
    expected = [
        16 * N,
        2 * N,
        T * (BLOCK * C * L + 6 * C + 2 * V),
        T * (CHECKPOINTED * C * L + 6 * C + 2 * V),
        16 * N / 2 + unsharded,
        16 * N / 8 + unsharded,
    ]
    (row,) = re.findall(rf"^\| {size} \|(.*)\|$", PAGE, re.MULTILINE)
    for cell, number in zip(row.split("|"), expected, strict=True):
        decimals = len(cell.strip().partition(".")[2])
        assert cell.strip() == f"{number / 1e9:.{decimals}f}"
    for checkpointing, sequence in ((False, expected[2]), (True, expected[3])):
        one, two = (
            memory.estimate(config, memory.Layout(size, checkpointing=checkpointing, compiled=False)).total
            for size in (8, 16)
        )
        assert (two - one) / 8 == pytest.approx(sequence, rel=0.02)


@pytest.mark.parametrize(("checkpointing", "expected"), [(False, BLOCK), (True, CHECKPOINTED)])
def test_bytes_that_a_block_keeps_for_its_backward_pass(monkeypatch, checkpointing, expected):
    """In bf16, counted by the tensors that autograd saves; statistics of attention and layer norm are below 1 byte."""
    monkeypatch.setattr(
        ops, "is_blockwise_faster_for", lambda q: False
    )  # torch's attention keeps the same tensors as on a GPU
    tokens, channels = 320, 128

    def saved_bytes(layers: int) -> int:
        shape = {"n_layer": layers, "n_head": 2, "n_embd": channels, "block_size": tokens, "vocab_size": 64}
        model = GPT2(GPT2Config(**shape))
        model.transformer.activation_checkpointing = checkpointing
        storages = {}

        def save(tensor: torch.Tensor) -> torch.Tensor:
            is_weight = tokens not in tensor.shape  # or its copy in bf16, which has a column of its own
            if not is_weight:
                storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), torch.autocast("cpu"):
            model.transformer(torch.zeros(1, tokens, dtype=torch.int64))
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    assert (saved_bytes(3) - saved_bytes(1)) / (2 * tokens * channels) == pytest.approx(expected, abs=1)
