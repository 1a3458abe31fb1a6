"""What the model writes: a fixed prompt continued with fixed seeds, so that samples of different steps compare."""

from typing import NamedTuple

import torch

from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.model.generate import generate
from gpt2lab.model.gpt2 import GPT2


class Sample(NamedTuple):
    """One continuation; `text` includes the prompt."""

    prompt: str
    seed: int
    text: str


def draw(
    model: GPT2, tokenizer: Tokenizer, prompt: str, *, count: int, max_new_tokens: int, top_k: int, seed: int
) -> list[Sample]:
    """`count` continuations of `prompt` with seeds seed, seed + 1, …; the global random state is left alone."""
    idx = torch.tensor([tokenizer.encode(prompt)], dtype=torch.int64, device=next(model.parameters()).device)  # (1, T)
    samples = []
    for one in range(seed, seed + count):
        out = generate(model, idx, max_new_tokens, top_k=top_k, generator=torch.Generator().manual_seed(one))
        samples.append(Sample(prompt, one, tokenizer.decode(out[0].tolist())))
    return samples
