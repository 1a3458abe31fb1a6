"""What the model writes: a fixed prompt continued with fixed seeds, so that samples of different steps compare."""

from typing import NamedTuple

from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.generation import inference, text
from gpt2lab.generation.sampling import Sampling
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
    seeds = range(seed, seed + count)
    continuations = text.complete(
        inference.optimize_for_inference(model),
        tokenizer,
        [prompt] * count,
        max_new_tokens,
        Sampling(top_k=top_k),
        seeds=seeds,
    )
    return [Sample(prompt, one, prompt + more) for one, more in zip(seeds, continuations, strict=True)]
