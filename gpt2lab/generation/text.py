"""Generate text: prompts as strings in, complete characters out, as soon as they are known.

    prompt ──encode──▶ ids ──engine.stream──▶ tokens ──▶ bytes ──▶ characters ──stop strings──▶ TextDelta

A token of GPT-2 stands for bytes, and a character may take several tokens: bytes are held back until their character
is complete. So is text that may turn out to be the beginning of a stop string.
"""

import codecs
import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from typing import Literal, NamedTuple

from gpt2lab.data.tokenizer import EOT, Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import engine
from gpt2lab.generation import prompts as prompt_texts
from gpt2lab.generation.engine import LanguageModel, Token
from gpt2lab.generation.sampling import Sampling

logger = logging.getLogger(__name__)

End = Literal["length", "stop", "end_of_text"]


class TextDelta(NamedTuple):
    """What one step adds to one row."""

    row: int
    text: str  # new and final; empty while a character, or what may be a stop string, is incomplete
    token: Token  # the sampled token; its bytes may be part of this text, of a later one, or dropped by a stop string
    end: End | None = None  # why the row ends here: max_new_tokens, a stop string, <|endoftext|>; None: it goes on


def encode(model: LanguageModel, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Convert a prompt to token ids and check that the model can continue it.

    Args:
        model: any language model.
        tokenizer: GPT-2's.
        prompt: the text.

    Returns:
        The ids. If they are more than fit into the window, `stream` uses the last ones (see `describe_window`).

    Raises:
        GPT2LabError: the prompt is not valid (see `prompts.check`), or has tokens that the model's vocabulary lacks.
    """
    prompt_texts.check(prompt)
    ids = tokenizer.encode(prompt)
    if max(ids) >= model.config.vocab_size:
        raise GPT2LabError(
            f"the prompt has token {max(ids)}, but the model's vocab_size is {model.config.vocab_size}; "
            "use a model that was trained with GPT-2's tokenizer (50257 tokens)"
        )
    return ids


def describe_window(model: LanguageModel, ids: Sequence[int]) -> str:
    """Which part of a prompt the model reads, for the user; empty if it reads all of it.

    Args:
        model: any language model.
        ids: the prompt (see `encode`).
    """
    window = model.config.block_size
    if len(ids) <= window:
        return ""
    return f"the prompt has {len(ids):,} tokens; the model reads the last {window:,} (block_size)"


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    top: int | None = None,
) -> Generator[TextDelta, None, None]:
    """Continue prompts side by side; yield a text delta for each new token, row by row, step by step.

    The deltas of a row make up its continuation, without the prompt. A row ends before the first stop string, at
    `<|endoftext|>`, or after `max_new_tokens` (without the bytes of an incomplete character); the other rows go on.
    Bytes that cannot be UTF-8 become U+FFFD. Closing the iterator stops the computation.

    Args:
        model: any language model.
        tokenizer: GPT-2's.
        prompts: token ids (see `encode`), at least one each.
        max_new_tokens: per row, >= 0.
        sampling: see `engine.stream`.
        stop: strings that end a row; they are not part of its text.
        seeds: see `engine.stream`.
        top: see `engine.stream`.

    Yields:
        One delta per new token.

    Raises:
        GPT2LabError: an argument is out of range, or the logits are not finite.
    """
    if isinstance(stop, str) or not all(isinstance(text, str) for text in stop):
        raise GPT2LabError(f"stop is {stop!r:.60}; it must be a list of strings, such as ['\\n']")
    if "" in stop:
        raise GPT2LabError("a stop string is empty; take it out")
    decoders = [RowDecoder(tokenizer, stop, max_new_tokens) for _ in prompts]
    finished: set[int] = set()
    steps = engine.stream(model, prompts, max_new_tokens, sampling, seeds=seeds, top=top, finished=finished)
    with contextlib.closing(steps):
        for tokens in steps:
            for token in tokens:
                delta = decoders[token.row].decode(token)
                if delta.end:
                    finished.add(delta.row)
                yield delta


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> list[str]:
    """Continue prompts side by side.

    Args:
        model: any language model.
        tokenizer: GPT-2's.
        prompts: texts (see `encode`).
        max_new_tokens: per row, >= 0.
        sampling: see `engine.stream`.
        stop: see `stream`.
        seeds: see `engine.stream`.
        check_stop: called after each token; may raise to end the computation.

    Returns:
        The continuation of each prompt, without the prompt.

    Raises:
        GPT2LabError: a prompt cannot be continued, an argument is out of range, or the logits are not finite.
    """
    ids = [encode(model, tokenizer, prompt) for prompt in prompts]
    for note in dict.fromkeys(describe_window(model, prompt_ids) for prompt_ids in ids):
        if note:
            logger.warning(note)
    texts = [""] * len(prompts)
    for delta in stream(model, tokenizer, ids, max_new_tokens, sampling, stop=stop, seeds=seeds):
        texts[delta.row] += delta.text
        if check_stop is not None:
            check_stop()
    return texts


class RowDecoder:
    """Turns the tokens of one row into text, and finds its end.

    Args:
        tokenizer: GPT-2's.
        stop: strings that end the row.
        max_new_tokens: of the row.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], max_new_tokens: int):
        self.tokenizer, self.stop, self.tokens_left = tokenizer, stop, max_new_tokens
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.pending = ""  # decoded, but may be the beginning of a stop string

    def decode(self, token: Token) -> TextDelta:
        """Add the row's next token; return the text that is final with it."""
        self.tokens_left -= 1
        end: End | None = "end_of_text" if token.id == EOT else "length" if self.tokens_left == 0 else None
        if token.id != EOT:
            self.pending += self.utf8.decode(self.tokenizer.decode_bytes([token.id]))
        starts = {stop: self.pending.find(stop) for stop in self.stop}
        if matches := [(start + len(stop), start) for stop, start in starts.items() if start >= 0]:
            _, start = min(matches)  # the stop string that is complete first
            return TextDelta(token.row, self.pending[:start], token, "stop")
        held_back = 0 if end else max((_overlap(self.pending, stop) for stop in self.stop), default=0)
        length = len(self.pending) - held_back
        text, self.pending = self.pending[:length], self.pending[length:]
        return TextDelta(token.row, text, token, end)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a proper beginning of `stop` equals."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if stop.startswith(text[-length:])), 0)
