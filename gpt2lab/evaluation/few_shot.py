"""Prompts with solved examples: which examples, which text, and which of its tokens are scored.

    items, index ──draw──▶ examples ─┐
                             item ───┴─▶ texts ──▶ ids ──common prefix or suffix──▶ Requests

    multiple_choice      (example, blank line), …, query, delimiter, [choice]
    schema               (example, blank line), …, context, delimiter, [continuation]       several contexts
    language_modeling    (example, blank line), …, context, delimiter, [continuation]

An example is rendered as the item is, with its correct choice. Only the part in brackets is scored. Its tokens are
found by comparing the ids of an item's texts: choices begin where the texts no longer agree, the continuation of a
schema is the end on which they agree, and that of language_modeling is what its text has beyond the text without it.
Every text begins with <|endoftext|>.

These are the rules of nanochat's `core_eval.py` (commit 92d63d4), also where they have surprising effects: the choices
of an item may begin with the same words, which are then not scored, and contexts may end with the same words, which
are then scored with the continuation.
"""

import functools
import random
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from gpt2lab.data.tokenizer import EOT, Tokenizer
from gpt2lab.evaluation.jsonl import Gold
from gpt2lab.evaluation.scoring import Request

SEED = 1234  # plus the index of the item

Ids = tuple[int, ...]
Text = list[str]  # in parts, so that parts that texts share are encoded once


_Options = Annotated[tuple[str, ...], Field(min_length=1)]


class _Item(BaseModel):
    """A line of a file. Fields that are not declared are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # an answer may be written as a number


class ChoiceItem(_Item):
    """A query with several choices."""

    query: str
    choices: _Options
    gold: Gold

    def solve(self, delimiter: str) -> str:
        """The item as an example."""
        return f"{self.query}{delimiter}{self.choices[self.gold]}"

    def texts(self, examples: Text, delimiter: str) -> list[Text]:
        """A text for each choice."""
        return [[*examples, self.query, delimiter + choice] for choice in self.choices]

    @staticmethod
    def find_starts(texts: Sequence[Ids]) -> list[int]:
        """The index of the first scored token of each text."""
        return [_count_common(texts)] * len(texts)


class SchemaItem(_Item):
    """Several contexts with one continuation."""

    context_options: _Options
    continuation: str
    gold: Gold

    def solve(self, delimiter: str) -> str:
        """The item as an example."""
        return f"{self.context_options[self.gold]}{delimiter}{self.continuation}"

    def texts(self, examples: Text, delimiter: str) -> list[Text]:
        """A text for each context."""
        return [[*examples, context, delimiter + self.continuation] for context in self.context_options]

    @staticmethod
    def find_starts(texts: Sequence[Ids]) -> list[int]:
        """The index of the first scored token of each text."""
        common = _count_common([text[::-1] for text in texts])
        return [len(text) - common for text in texts]


class LanguageModelingItem(_Item):
    """A context with a continuation, every token of which must be the most likely one."""

    context: str
    continuation: str

    def solve(self, delimiter: str) -> str:
        """The item as an example."""
        return f"{self.context.strip()}{delimiter}{self.continuation}"

    def texts(self, examples: Text, delimiter: str) -> list[Text]:
        """The text, and the text without its continuation."""
        start = [*examples, self.context.strip()]
        return [[*start, delimiter + self.continuation], _strip([*start, delimiter])]

    @staticmethod
    def find_starts(texts: Sequence[Ids]) -> list[int]:
        """The index of the first scored token of the text; the text without continuation is not scored."""
        return [_count_common(texts)]


Item = ChoiceItem | SchemaItem | LanguageModelingItem
ITEM_TYPES: dict[str, type[Item]] = {
    "multiple_choice": ChoiceItem,
    "schema": SchemaItem,
    "language_modeling": LanguageModelingItem,
}


class Prompts(NamedTuple):
    """What to score for a list of items."""

    requests: list[Request]
    owners: list[tuple[int, int]]  # of each request: the index of the item, and of its text
    truncated: int  # texts that were longer than the context window


def draw(count: int, index: int, shots: int) -> list[int]:
    """The examples of an item: a fixed random choice of the other items.

    Args:
        count: number of items.
        index: of the item.
        shots: number of examples, less than `count`.

    Returns:
        Indices of items, in the order of the prompt.
    """
    others = random.Random(SEED + index).sample(range(count - 1), shots)
    return [other + (other >= index) for other in others]


def encode(tokenizer: Tokenizer, items: Sequence[Item], shots: int, delimiter: str, block_size: int) -> Prompts:
    """The requests of all items.

    A text that is longer than the context window is cut on the left, where <|endoftext|> is. A text that has nothing to
    score, as that of a choice with which another one begins, has no request.

    Args:
        tokenizer: GPT-2's.
        items: of one type.
        shots: number of examples of each item, less than the number of items.
        delimiter: between a query or context and its answer.
        block_size: the context window. As in nanochat, the last token, which predicts nothing, must fit too.

    Returns:
        The requests, in the order of the items and their texts.
    """
    encode_part = functools.lru_cache(maxsize=1 << 16)(lambda part: tuple(tokenizer.encode(part)))
    solved = [f"{item.solve(delimiter)}\n\n" for item in items] if shots else []
    prompts = Prompts([], [], 0)
    truncated = 0
    for index, item in enumerate(items):
        examples = [solved[other] for other in draw(len(items), index, shots)]
        texts = [_encode_text(encode_part, text) for text in item.texts(examples, delimiter)]
        contexts: dict[Ids, Ids] = {}  # keeps one copy of what choices share
        for number, (ids, start) in enumerate(zip(texts, item.find_starts(texts), strict=False)):
            cut = max(0, len(ids) - block_size)
            truncated += cut > 0
            split = max(start, cut + 1)  # the window's first token is not predicted
            if start > 0 and split < len(ids):
                context = ids[cut:split]
                prompts.requests.append(Request(contexts.setdefault(context, context), ids[split:]))
                prompts.owners.append((index, number))
    return prompts._replace(truncated=truncated)


def _encode_text(encode_part: Callable[[str], Ids], text: Text) -> Ids:
    """<|endoftext|> and the ids of a text.

    They are those of the joined parts: it is divided only before a space or newline that follows another character,
    where one of GPT-2's words always ends and the next one begins.
    """
    ids, pending = [EOT], ""
    for part in text:
        if part[:1] in (" ", "\n") and pending == pending.rstrip():
            ids += encode_part(pending)
            pending = ""
        pending += part
        end = len(pending.rstrip())
        if pending[end : end + 1] in (" ", "\n"):  # it begins the next word
            ids += encode_part(pending[:end])
            pending = pending[end:]
    return (*ids, *encode_part(pending))


def _strip(text: Text) -> Text:
    """Without white space at the beginning and the end of the joined parts."""
    while text and not text[0].strip():
        text = text[1:]
    while text and not text[-1].strip():
        text = text[:-1]
    text = [text[0].lstrip(), *text[1:]] if text else []
    return [*text[:-1], text[-1].rstrip()] if text else []


def _count_common(texts: Sequence[Ids]) -> int:
    """The number of ids with which all texts begin."""
    first, last = min(texts), max(texts)  # in alphabetical order: what these two share, all of them share
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
