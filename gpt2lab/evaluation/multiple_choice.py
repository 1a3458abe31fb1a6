"""Multiple choice: questions in words, scored as continuations, counted as accuracies.

    Question (contexts, choices, gold) ──encode──▶ Requests ──scoring──▶ losses ──▶ Result (acc, acc_norm, predictions)

Whatever the benchmark, a model answers with the choice that it finds least surprising. Benchmarks differ in the words
around the choices (hellaswag.py, tasks.py) and in what a loss is divided by so that long choices stand a chance:

    acc         the sum over the choice's tokens, undivided
    acc_norm    the sum divided by a length: tokens (the mean loss), characters or bytes
"""

import contextlib
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gpt2lab import resources
from gpt2lab.data.tokenizer import EOT, NAME, Tokenizer
from gpt2lab.evaluation.scoring import Request, Scores

T = TypeVar("T")
SUBSET_SEED = 1337


class Question(NamedTuple):
    """One item. A choice is scored after `contexts[0]`, or where there are several contexts, each after its own."""

    contexts: tuple[str, ...]
    choices: tuple[str, ...]  # as they continue the context, with the space before
    gold: int


@dataclass(frozen=True)
class Result:
    """The answers to n questions under one way of counting."""

    gold: npt.NDArray[np.int64]  # (n,)
    predictions: npt.NDArray[np.int64]  # (n,) by summed loss
    normed: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # (n,) by the loss over a length

    def as_json(self) -> dict[str, Any]:
        """`acc`, `correct`, `predictions`; the same with the suffix of each `normed`; `total`, `interval95`.

        The interval is that of the last one that is there of acc and acc_norm.
        """
        values: dict[str, Any] = {}
        for suffix, chosen in {"": self.predictions, **self.normed}.items():
            correct = int((chosen == self.gold).sum())
            values |= {f"acc{suffix}": correct / len(self.gold), f"correct{suffix}": correct}
            values[f"predictions{suffix}"] = chosen.tolist()
        headline = values.get("correct_norm", values["correct"])
        return values | {"total": len(self.gold), "interval95": interval95(headline, len(self.gold))}


def subset(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the items in their order, always the same ones; all of them for None, 0 or a limit beyond."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[n] for n in sorted(random.Random(SUBSET_SEED).sample(range(len(items)), limit))]


def interval95(correct: int, total: int) -> list[float]:
    """Wilson's score interval for a share: where the accuracy on endless items of this kind lies, 19 times of 20."""
    z, share = 1.959964, correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [(centre + sign * spread) / (1 + z * z / total) for sign in (-1, 1)]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """The ids of a context and of what continues it, split where the text is split.

    White space at the end of the context goes to the continuation, as GPT-2's tokens begin with their space. Then no
    token crosses the border, and both together are the ids of the whole text, as lm-evaluation-harness has them. An
    empty context is <|endoftext|>.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    return Request(tokenizer.encode(stripped) or [EOT], tokenizer.encode(continuation))


def encode(tokenizer: Tokenizer, questions: Sequence[Question], *, keep: bool = False) -> list[Request]:
    """A request for every choice of every question, in order. A context of several choices is encoded once.

    Args:
        keep: also keep them in the cache folder, for the next time the same texts are asked for.
    """
    file = resources.cache_folder() / "tokens" / f"{_digest(questions)}.npz"
    if (kept := _read(file)) is not None:
        return kept
    requests = []
    for contexts, choices, _ in questions:
        known: dict[str, Sequence[int]] = {}
        for n, choice in enumerate(choices):
            context = contexts[n if len(contexts) > 1 else 0]
            if context in known and context == context.rstrip():
                requests.append(Request(known[context], tokenizer.encode(choice)))
            else:
                requests.append(encode_pair(tokenizer, context, choice))
                known[context] = requests[-1].context
    if keep:
        _write(file, requests)
    return requests


def choose(questions: Sequence[Question], scores: Scores, lengths: dict[str, npt.NDArray[Any]]) -> Result:
    """The choice with the lowest loss of every question, the first of equals.

    Args:
        lengths: by suffix (`_norm`), what to divide each choice's loss by, (choices of all questions,).
    """
    ends = np.cumsum([len(question.choices) for question in questions])

    def lowest(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        return np.array([part.argmin() for part in np.split(values, ends[:-1])], dtype=np.int64)

    gold = np.array([question.gold for question in questions], dtype=np.int64)
    normed = {suffix: lowest(scores.loss / length) for suffix, length in lengths.items()}
    return Result(gold, lowest(scores.loss), normed)


def _digest(questions: Sequence[Question]) -> str:
    texts = [[question.contexts, question.choices] for question in questions]
    return hashlib.sha256(f"{NAME} 1 {texts!r}".encode(errors="surrogatepass")).hexdigest()


def _read(file: Path) -> list[Request] | None:
    """What `_write` kept; None where there is nothing, or nothing whole."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            ids, lengths = kept["ids"].tolist(), kept["lengths"].tolist()
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # a damaged zip has an exception of its own, of a module that numpy imports late
        if type(error).__name__ == "BadZipFile":
            return None
        raise
    parts, start = [], 0
    for length in lengths:
        parts.append(ids[start : start + length])
        start += length
    return [Request(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


def _write(file: Path, requests: Sequence[Request]) -> None:
    """One file: all ids end to end, and the lengths of context, continuation, context, … No space is no error."""
    parts = [part for request in requests for part in request]
    temporary = file.with_name(f".tmp-{random.SystemRandom().randrange(1 << 60):x}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, ids=np.concatenate(parts).astype(np.uint16), lengths=np.array([len(p) for p in parts]))
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
