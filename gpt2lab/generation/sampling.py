"""From logits to the next token: which tokens may come, how likely each is, and the draw.

    logits ─▶ repetition penalty ─▶ top-k ─▶ temperature, softmax ─▶ top-p ─▶ min-p ─▶ one uniform number decides

The order and the meaning are those of `transformers`. A draw takes one number from the row's own generator, whatever
the settings, so the n-th token of a text depends on its seed, on n and on the logits, and on no other row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2lab.errors import GPT2LabError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; as it stands, from the model's own distribution.

    Args:
        temperature: divides the logits, 0 or more; 0 takes the likeliest token (greedy).
        top_k: draw from the k likeliest tokens, 1 or more; None: from all.
        top_p: draw from the likeliest tokens that together have this probability, above 0 ("The Curious Case of Neural
            Text Degeneration", Holtzman et al. 2020); 1: from all.
        min_p: draw from the tokens with at least this share of the likeliest one's probability, at most 1 ("Turning Up
            the Heat", Nguyen et al. 2024); 0: from all.
        repetition_penalty: the logit of a token that the text already has, prompt included, is divided by this if
            positive, else multiplied, above 0 ("CTRL", Keskar et al. 2019); 1: nothing.

    Raises:
        GPT2LabError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GPT2LabError(f"temperature is {self.temperature}; it must be 0 (take the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise GPT2LabError(f"top_k is {self.top_k}; it must be 1 or more, or None for all tokens")
        if not 0 < self.top_p <= 1:
            raise GPT2LabError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (all tokens)")
        if not 0 <= self.min_p <= 1:
            raise GPT2LabError(f"min_p is {self.min_p}; it must be from 0 (all tokens) to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise GPT2LabError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1: no penalty)")


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
