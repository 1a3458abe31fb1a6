"""Sampling: choose the next token from the logits.

    logits ─▶ repetition penalty ─▶ top-k ─▶ temperature, softmax ─▶ top-p ─▶ min-p ─▶ draw

The order and the meaning of the settings are those of `transformers`. A draw takes exactly one number from the row's
own generator, whatever the settings, so the n-th token of a row depends on its seed, on n and on its logits only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpt2lab.errors import GPT2LabError


def _setting(default: Any, help: str, *, minimum: float, maximum: float, step: float) -> Any:
    """A field with what a command line (help) or a slider (the rest) shows; the range limits sliders only."""
    return field(default=default, metadata={"help": help, "minimum": minimum, "maximum": maximum, "step": step})


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. The defaults sample from the model's unmodified distribution.

    The command line and the app build their options from the fields: name, type and default, and in `metadata` a
    `help` text and the `minimum`, `maximum` and `step` of a slider (where 0 stands for top_k=None).

    Args:
        temperature: divides the logits, >= 0; 0 always takes the most likely token (greedy decoding).
        top_k: sample from the k most likely tokens, >= 1; None: from all.
        top_p: sample from the smallest set of most likely tokens with at least this total probability, in (0, 1]
            ("The Curious Case of Neural Text Degeneration", Holtzman et al. 2020); 1: from all.
        min_p: sample from the tokens with at least this fraction of the most likely token's probability, in [0, 1]
            ("Turning Up the Heat", Nguyen et al. 2024); 0: from all.
        repetition_penalty: for tokens that the row contains already, prompt included, a positive logit is divided by
            this and a negative one multiplied, > 0 ("CTRL", Keskar et al. 2019); 1: no penalty.

    Raises:
        GPT2LabError: a value is out of range.
    """

    temperature: float = _setting(1.0, "0: always the most likely token", minimum=0.0, maximum=2.0, step=0.05)
    top_k: int | None = _setting(None, "sample from the k most likely tokens; 0: all", minimum=0, maximum=200, step=1)
    top_p: float = _setting(
        1.0, "sample from the most likely tokens with this total probability", minimum=0.05, maximum=1.0, step=0.05
    )
    min_p: float = _setting(
        0.0, "sample from tokens with this fraction of the top probability", minimum=0.0, maximum=1.0, step=0.01
    )
    repetition_penalty: float = _setting(
        1.0, "above 1: make tokens in the text less likely", minimum=1.0, maximum=2.0, step=0.05
    )

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GPT2LabError(f"temperature is {self.temperature}; it must be 0 (greedy decoding) or more")
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
