"""Small language-understanding tasks beside HellaSwag: the sets of LLM Foundry, with its prompts, zero-shot.

    eval/NAME.jsonl ──read──▶ Questions ──▶ Evaluation (requests out, scores in, accuracies out)

Three formats, distinguished by their fields:

- `query`, `choices`, `gold`: the choice with the lowest loss. LLM Foundry divides the loss by the number of tokens, so
  `acc_norm` is the accuracy that it would report.
- `context_options`, `continuation`, `gold`: the same continuation after different contexts (two readings of a pronoun).
- `context`, `continuation`: the last words; correct if every token of them is the model's most likely one.

A prompt is the stripped query followed by the delimiter; a choice follows after one space. The accuracies are LLM
Foundry's. They cannot be compared with lm-evaluation-harness, which uses other prompts and, for some sets, other
splits; harness.py gives its accuracies.

`everyday` is a set of this project: short sentences with a missing end. It fits into any context window and needs no
network. Its accuracy can only be compared between models evaluated with gpt2lab.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from gpt2lab import resources
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.evaluation import jsonl, multiple_choice
from gpt2lab.evaluation.jsonl import Gold, Text
from gpt2lab.evaluation.multiple_choice import Question, count_correct
from gpt2lab.evaluation.names import TASKS
from gpt2lab.evaluation.scoring import Request, Scores
from gpt2lab.files import sha256

_COMMIT = "8c8dd48f72168c5d51e2f7b151595892a8fba43d"
_URL = f"https://raw.githubusercontent.com/mosaicml/llm-foundry/{_COMMIT}/scripts/eval/local_data"


_ENDS_IN_ANSWER = {"arc_challenge", "arc_easy", "boolq", "piqa"}  # the delimiter of the others is a space


_Choices = Annotated[tuple[Text, ...], Field(min_length=2)]


class _ChoiceRecord(BaseModel):
    query: Text
    choices: _Choices
    gold: Gold

    def question(self, delimiter: str) -> Question:
        choices = tuple(choice if choice.startswith(" ") else f" {choice}" for choice in self.choices)
        return Question((_prompt(self.query, delimiter),), choices, self.gold)


class _SchemaRecord(BaseModel):
    context_options: _Choices
    continuation: Text
    gold: Gold

    def question(self, delimiter: str) -> Question:
        contexts = tuple(_prompt(option, delimiter) for option in self.context_options)
        return Question(contexts, (f" {self.continuation.strip()}",) * len(contexts), self.gold)


class _LastWordsRecord(BaseModel):
    context: Text
    continuation: Text


@dataclass(frozen=True)
class Evaluation:
    """A tokenized set, for any number of models."""

    requests: list[Request]
    questions: list[Question] | None  # None: last words
    source: dict[str, str]

    def as_json(self, scores: Scores) -> dict[str, Any]:
        """Count the answers.

        Args:
            scores: of `requests`.

        Returns:
            By JSON key: acc, correct, predictions and so on.
        """
        if self.questions is not None:
            return count_correct(self.questions, scores, {"_norm": scores.tokens}) | self.source
        correct, total = int(scores.greedy.sum()), len(self.requests)
        figures = {
            "acc": correct / total,
            "correct": correct,
            "predictions": scores.greedy.tolist(),
            "total": total,
            "chance": 0.0,  # nobody guesses a word among all words
            "interval95": multiple_choice.interval95(correct, total),
            "perplexity": float(np.exp(min(scores.loss.mean(), 700))),  # e^710 is infinite in float64
        }
        return figures | self.source


def find(name: str, mirror: str | Path | None = None, folder: str | Path | None = None) -> Path:
    """Find the file of a task: in the package, in `folder`, cached, in the mirror, or by download.

    Args:
        name: of the task.
        mirror: folder that may have the file, used after the cache and before the download.
        folder: searched first for `eval/NAME.jsonl` and `NAME.jsonl`, of any content; elsewhere the sha256 is checked.

    Returns:
        Path of the file.

    Raises:
        GPT2LabError: the file is not available.
    """
    if name == "everyday":
        return Path(__file__).parent / "everyday.jsonl"
    if folder is not None and (path := find_in(Path(folder), name)):
        return path
    path_there, digest = TASKS[name]
    return resources.find(f"eval/{name}.jsonl", digest, mirror=mirror, url=f"{_URL}/{path_there}")


def find_in(folder: Path, name: str) -> Path | None:
    """Find the file of a task in a folder that the user names; None if it has none.

    Args:
        folder: the folder.
        name: of the task.
    """
    paths = (folder / "eval" / f"{name}.jsonl", folder / f"{name}.jsonl")
    return next((path for path in paths if path.is_file()), None)


def load(tokenizer: Tokenizer, name: str, path: Path, *, limit: int | None = None) -> Evaluation:
    """Read and tokenize a set.

    Args:
        tokenizer: GPT-2's.
        name: of the task.
        path: of its file.
        limit: evaluate a fixed random subset of this size; None or 0 means all items.

    Returns:
        The set.

    Raises:
        GPT2LabError: the file cannot be read, or a line does not have the format of the first line; the message names
            the line and the field.
    """
    source = {"format": "LLM Foundry" if name in TASKS else "gpt2lab", "sha256": sha256(path)}
    delimiter = "\nAnswer: " if name in _ENDS_IN_ANSWER else " "
    record_type = _record_type(path)
    records = multiple_choice.subset(jsonl.read(path, record_type), limit)
    if record_type is _LastWordsRecord:
        pairs = [(_prompt(record.context, delimiter), f" {record.continuation.strip()}") for record in records]
        return Evaluation([multiple_choice.encode_pair(tokenizer, *pair) for pair in pairs], None, source)
    questions = [record.question(delimiter) for record in records]
    return Evaluation(multiple_choice.encode(tokenizer, questions), questions, source)


def _record_type(path: Path) -> type[Any]:
    """The format of a file, by the fields of its first line."""
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip()), b"")
    if b'"choices"' in first:
        return _ChoiceRecord
    return _SchemaRecord if b'"context_options"' in first else _LastWordsRecord


def _prompt(text: str, delimiter: str) -> str:
    return f"{text.strip()}{delimiter}".rstrip()
