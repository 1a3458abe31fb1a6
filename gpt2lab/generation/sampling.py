"""Sampling: choose the next token from the logits.

    logits ─▶ repetition penalty ─▶ top-k ─▶ temperature, softmax ─▶ top-p ─▶ min-p ─▶ draw

The order and the meaning of the settings are those of `transformers`. A draw takes exactly one number from the row's
own generator, whatever the settings, so the n-th token of a row depends on its seed, on n and on its logits only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2lab.errors import GPT2LabError
from gpt2lab.generation.options import Sampling as Sampling  # also importable from here


def sample(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator], seen: Tensor | None = None
) -> Tensor:
    """Sample one token per row.

    Args:
        logits: float32 (B, V) on the CPU, so that the result does not depend on the device.
        sampling: the settings.
        generators: a CPU generator for each row.
        seen: bool (B, V), the tokens that the row contains already; needed for a repetition penalty.

    Returns:
        int64 (B,).

    Raises:
        GPT2LabError: the logits are not finite.
    """
    if not logits.isfinite().all():
        raise GPT2LabError("the model's logits are not finite; its weights are damaged, or training diverged")
    if seen is not None:
        logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < 1e-6:  # division by a smaller number could overflow
        return logits.argmax(dim=-1)
    probabilities, ids = filter_tokens(logits, sampling)
    if ids is not None:  # by id, as the order of two nearly equal probabilities may depend on rounding
        ids, order = ids.sort(dim=-1)
        probabilities = probabilities.gather(1, order)
    cumulative = probabilities.double().cumsum(dim=-1)
    uniform = torch.stack([torch.rand(1, generator=generator) for generator in generators])  # (B, 1), float32: below 1
    drawn = torch.searchsorted(cumulative, uniform.double() * cumulative[:, -1:], right=True)  # first larger entry
    return (drawn if ids is None else ids.gather(1, drawn)).flatten()


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Apply a repetition penalty.

    Args:
        logits: (B, V).
        seen: bool (B, V), the tokens that the row contains already.
        penalty: divides positive logits of these tokens and multiplies negative ones.

    Returns:
        (B, V).
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_tokens(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Apply top-k, temperature, top-p and min-p.

    Args:
        logits: (B, V).
        sampling: the settings; its repetition penalty is not applied here.

    Returns:
        Unnormalized probabilities (B, K), 0 for excluded tokens, and the ids of these K tokens, int64 (B, K), in
        falling order of probability; None: K is V, in order of the ids.
    """
    ids = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        logits, ids = logits.topk(sampling.top_k)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        if ids is None:
            # Tokens below (1 - p) / V have less than 1 - p in total and are never needed, so they are not sorted.
            needed = (probabilities >= (1 - sampling.top_p) / logits.shape[1]).sum(dim=-1).max()
            probabilities, ids = probabilities.topk(int(needed))
        preceding = probabilities.cumsum(dim=-1) - probabilities  # total probability of more likely tokens
        probabilities = probabilities * (preceding < sampling.top_p)
    if sampling.min_p > 0:
        probabilities = probabilities * (probabilities >= sampling.min_p * probabilities.amax(dim=-1, keepdim=True))
    return probabilities, ids
