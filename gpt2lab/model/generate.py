"""Text from a model, one token at a time: run it on the window, draw from its last position, append, repeat."""

import math

import torch
from torch import Tensor

from gpt2lab.config import GPT2_VOCAB_SIZE
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.gpt2 import GPT2


@torch.no_grad()
def generate(
    model: GPT2,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    vocab_limit: int = GPT2_VOCAB_SIZE,
) -> Tensor:
    """Continue each row of `idx` by `max_new_tokens` tokens.

    Args:
        model: runs where it is, under the caller's autocast if any; left in the mode (train or eval) it came in.
        idx: int64 (B, T), B and T at least 1. The model sees the last block_size tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest tokens only; None: from all.
        generator: a CPU generator; a seeded one gives the same text on every device, as far as their logits agree.
            None: a fresh one, so the text differs from call to call. torch's global one is never used.
        vocab_limit: ids from here on are never drawn: they pad the vocabulary and stand for no text.

    Returns:
        int64 (B, T + max_new_tokens) on the device of `idx`.

    Raises:
        GPT2LabError: an argument is out of range.
    """
    _check(idx, max_new_tokens, temperature, top_k, vocab_limit)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    was_training = model.training
    model.eval()
    try:
        tokens = idx.to(model.lm_head.weight.device)
        for _ in range(max_new_tokens):
            hidden = model.transformer(tokens[:, -model.config.block_size :])  # (B, T, C)
            logits = model.lm_head(hidden[:, -1])  # (B, V): the head is only needed where the next token comes from
            drawn = sample(logits[:, :vocab_limit], temperature, top_k, generator)
            tokens = torch.cat([tokens, drawn.to(tokens.device)], dim=1)
        return tokens.to(idx.device)
    finally:
        model.train(was_training)


def sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draw one token a row: (B, V) to int64 (B, 1) on the CPU, in float32, so that the device has no say."""
    logits = logits.float().cpu()
    if temperature < 1e-6:  # as good as 0, and dividing by less could overflow
        return logits.argmax(dim=-1, keepdim=True)
    best, ids = logits.topk(min(top_k or logits.shape[1], logits.shape[1]))  # (B, k), falling
    probabilities = (best / temperature).softmax(dim=-1)
    return ids.gather(1, torch.multinomial(probabilities, 1, generator=generator))


def _check(idx: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, vocab_limit: int) -> None:
    if idx.dim() != 2 or idx.numel() == 0:
        raise GPT2LabError(f"idx has shape {tuple(idx.shape)}; it must be (B, T) with at least one token to continue")
    if max_new_tokens < 0:
        raise GPT2LabError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
    if not 0 <= temperature < math.inf:
        raise GPT2LabError(f"temperature is {temperature}; it must be 0 (take the likeliest token) or more")
    if top_k is not None and top_k < 1:
        raise GPT2LabError(f"top_k is {top_k}; it must be 1 or more, or None for all tokens")
    if vocab_limit < 1:
        raise GPT2LabError(f"vocab_limit is {vocab_limit}; it must be 1 or more")
