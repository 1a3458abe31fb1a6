"""HellaSwag: 10,042 times, which of four endings continues a text? (Zellers et al. 2019, the validation set.)

    hellaswag_val.jsonl ──read──▶ Items ──completion──▶ Questions ─┐
                                       ──harness─────▶ Questions ─┴─▶ scoring ─▶ {"completion": …, "harness": …}

Two conventions are in use, and figures of one say nothing beside figures of the other:

- *completion*, of llm.c and build-nanogpt: the context as it stands, " " + ending; acc_norm by the mean loss a token.
- *harness*, of lm-evaluation-harness: the activity label and a colon before the context, marks in brackets taken out;
  acc_norm by the loss divided by the ending's length. The harness's documents speak of bytes there, its code counts
  characters; `acc_norm` follows the code, and `acc_bytes`, which it also offers, is beside it.

Two schemas hold the same items. The official file splits the context into `ctx_a` and `ctx_b`, the unfinished last
sentence, which the harness puts into capitals at its beginning. The mirror's copy has `ctx` alone, with the WikiHow
marks taken out already; where its context ends in an unfinished sentence, that one is taken for `ctx_b`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab import resources
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import jsonl, multiple_choice
from gpt2lab.evaluation.multiple_choice import Question, Result
from gpt2lab.evaluation.scoring import Request, Scores
from gpt2lab.files import sha256

NAME = "hellaswag/hellaswag_val.jsonl"
URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
ITEMS = 10_042
CONVENTIONS = ("completion", "harness")

_UNFINISHED = re.compile(r"""^(.*[.!?]["')]*)\s+([^.!?]*[^.!?\s"')])\s*$""", re.DOTALL)


class Item(NamedTuple):
    """One line of the file."""

    activity_label: str
    ctx: str
    ctx_a: str
    ctx_b: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Data:
    """A file that was read and found good."""

    path: Path
    sha256: str
    schema: str  # official or mirror
    items: list[Item]

    def describe(self) -> str:
        """One line: which file this is, and whether it is the whole validation set."""
        size = len(self.items)
        part = "" if size == ITEMS else f" (not the {ITEMS:,} of the validation set)"
        return f"HellaSwag: {self.schema} schema, {size:,} items{part}, sha256 {self.sha256}, {self.path}"


def find(mirror: str | Path | None = None, file: str | Path | None = None) -> Data:
    """The validation set: from `file`, which may hold any number of items; else cached, mirrored or downloaded, whole.

    Raises:
        GPT2LabError: nothing has it, or what was found is not HellaSwag.
    """
    if file is not None:
        return read(Path(file))
    try:
        path = resources.find(NAME, None, mirror=mirror, url=URL)
    except GPT2LabError as error:
        raise GPT2LabError(f"HellaSwag: {error}") from None
    try:
        data = read(path)
        if len(data.items) != ITEMS:
            raise GPT2LabError(
                f"{path} has {len(data.items)} items, HellaSwag's validation set {ITEMS}; remove it, or give the "
                "file to use with --hellaswag-file"
            )
    except GPT2LabError:
        if path.is_relative_to(resources.cache_folder()):
            path.unlink(missing_ok=True)  # a broken download, or a proxy's page; the next call tries again
        raise
    return data


def read(path: Path) -> Data:
    """Read a file in either schema.

    Raises:
        GPT2LabError: it cannot be read, is empty or mixes schemas; or a line is not JSON, lacks a field, has not four
            endings, an empty one, or a label out of range. The message names the line.
    """
    items, schemas = [], set()
    for line in jsonl.read(path):
        official = "ctx_a" in line.values or "ctx_b" in line.values
        schemas.add("official" if official else "mirror")
        ctx = line.text("ctx")
        a, b = (line.text("ctx_a", empty=True), line.text("ctx_b", empty=True)) if official else split_context(ctx)
        endings = line.texts("endings", count=4)
        items.append(Item(line.text("activity_label"), ctx, a, b, endings, line.index("label", len(endings))))
    if len(schemas) != 1:
        raise GPT2LabError(f"{path} mixes lines with and without ctx_a and ctx_b; give one schema throughout")
    return Data(path, sha256(path), schemas.pop(), items)


def split_context(ctx: str) -> tuple[str, str]:
    """`ctx_a` and `ctx_b` of a context that comes in one piece: the finished sentences, and an unfinished last one."""
    found = _UNFINISHED.match(ctx)
    return (found[1], found[2]) if found else (ctx, "")


def completion(item: Item) -> Question:
    """The item as build-nanogpt and llm.c put it."""
    return Question((item.ctx,), tuple(f" {ending}" for ending in item.endings), item.label)


def harness(item: Item) -> Question:
    """The item as lm-evaluation-harness puts it."""
    context = without_marks(f"{item.activity_label}: {item.ctx_a} {item.ctx_b.capitalize()}")
    return Question((context,), tuple(f" {without_marks(ending)}" for ending in item.endings), item.label)


def without_marks(text: str) -> str:
    """A text without WikiHow's marks: `[title]` ends a sentence, others vanish, and one of two spaces with them."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


class Evaluation:
    """The set in both conventions, tokenised and ready to be asked of any model again and again.

    Args:
        limit: only so many items, always the same ones.
        keep: keep the ids in the cache folder for the next process.
    """

    def __init__(self, data: Data, tokenizer: Tokenizer, *, limit: int | None = None, keep: bool = False):
        items = multiple_choice.subset(data.items, limit)
        styles = {"completion": completion, "harness": harness}
        self.questions = {name: [styles[name](item) for item in items] for name in CONVENTIONS}
        self._requests = {
            name: multiple_choice.encode(tokenizer, questions, keep=keep) for name, questions in self.questions.items()
        }

    @property
    def requests(self) -> list[Request]:
        """All requests, of one convention after the other."""
        return [request for name in CONVENTIONS for request in self._requests[name]]

    def results(self, scores: Scores) -> dict[str, Result]:
        """What the scores of `requests` say, by convention."""
        found = {}
        for name, part in zip(CONVENTIONS, scores.split([len(self._requests[n]) for n in CONVENTIONS]), strict=True):
            questions = self.questions[name]
            texts = [choice[1:] for question in questions for choice in question.choices]
            lengths: dict[str, Any] = {"_norm": part.tokens}
            if name == "harness":
                lengths = {
                    "_norm": np.array([len(text) for text in texts]),
                    "_bytes": np.array([len(text.encode()) for text in texts]),
                }
            found[name] = multiple_choice.choose(questions, part, lengths)
        return found

    def as_json(self, scores: Scores) -> dict[str, Any]:
        """Convention → acc, acc_norm, correct, predictions, …"""
        return {name: result.as_json() for name, result in self.results(scores).items()}


def result_line(figures: dict[str, Any]) -> str:
    """`HellaSwag accuracy: 2982/10042=0.2970 (95% interval 0.2881 to 0.3060)`: completion style, acc_norm."""
    values = figures["completion"]
    low, high = values["interval95"]
    return (
        f"HellaSwag accuracy: {values['correct_norm']}/{values['total']}={values['acc_norm']:.4f} "
        f"(95% interval {low:.4f} to {high:.4f})"
    )


def metrics(figures: dict[str, Any]) -> dict[str, float]:
    """What a training run records, by metric key."""
    return {
        "hellaswag/acc_norm": figures["completion"]["acc_norm"],
        "hellaswag/harness_acc_norm": figures["harness"]["acc_norm"],
    }


def check_fits(requests: Sequence[Request], vocab_size: int) -> None:
    """Refuse a vocabulary without the requests' tokens, before a run that will need them.

    Raises:
        GPT2LabError: a token is not below `vocab_size`.
    """
    if max(max(max(context), max(tail)) for context, tail in requests) >= vocab_size:
        raise GPT2LabError(
            f"train.hellaswag_every needs GPT-2's vocabulary of 50257, and model.vocab_size is {vocab_size}; "
            "set train.hellaswag_every 0"
        )
