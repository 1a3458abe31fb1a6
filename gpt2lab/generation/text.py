"""Text from a model: prompts as strings in, whole characters out, as they come.

    prompt ──encode──▶ ids ──engine.stream──▶ tokens ──bytes──▶ whole characters ──stop strings──▶ TextDelta

A token of GPT-2 stands for bytes, and a character may take several tokens: what is not a whole character yet waits for
its rest. So does what may turn out to be the beginning of a stop string.
"""

import codecs
from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple

from gpt2lab.data.tokenizer import EOT, Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation import engine
from gpt2lab.generation.engine import LanguageModel, Token
from gpt2lab.generation.sampling import Sampling

End = Literal["length", "stop", "end_of_text"]


class TextDelta(NamedTuple):
    """What one step brought to one row."""

    row: int
    text: str  # new and final; empty while a character, or what may be a stop string, is incomplete
    token: Token  # the token drawn; of the text, its bytes are a part, unless they wait or were dropped by a stop
    end: End | None = None  # why the row ends here: max_new_tokens, a stop string, <|endoftext|>; None: it goes on


def encode(tokenizer: Tokenizer, prompt: str, model: LanguageModel) -> list[int]:
    """Token ids of a prompt that the model can continue.

    Raises:
        GPT2LabError: the prompt is empty, longer than the window, holds a NUL or what is not Unicode text, or has
            tokens that the model's vocabulary lacks.
    """
    if not prompt:
        raise GPT2LabError("the prompt is empty; give the model something to continue, such as a space")
    if (place := prompt.find("\0")) >= 0:
        raise GPT2LabError(f"the prompt has a NUL (character {place + 1}); take it out")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a lone surrogate: how Python carries bytes that are not UTF-8
        raise GPT2LabError(f"the prompt is not valid UTF-8 (character {error.start + 1}); save it as UTF-8") from None
    ids = tokenizer.encode(prompt)
    if len(ids) > model.config.block_size:
        raise GPT2LabError(
            f"the prompt has {len(ids)} tokens, but the model's window (block_size) is {model.config.block_size}; "
            "shorten it"
        )
    if max(ids) >= model.config.vocab_size:
        raise GPT2LabError(
            f"the prompt has token {max(ids)}, but the model's vocab_size is {model.config.vocab_size}; "
            "use a model that was trained with GPT-2's tokenizer (50257 tokens)"
        )
    return ids


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
    """Continue prompts side by side; yields a piece for each new token, row by row, step by step.

    The pieces of a row make up its continuation, without the prompt. A row ends before the first stop string that
    comes up in it, at `<|endoftext|>`, or after `max_new_tokens` (less half a character, if it stops in one); the
    others go on. Bytes that can't be UTF-8 become U+FFFD. Closing the iterator stops the computation.

    Args:
        prompts: token ids (`encode` makes them), at least one each.
        stop: strings that end a row; they are not part of its text.
        The rest: see `engine.stream`.

    Raises:
        GPT2LabError: an argument is out of range; from the iterator: the logits are not finite.
    """
    if "" in stop:
        raise GPT2LabError("a stop string is empty; leave it out")
    ended: set[int] = set()
    steps = engine.stream(model, prompts, max_new_tokens, sampling, seeds=seeds, top=top, ended=ended)
    return _pieces(steps, [_Row(tokenizer, stop, max_new_tokens) for _ in prompts], ended)


def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    stop: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
) -> list[str]:
    """The continuation of each prompt, without the prompt: see `encode` and `stream`."""
    tokenizer = tokenizer or Tokenizer()
    ids = [encode(tokenizer, prompt, model) for prompt in prompts]
    texts = [""] * len(prompts)
    for piece in stream(model, tokenizer, ids, max_new_tokens, sampling, stop=stop, seeds=seeds):
        texts[piece.row] += piece.text
    return texts


def _pieces(
    steps: Generator[list[Token], None, None], rows: Sequence["_Row"], ended: set[int]
) -> Generator[TextDelta, None, None]:
    try:
        for tokens in steps:
            for token in tokens:
                piece = rows[token.row].take(token)
                if piece.end:
                    ended.add(piece.row)
                yield piece
    finally:
        steps.close()


class _Row:
    """The text of one row, between its tokens and what may be shown of it."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], max_new_tokens: int):
        self.tokenizer, self.stop, self.left = tokenizer, stop, max_new_tokens
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""  # decoded, but it may be the beginning of a stop string

    def take(self, token: Token) -> TextDelta:
        """What the row's next token makes visible."""
        self.left -= 1
        over = token.id == EOT or self.left == 0
        if token.id != EOT:
            self.held += self.characters.decode(self.tokenizer.decode_bytes([token.id]))
        found = [(at + len(stop), at) for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if found:  # the one that is complete first, wherever tokens begin and end
            return TextDelta(token.row, self.held[: min(found)[1]], token, "stop")
        keep = 0 if over else max((_overlap(self.held, stop) for stop in self.stop), default=0)
        text, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return TextDelta(token.row, text, token, ("end_of_text" if token.id == EOT else "length") if over else None)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
