"""Samples: the same text for the same seed, without a change of the global random state."""

import torch

from gpt2lab.config import GPT2Config
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.evaluation.samples import draw
from gpt2lab.model.gpt2 import GPT2


def test_seeds_determine_the_samples_and_the_random_state_does_not_change():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=50304))
    tokenizer = Tokenizer()
    state = torch.get_rng_state()
    prompt = "Hello this is AI model,"
    first = draw(model, tokenizer, prompt, count=3, max_new_tokens=12, top_k=50, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [sample.seed for sample in first] == [5, 6, 7]
    assert len({sample.text for sample in first}) == 3
    assert all(sample.text.startswith(prompt) for sample in first)
    assert draw(model, tokenizer, prompt, count=1, max_new_tokens=12, top_k=50, seed=6) == first[1:2]
