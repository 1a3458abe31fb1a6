"""Parameters and FLOPs, compared with the model and with a count by hand."""

import pytest
import torch

from gpt2lab.config import GPT2Config
from gpt2lab.model import flops
from gpt2lab.model.gpt2 import GPT2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["124M", "medium", "large", "xl"])
def test_parameters_equal_those_of_the_model(size, tied):
    config = GPT2Config(size=size, vocab_size=50304, block_size=512, tie_word_embeddings=tied)
    with torch.device("meta"):
        assert flops.parameters(config) == GPT2(config).num_parameters()


def test_gpt2_small_takes_855_megaflops_per_token():
    config = GPT2Config(vocab_size=50304, block_size=1024)
    assert flops.flops_per_token(config) / 1e6 == pytest.approx(855.4, abs=0.1)


def test_the_block_size_affects_attention_only():
    short, long = GPT2Config(block_size=512), GPT2Config(block_size=1024)
    assert flops.flops_per_token(short) == flops.flops_per_token(long) - 12 * 12 * 768 * 512


def test_tied_embeddings_save_memory_but_no_computation():
    tied, untied = GPT2Config(), GPT2Config(tie_word_embeddings=False)
    assert flops.flops_per_token(tied) == flops.flops_per_token(untied)
    assert flops.parameters(untied) - flops.parameters(tied) == 50257 * 768
