"""Two models continue one prompt, one token of each continuation in turn.

    request ─▶ prompt ids ─┬─▶ stream of model 1 ─┬─▶ Continuation, Continuation
                           └─▶ stream of model 2 ─┘

Each model is timed for its own turns, so the rates are those of a model that computes alone. Nothing is computed ahead:
closing the iterator stops both models.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import text
from gpt2lab.generation.options import GenerationOptions
from gpt2lab.generation.text import TextDelta
from gpt2lab.model.language_model import LanguageModel

MAX_PROMPT_CHARACTERS = 8_000  # more than fit into GPT-2's context window
MAX_NEW_TOKENS = 512  # of each continuation
MAX_CONTINUATIONS = 10  # of each model
TOP_TOKENS = 8  # most likely tokens that are kept at every position


@dataclass(frozen=True)
class ComparedModel:
    """A model and its name and description on the page."""

    name: str
    note: str
    model: LanguageModel


@dataclass
class Continuation:
    """What a model has generated so far, in one or several continuations."""

    note: str = ""  # which part of the prompt the model reads, unless all of it
    deltas: list[TextDelta] = field(default_factory=list)  # each names its continuation, the row
    seconds_to_first_token: float | None = None
    seconds: float = 0.0  # of computing after the first token

    @property
    def tokens_per_second(self) -> float | None:
        """Rate of the tokens after the first; None if there are none."""
        return (len(self.deltas) - 1) / self.seconds if len(self.deltas) > 1 else None


def compare(
    models: Sequence[ComparedModel], tokenizer: Tokenizer, prompt: str, generation: GenerationOptions, count: int = 1
) -> Generator[tuple[int, Continuation], None, None]:
    """Continue the prompt with every model.

    Args:
        models: the models.
        tokenizer: their tokenizer.
        prompt: the text to continue.
        generation: how many tokens, sampled how.
        count: continuations of each model; each is the text that the model generates alone with its seed.

    Yields:
        (index of the model, what it has generated so far) after each token.

    Raises:
        GPT2LabError: from the iterator: the prompt is empty, too long for the page or not valid, or an option is out of
            range.
    """
    start = time.perf_counter()
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise GPT2LabError(f"the prompt has {len(prompt):,} characters; the maximum is {MAX_PROMPT_CHARACTERS:,}")
    if generation.max_new_tokens > MAX_NEW_TOKENS:
        raise GPT2LabError(f"max_new_tokens is {generation.max_new_tokens}; the maximum is {MAX_NEW_TOKENS}")
    ids = [text.encode(compared.model, tokenizer, prompt) for compared in models]
    streams = [
        text.stream(
            compared.model,
            tokenizer,
            [prompt_ids] * count,
            generation.max_new_tokens,
            generation.sampling,
            seeds=range(generation.seed, generation.seed + count),
            top=TOP_TOKENS,
        )
        for compared, prompt_ids in zip(models, ids, strict=True)
    ]
    notes = [text.describe_window(compared.model, prompt_ids) for compared, prompt_ids in zip(models, ids, strict=True)]
    active = [(side, stream, Continuation(notes[side])) for side, stream in enumerate(streams)]
    try:
        while active:
            for turn in list(active):
                side, stream, continuation = turn
                turn_start = time.perf_counter()
                delta = next(stream, None)
                turn_end = time.perf_counter()
                if delta is None:
                    active.remove(turn)
                    continue
                continuation.deltas.append(delta)
                if continuation.seconds_to_first_token is None:
                    continuation.seconds_to_first_token = turn_end - start
                else:
                    continuation.seconds += turn_end - turn_start
                yield side, continuation
    finally:
        for stream in streams:
            stream.close()
