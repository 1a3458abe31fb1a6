"""CORE: one number for a base model, the mean of 22 centered accuracies (DCLM, Li et al. 2024, arXiv 2406.11794).

    Bundle ──task by task──▶ prompts ──scoring──▶ answers ──▶ accuracy ──centered──▶ mean

    centered = (accuracy - baseline) / (1 - baseline)        0: as random answers, 1: all correct

The rules are nanochat's, so that the result can be compared with its leaderboard: few_shot.py has those of the prompts,
core_bundle.py the files. A question is answered with the choice whose tokens have the lowest mean loss; a continuation
is correct if every token of it is the model's most likely one.
"""

from typing import Any

import numpy as np

from gpt2lab import progress
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.evaluation import few_shot, multiple_choice, scoring
from gpt2lab.evaluation.core_bundle import Bundle, Task
from gpt2lab.evaluation.few_shot import LanguageModelingItem, Prompts
from gpt2lab.evaluation.scoring import Scores
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision


def measure(
    model: LanguageModel,
    tokenizer: Tokenizer,
    bundle: Bundle,
    *,
    batch_tokens: int | None = None,
    dist: DistContext,
    precision: Precision,
) -> dict[str, Any]:
    """Evaluate all tasks, one after the other: the ids of one task are in memory at a time.

    Args:
        model: as for `scoring.score`.
        tokenizer: GPT-2's.
        bundle: the tasks.
        batch_tokens: tokens of a forward pass; by device unless given.
        dist: the ranks that share the work.
        precision: of the matrix products.

    Returns:
        By JSON key: `core`, `tasks` by label, `total`, `sha256`; the same on every rank.

    Raises:
        GPT2LabError: the model cannot score the texts.
    """
    tasks = {}
    for task in bundle.tasks:
        with progress.Phase(f"encoding {task.label}"):
            prompts = few_shot.encode(tokenizer, task.items, task.shots, task.delimiter, model.config.block_size)
        scores = scoring.score(
            model,
            prompts.requests,
            batch_tokens=batch_tokens,
            greedy=task.type == "language_modeling",
            dist=dist,
            precision=precision,
            name=task.label,
        )
        tasks[task.label] = count_correct(task, prompts, scores)
    return {
        "core": float(np.mean([figures["centered"] for figures in tasks.values()])),
        "tasks": tasks,
        "total": sum(figures["total"] for figures in tasks.values()),
        "sha256": bundle.sha256,
    }


def count_correct(task: Task, prompts: Prompts, scores: Scores) -> dict[str, Any]:
    """The figures of a task.

    Args:
        task: the task.
        prompts: of its items.
        scores: of the prompts' requests.

    Returns:
        By JSON key: `acc`, `centered`, `baseline`, `correct`, `total`, `predictions` (of each item the choice, or
        whether the continuation was predicted), `interval95` of `acc`, `type`, `shots`, `sha256`, and `truncated` if
        texts were.
    """
    predictions: list[Any]
    if task.type == "language_modeling":
        greedy = dict(zip(prompts.owners, scores.greedy.tolist(), strict=True))
        predictions = [greedy.get((index, 0), False) for index in range(len(task.items))]
        correct = sum(predictions)
    else:
        predictions = _predict(len(task.items), prompts, scores)
        gold = [item.gold for item in task.items if not isinstance(item, LanguageModelingItem)]
        correct = sum(answer == right for answer, right in zip(predictions, gold, strict=True))
    total = len(task.items)
    figures = {
        "acc": correct / total,
        "centered": (correct / total - task.baseline) / (1 - task.baseline),
        "baseline": task.baseline,
        "correct": correct,
        "total": total,
        "predictions": predictions,
        "interval95": multiple_choice.interval95(correct, total),
        "type": task.type,
        "shots": task.shots,
        "sha256": task.sha256,
    }
    return figures | ({"truncated": prompts.truncated} if prompts.truncated else {})


def _predict(items: int, prompts: Prompts, scores: Scores) -> list[int]:
    """Of each item the index of the text with the lowest mean loss; the first one of equals.

    A text without scored tokens has no loss. As in nanochat, where it is not a number, it is the answer if it is the
    first text of its item, and otherwise never.
    """
    predictions = [0] * items
    lowest: dict[int, float] = {}  # index of an item -> mean loss of its prediction
    has_first = {index for index, number in prompts.owners if number == 0}
    for (index, number), loss in zip(prompts.owners, scores.loss / scores.tokens, strict=True):
        if index in has_first and loss < lowest.get(index, float("inf")):
            predictions[index], lowest[index] = number, loss
    return predictions
