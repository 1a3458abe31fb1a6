"""Language understanding beyond HellaSwag: the small sets that LLM Foundry ships, with its prompts, zero-shot.

    eval/NAME.jsonl ──read──▶ Questions ──▶ Evaluation (requests out, scores in, figures out)

Three kinds, told apart by their fields:

- `query`, `choices`, `gold`: the choice with the lowest loss; LLM Foundry divides it by the tokens, so `acc_norm` is
  the figure that it would give.
- `context_options`, `continuation`, `gold`: the same continuation after different contexts (a pronoun's two readings).
- `context`, `continuation`: the last words, right if every token of them is the model's likeliest.

A prompt is the query, stripped, then the delimiter; a choice follows after one space. The figures are LLM Foundry's,
not comparable with lm-evaluation-harness, which puts other words around most of the questions and has other splits of
some. For its figures there is harness.py.

`everyday` is a set of this project's own: plain sentences with an end missing, short enough for any window, there
without a network. It measures nothing that others measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt2lab import resources
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError, did_you_mean
from gpt2lab.evaluation import jsonl, multiple_choice
from gpt2lab.evaluation.multiple_choice import Question
from gpt2lab.evaluation.scoring import Request, Scores
from gpt2lab.files import sha256

FOUNDRY = "LLM Foundry"
OWN = "gpt2lab"
_COMMIT = "8c8dd48f72168c5d51e2f7b151595892a8fba43d"
_URL = f"https://raw.githubusercontent.com/mosaicml/llm-foundry/{_COMMIT}/scripts/eval/local_data"
_ANSWER = "\nAnswer: "


class Task(NamedTuple):
    """A set: LLM Foundry's folder and delimiter, its sha256, and the task of lm-evaluation-harness that is nearest."""

    folder: str
    sha256: str
    harness: str
    delimiter: str = " "


TASKS = {
    "arc_challenge": Task(
        "world_knowledge", "1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636", "arc_challenge", _ANSWER
    ),
    "arc_easy": Task(
        "world_knowledge", "d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5", "arc_easy", _ANSWER
    ),
    "boolq": Task(
        "reading_comprehension", "454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8", "boolq", _ANSWER
    ),
    "commonsense_qa": Task(
        "commonsense_reasoning", "2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a", "commonsense_qa"
    ),
    "copa": Task("commonsense_reasoning", "595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846", "copa"),
    "lambada_openai": Task(
        "language_understanding", "411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc", "lambada_openai"
    ),
    "openbook_qa": Task(
        "commonsense_reasoning", "adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09", "openbookqa"
    ),
    "piqa": Task(
        "commonsense_reasoning", "d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0", "piqa", _ANSWER
    ),
    "siqa": Task(
        "commonsense_reasoning", "2722a2c30a08dfaee4c5210eeb318dc82c73d675bda32a920b749ae4e2b89598", "social_iqa"
    ),
    "winograd_wsc": Task(
        "language_understanding", "746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e", "wsc273"
    ),
    "winogrande": Task(
        "language_understanding", "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7", "winogrande"
    ),
}
NAMES = ("hellaswag", *TASKS, "everyday")


class Evaluation(Protocol):
    """A set that is tokenised and ready to be asked of any model, again and again."""

    @property
    def requests(self) -> Sequence[Request]:
        """What to score."""

    def as_json(self, scores: Scores) -> dict[str, Any]:
        """The figures that the scores of `requests` come to."""


def check_names(names: Sequence[str]) -> None:
    """Refuse a task that is not known.

    Raises:
        GPT2LabError: naming the task, the nearest one that is known, and all of them.
    """
    for name in names:
        if name not in NAMES:
            raise GPT2LabError(
                f"unknown task {name!r}{did_you_mean(name, NAMES)} (known: {', '.join(NAMES)}; "
                "or lm_eval:NAME for any task of lm-evaluation-harness)"
            )


def find(name: str, mirror: str | Path | None = None, folder: str | Path | None = None) -> Path:
    """The file of a task: in the package, or in `folder`, or cached, mirrored or downloaded.

    Args:
        folder: looked through first, for `NAME.jsonl` whatever it holds; elsewhere the sha256 decides.

    Raises:
        GPT2LabError: nothing has it.
    """
    if name == "everyday":
        return Path(__file__).parent / "everyday.jsonl"
    if folder is not None and (given := Path(folder) / f"{name}.jsonl").is_file():
        return given
    task = TASKS[name]
    return resources.find(f"eval/{name}.jsonl", task.sha256, mirror=mirror, url=f"{_URL}/{task.folder}/{name}.jsonl")


def load(name: str, path: Path, tokenizer: Tokenizer, *, limit: int | None = None, keep: bool = False) -> Evaluation:
    """Read and tokenise a set; `limit` and `keep` as in hellaswag.Evaluation.

    Raises:
        GPT2LabError: the file cannot be read, or a line is not as its kind asks; the message names the line.
    """
    task = TASKS.get(name)
    about = {"format": FOUNDRY if task else OWN, "sha256": sha256(path)}
    delimiter = task.delimiter if task else " "
    lines = list(jsonl.read(path))
    if "choices" in lines[0].values:
        read = [_choice(line, delimiter) for line in lines]
    elif "context_options" in lines[0].values:
        read = [_schema(line, delimiter) for line in lines]
    else:
        pairs = [(_prompt(line.text("context"), delimiter), f" {line.text('continuation').strip()}") for line in lines]
        chosen = multiple_choice.subset(pairs, limit)
        return _LastWords([multiple_choice.encode_pair(tokenizer, *pair) for pair in chosen], about)
    questions = multiple_choice.subset(read, limit)
    return _Choices(questions, multiple_choice.encode(tokenizer, questions, keep=keep), about)


@dataclass(frozen=True)
class _Choices:
    questions: list[Question]
    requests: list[Request]
    about: dict[str, Any]

    def as_json(self, scores: Scores) -> dict[str, Any]:
        return multiple_choice.choose(self.questions, scores, {"_norm": scores.tokens}).as_json() | self.about


@dataclass(frozen=True)
class _LastWords:
    requests: list[Request]
    about: dict[str, Any]

    def as_json(self, scores: Scores) -> dict[str, Any]:
        right, total = int(scores.greedy.sum()), len(self.requests)
        figures = {
            "acc": right / total,
            "correct": right,
            "predictions": scores.greedy.tolist(),
            "total": total,
            "interval95": multiple_choice.interval95(right, total),
            "perplexity": float(np.exp(min(scores.loss.mean(), 700))),  # of the last words; beyond e^700 lies infinity
        }
        return figures | self.about


def _prompt(text: str, delimiter: str) -> str:
    return f"{text.strip()}{delimiter}".rstrip()


def _choice(line: jsonl.Line, delimiter: str) -> Question:
    choices = line.texts("choices")
    spaced = tuple(choice if choice.startswith(" ") else f" {choice}" for choice in choices)
    return Question((_prompt(line.text("query"), delimiter),), spaced, line.index("gold", len(choices)))


def _schema(line: jsonl.Line, delimiter: str) -> Question:
    options = line.texts("context_options")
    prompts = tuple(_prompt(option, delimiter) for option in options)
    continuation = f" {line.text('continuation').strip()}"
    return Question(prompts, (continuation,) * len(options), line.index("gold", len(options)))
