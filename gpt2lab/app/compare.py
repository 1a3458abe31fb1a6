"""Two models write on from one prompt, turn by turn, so that both grow before the reader's eyes.

    request ──check──▶ ids ──▶ trained.stream ──┐
                       ids ──▶ untrained.stream ─┴── a piece of each, in turn ──▶ Writing, Writing

Each takes a turn of one token and is timed for its own turns alone: the rates are what each reaches while it computes,
though both share the processor. Nothing is computed ahead: whoever closes the iterator stops both.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import text
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.text import TextDelta
from gpt2lab.model.gpt2 import GPT2

LONGEST_PROMPT = 8_000  # characters; no window of GPT-2's takes many more
MOST_TOKENS = 512  # new ones of each model
TOP = 8  # likeliest tokens that are kept of every position


@dataclass(frozen=True)
class Writer:
    """A model ready to write, and what the page calls it."""

    name: str
    note: str
    model: GPT2


@dataclass(frozen=True)
class Request:
    """What both models are asked."""

    prompt: str
    max_new_tokens: int
    sampling: Sampling
    seed: int


@dataclass
class Writing:
    """What a model has written so far."""

    pieces: list[TextDelta] = field(default_factory=list)
    first: float | None = None  # seconds from the request to this model's first token
    seconds: float = 0.0  # that this model computed after its first token

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first; None before there are any."""
        return (len(self.pieces) - 1) / self.seconds if len(self.pieces) > 1 else None


def compare(writers: Sequence[Writer], tokenizer: Tokenizer, request: Request) -> Generator[list[Writing], None, None]:
    """Let every model continue the prompt; yields the same growing list, after each token of any of them.

    Raises:
        GPT2LabError: from the iterator: the prompt is empty, too long or not text, or a setting is out of range.
    """
    began = time.perf_counter()
    if len(request.prompt) > LONGEST_PROMPT:
        raise GPT2LabError(f"the prompt has {len(request.prompt):,} characters; {LONGEST_PROMPT:,} are the most here")
    if not 1 <= request.max_new_tokens <= MOST_TOKENS:
        raise GPT2LabError(f"max new tokens is {request.max_new_tokens}; it must be 1 to {MOST_TOKENS}")
    prompts = [text.encode(writer.model, tokenizer, request.prompt) for writer in writers]
    streams = [
        text.stream(
            writer.model,
            tokenizer,
            [prompt],
            request.max_new_tokens,
            request.sampling,
            seeds=[request.seed],
            top=TOP,
        )
        for writer, prompt in zip(writers, prompts, strict=True)
    ]
    writings = [Writing() for _ in writers]
    waiting = list(zip(streams, writings, strict=True))
    try:
        while waiting:
            for turn in list(waiting):
                stream, writing = turn
                asked = time.perf_counter()
                piece = next(stream, None)
                now = time.perf_counter()
                if piece is None:
                    waiting.remove(turn)
                    continue
                writing.pieces.append(piece)
                if writing.first is None:
                    writing.first = now - began
                else:
                    writing.seconds += now - asked
                yield writings
    finally:
        for stream in streams:
            stream.close()
