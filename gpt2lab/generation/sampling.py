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
    """Draw one token a row.

    Args:
        logits: float32 (B, V) on the CPU, so that the device has no say.
        generators: a CPU generator for each row.
        seen: bool (B, V), the tokens that the row already has; needed for a repetition penalty.

    Returns:
        int64 (B,).
    """
    if not logits.isfinite().all():
        raise GPT2LabError("the model's logits are not finite; its weights are damaged, or training went astray")
    if seen is not None:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < 1e-6:  # as good as 0, and dividing by less could overflow
        return logits.argmax(dim=-1)
    probabilities, ids = candidates(logits, sampling)
    if ids is not None:  # in the order of their ids: two that are nearly equally likely may change places otherwise
        ids, order = ids.sort(dim=-1)
        probabilities = probabilities.gather(1, order)
    heights = probabilities.double().cumsum(dim=-1)
    uniform = torch.stack([torch.rand(1, generator=generator) for generator in generators])  # (B, 1), float32: below 1
    drawn = torch.searchsorted(heights, uniform.double() * heights[:, -1:], right=True)  # first that is higher
    return (drawn if ids is None else ids.gather(1, drawn)).flatten()


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of the tokens seen, bool (B, V), made smaller by a penalty above 1."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Which tokens may come, and how likely each is: (B, K) relative probabilities, 0 where a token is ruled out.

    Returns:
        The probabilities, and the ids they belong to, likeliest first, int64 (B, K); None: all, in order.
    """
    ids = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        logits, ids = logits.topk(sampling.top_k)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        if ids is None:
            # All tokens below (1 - p) / V have less than 1 - p together and can't be needed: spares sorting the rest.
            needed = (probabilities >= (1 - sampling.top_p) / logits.shape[1]).sum(dim=-1).max()
            probabilities, ids = probabilities.topk(int(needed))
        likelier = probabilities.cumsum(dim=-1) - probabilities  # what those before it have together
        probabilities = probabilities * (likelier < sampling.top_p)
    if sampling.min_p > 0:
        probabilities = probabilities * (probabilities >= sampling.min_p * probabilities.amax(dim=-1, keepdim=True))
    return probabilities, ids
