"""Options of text generation, declared once for Python, the command line and the app. Imports no torch."""

import math
from dataclasses import dataclass, field
from typing import Any

from gpt2lab.errors import GPT2LabError


def _setting(default: Any, help: str, **metadata: float | bool) -> Any:
    """A field with its help text. `minimum`, `maximum` and `step` belong to the slider and limit nothing else."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. The defaults sample from the model's unmodified distribution.

    The command line and the app build their options from the fields: name, type and default, and in `metadata` a
    `help` text, the `minimum`, `maximum` and `step` of a slider, and `zero_is_none` where the two use 0 for None.

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
    top_k: int | None = _setting(
        None,
        "sample from the k most likely tokens; 0: all",
        minimum=0,
        at_least=0,
        maximum=200,
        step=1,
        zero_is_none=True,
    )
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
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), int | float):
                raise GPT2LabError(f"{name} is {getattr(self, name)!r:.60}; it must be a number")
        if not isinstance(self.top_k, int | None):
            raise GPT2LabError(f"top_k is {self.top_k!r:.60}; it must be a whole number, or None for all tokens")
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


@dataclass(frozen=True)
class GenerationOptions:
    """What to generate: how many tokens, sampled how, from which seed.

    Args:
        max_new_tokens: new tokens of each text, >= 1.
        sampling: how the next token is chosen.
        seed: seed of the first text; the next text has seed + 1.

    Raises:
        GPT2LabError: max_new_tokens is below 1, or the seed has more than 64 bits.
    """

    max_new_tokens: int = _setting(64, "new tokens of each text", minimum=1, at_least=1, maximum=512, step=1)
    sampling: Sampling = Sampling()
    seed: int = _setting(42, "seed of the first text; the next has seed + 1")

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GPT2LabError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if not -(2**63) <= self.seed < 2**64:
            raise GPT2LabError(f"seed is {self.seed}; it must be a whole number that fits into 64 bits")
