"""HellaSwag: choose which of four endings continues a text. 10,042 validation items (Zellers et al. 2019).

    hellaswag_val.jsonl ──read──▶ Items ──completion──▶ Questions ─┐
                                       ──harness─────▶ Questions ─┴─▶ scoring ─▶ {"completion": …, "harness": …}

Two conventions are in use. Their accuracies cannot be compared with each other:

- *completion*, of llm.c and build-nanogpt: the context as it is, then " " + ending; acc_norm by mean loss per token.
- *harness*, of lm-evaluation-harness: the activity label and a colon before the context, markup in brackets removed;
  acc_norm by the loss divided by the length of the ending. The harness documents this length as bytes, but its code
  counts characters. `acc_norm` follows the code; `acc_bytes` uses bytes.

Two schemas hold the same items. The official file splits the context into `ctx_a` and `ctx_b`, the unfinished last
sentence, whose first letter the harness capitalizes. The mirror's copy has only `ctx`, with the WikiHow markup already
removed; an unfinished sentence at its end is used as `ctx_b`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from gpt2lab import resources
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import jsonl, multiple_choice, scoring
from gpt2lab.evaluation.jsonl import Index, Text
from gpt2lab.evaluation.multiple_choice import Question, count_correct
from gpt2lab.evaluation.scoring import Request, Scores
from gpt2lab.files import sha256

NAME = "hellaswag/hellaswag_val.jsonl"
URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
ITEMS = 10_042
CONVENTIONS = ("completion", "harness")

_UNFINISHED = re.compile(r"""^(.*[.!?]["')]*)\s+([^.!?]*[^.!?\s"')])\s*$""", re.DOTALL)


class Item(BaseModel):
    """One line of the file."""

    activity_label: Text
    ctx: Text
    ctx_a: str
    ctx_b: str
    endings: Annotated[tuple[Text, ...], Field(min_length=4, max_length=4)]
    label: Annotated[Index, Field(le=3)]
    is_official: bool = Field(default=True, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _split_mirror_context(cls, values: Any) -> Any:
        if not isinstance(values, dict) or {"ctx_a", "ctx_b"} & values.keys() or not isinstance(values.get("ctx"), str):
            return values
        ctx_a, ctx_b = split_context(values["ctx"])
        return values | {"ctx_a": ctx_a, "ctx_b": ctx_b, "is_official": False}


@dataclass(frozen=True)
class Data:
    """A file that was read and checked."""

    path: Path
    sha256: str
    schema: str  # official or mirror
    items: list[Item]

    def describe(self) -> str:
        """One line: which file this is, and whether it is the complete validation set."""
        size = len(self.items)
        part = "" if size == ITEMS else f" (not the {ITEMS:,} of the validation set)"
        return f"HellaSwag: {self.schema} schema, {size:,} items{part}, sha256 {self.sha256}, {self.path}"


def find(mirror: str | Path | None = None, file: str | Path | None = None, folder: str | Path | None = None) -> Data:
    """Find and read the validation set.

    Args:
        mirror: folder that may have the file, used after the cache and before the download.
        file: read this file instead, with any number of items.
        folder: read the file of this folder instead, if it has one, with any number of items.

    Returns:
        The items; all 10,042 of them unless `file` or `folder` is given.

    Raises:
        GPT2LabError: the file is not available, or is not HellaSwag.
    """
    if file is None and folder is not None and (Path(folder) / NAME).is_file():
        file = Path(folder) / NAME
    if file is not None:
        return read(Path(file))
    path = resources.find(NAME, None, mirror=mirror, url=URL)
    try:
        data = read(path)
        if len(data.items) != ITEMS:
            raise GPT2LabError(
                f"{path} has {len(data.items)} items, HellaSwag's validation set {ITEMS}; put the complete file in its "
                "place, or remove it"
            )
    except GPT2LabError:
        if path.is_relative_to(resources.cache_folder()):
            path.unlink(missing_ok=True)  # an incomplete download or an error page; the next call downloads again
        raise
    return data


def read(path: Path) -> Data:
    """Read a file in either schema.

    Args:
        path: the file.

    Returns:
        The items.

    Raises:
        GPT2LabError: the file cannot be read, is empty or mixes the schemas, or a line is not an item; the message
            names the line and the field.
    """
    items = jsonl.read(path, Item)
    schemas = {"official" if item.is_official else "mirror" for item in items}
    if len(schemas) != 1:
        raise GPT2LabError(f"{path} mixes lines with and without ctx_a and ctx_b; use one schema throughout")
    return Data(path, sha256(path), schemas.pop(), items)


def split_context(ctx: str) -> tuple[str, str]:
    """Split a context into its finished sentences and an unfinished last one.

    Args:
        ctx: the context of an item.

    Returns:
        `ctx_a` and `ctx_b`; the latter is empty where the last sentence is finished.
    """
    match = _UNFINISHED.match(ctx)
    return (match[1], match[2]) if match else (ctx, "")


def completion(item: Item) -> Question:
    """The question in the convention of build-nanogpt and llm.c."""
    return Question((item.ctx,), tuple(f" {ending}" for ending in item.endings), item.label)


def harness(item: Item) -> Question:
    """The question in the convention of lm-evaluation-harness."""
    context = remove_markup(f"{item.activity_label}: {item.ctx_a} {item.ctx_b.capitalize()}")
    return Question((context,), tuple(f" {remove_markup(ending)}" for ending in item.endings), item.label)


def remove_markup(text: str) -> str:
    """Remove WikiHow's markup: `[title]` becomes the end of a sentence, other brackets and double spaces go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


class Evaluation:
    """HellaSwag in both conventions, tokenized once, for any number of models.

    Args:
        tokenizer: GPT-2's.
        data: the items.
        limit: evaluate a fixed random subset of this size; None or 0 means all items.
    """

    def __init__(self, tokenizer: Tokenizer, data: Data, *, limit: int | None = None):
        items = multiple_choice.subset(data.items, limit)
        self.questions = {"completion": [*map(completion, items)], "harness": [*map(harness, items)]}
        # Those of the completion convention, then equally many of the harness convention.
        self.requests = [r for name in CONVENTIONS for r in multiple_choice.encode(tokenizer, self.questions[name])]

    def as_json(self, scores: Scores) -> dict[str, Any]:
        """Count the answers.

        Args:
            scores: of `requests`.

        Returns:
            Convention -> acc, acc_norm, correct, predictions and so on.
        """
        half = len(self.requests) // 2
        completion, harness = scores.select(slice(half)), scores.select(slice(half, None))
        endings = [choice[1:] for question in self.questions["harness"] for choice in question.choices]
        characters = np.array([len(ending) for ending in endings])
        octets = np.array([len(ending.encode()) for ending in endings])
        return {
            "completion": count_correct(self.questions["completion"], completion, {"_norm": completion.tokens}),
            "harness": count_correct(self.questions["harness"], harness, {"_norm": characters, "_bytes": octets}),
        }


def result_line(figures: dict[str, Any]) -> str:
    """`HellaSwag accuracy: 2982/10042=0.2970 (95% interval 0.2881 to 0.3060)`: completion style, acc_norm."""
    values = figures["completion"]
    low, high = values["interval95"]
    return (
        f"HellaSwag accuracy: {values['correct_norm']}/{values['total']}={values['acc_norm']:.4f} "
        f"(95% interval {low:.4f} to {high:.4f})"
    )


def metrics(figures: dict[str, Any]) -> dict[str, float]:
    """The values that a training run records, by metric key."""
    return {
        "hellaswag/acc_norm": figures["completion"]["acc_norm"],
        "hellaswag/harness_acc_norm": figures["harness"]["acc_norm"],
    }


def check_fits(requests: Sequence[Request], vocab_size: int) -> None:
    """Check before training that the model will have all tokens of the requests.

    Args:
        requests: of an `Evaluation`.
        vocab_size: of the model.

    Raises:
        GPT2LabError: a token is not below `vocab_size`.
    """
    if scoring.largest_token(requests) >= vocab_size:
        raise GPT2LabError(
            f"train.hellaswag_every needs GPT-2's vocabulary of 50257, and model.vocab_size is {vocab_size}; "
            "set train.hellaswag_every 0"
        )
