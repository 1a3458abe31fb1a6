"""CORE: the prompts and what is scored of them, compared with one forward pass per text; the mean; the command."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2lab import cli
from gpt2lab.data.tokenizer import EOT
from gpt2lab.evaluation import core, few_shot, jsonl, multiple_choice, scoring
from gpt2lab.evaluation.core_bundle import Task
from tests.evaluation.conftest import make_model
from tests.evaluation.core_items import TYPES, make_items, read_items, write_bundle

REPOSITORY = Path(__file__).parent.parent.parent
BLOCK_SIZE = 64


# The rules again, written as plainly as possible: whole texts as strings, one forward pass for each of them.


def answers(model, tokenizer, type_: str, items: list[dict], shots: int, delimiter: str) -> list[Any]:
    """The prediction for each item."""
    return [answer(model, tokenizer, type_, items, index, shots, delimiter) for index in range(len(items))]


def answer(model, tokenizer, type_: str, items: list[dict], index: int, shots: int, delimiter: str) -> Any:
    others = [n for n in range(len(items)) if n != index]
    start, item = "", items[index]
    for n in random.Random(1234 + index).sample(others, shots):
        start += solved(type_, items[n], delimiter) + "\n\n"
    if type_ == "language_modeling":
        start += item["context"].strip() + delimiter
        ids = encode(tokenizer, start + item["continuation"])
        begin = len(encode(tokenizer, start.strip()))
        return all(best for _, best in forward(model, ids, begin))
    if type_ == "schema":
        texts = [f"{start}{context}{delimiter}{item['continuation']}" for context in item["context_options"]]
    else:
        texts = [f"{start}{item['query']}{delimiter}{choice}" for choice in item["choices"]]
    all_ids = [encode(tokenizer, text) for text in texts]
    if type_ == "schema":
        common = len(common_start([ids[::-1] for ids in all_ids]))
        begins = [len(ids) - common for ids in all_ids]
    else:
        begins = [len(common_start(all_ids))] * len(texts)
    means = [mean_loss(model, ids, begin) for ids, begin in zip(all_ids, begins, strict=True)]
    return means.index(min(means))


def solved(type_: str, item: dict, delimiter: str) -> str:
    if type_ == "language_modeling":
        return item["context"].strip() + delimiter + item["continuation"]
    if type_ == "schema":
        return item["context_options"][item["gold"]] + delimiter + item["continuation"]
    return item["query"] + delimiter + item["choices"][item["gold"]]


def common_start(all_ids: list[list[int]]) -> list[int]:
    length = 0
    while all(ids[: length + 1] == all_ids[0][: length + 1] and len(ids) > length for ids in all_ids):
        length += 1
    return all_ids[0][:length]


def encode(tokenizer, text: str) -> list[int]:
    return [EOT, *tokenizer.encode(text)]


def mean_loss(model, ids: list[int], begin: int) -> float:
    losses = [loss for loss, _ in forward(model, ids, begin)] if begin > 0 else []
    return sum(losses) / len(losses) if losses else float("nan")


@torch.no_grad()
def forward(model, ids: list[int], begin: int) -> list[tuple[float, bool]]:
    """Loss of each token from `begin` on, and whether it was the most likely one, for the last tokens that fit."""
    cut = max(0, len(ids) - model.config.block_size)
    ids, begin = ids[cut:], begin - cut
    assert begin > 0  # the tests have no answer that fills the window
    logs = logits(model, ids).log_softmax(-1)
    return [(-logs[n - 1, ids[n]].item(), logs[n - 1].argmax().item() == ids[n]) for n in range(begin, len(ids))]


def logits(model, ids: list[int]) -> torch.Tensor:
    return model.lm_head(model.trunk(torch.tensor([ids]), torch.arange(len(ids))[None], None))[0].float()


def make_task(type_: str, items: list[dict], shots: int, delimiter: str, baseline: float = 0.25) -> Task:
    content = "\n".join(map(json.dumps, items)).encode()
    parsed = jsonl.parse(content, few_shot.ITEM_TYPES[type_], "items")
    return Task("task", type_, shots, delimiter, baseline, parsed, "0" * 64)


def evaluate(model, tokenizer, task: Task, dist, precision) -> dict[str, Any]:
    prompts = few_shot.encode(tokenizer, task.items, task.shots, task.delimiter, model.config.block_size)
    greedy = task.type == "language_modeling"
    scores = scoring.score(model, prompts.requests, batch_tokens=256, greedy=greedy, dist=dist, precision=precision)
    assert not scores.truncated.any()  # cut before
    return core.count_correct(task, prompts, scores)


@torch.no_grad()
def with_true_continuations(model, tokenizer, items: list[dict], delimiter: str) -> list[dict]:
    """Zero-shot, every second item is continued as the model does."""
    for item in items[::2]:
        ids = encode(tokenizer, (item["context"].strip() + delimiter).strip())[1 - model.config.block_size :]
        word = tokenizer.decode([logits(model, ids)[-1].argmax().item()])
        item["continuation"] = word.removeprefix(delimiter)
    return items


@pytest.mark.parametrize("shots", [0, 1, 10])
@pytest.mark.parametrize("delimiter", [" ", "\nAnswer: ", ": "])
@pytest.mark.parametrize("type_", TYPES)
def test_predictions_are_those_of_one_forward_pass_per_text(model, tokenizer, alone, fp32, type_, delimiter, shots):
    items = make_items(type_, 16, seed=shots, words=60 if shots == 0 else 10)
    if type_ == "language_modeling" and shots == 0 and delimiter == " ":
        items = with_true_continuations(model, tokenizer, items, delimiter)
    figures = evaluate(model, tokenizer, make_task(type_, items, shots, delimiter), alone, fp32)
    expected = answers(model, tokenizer, type_, items, shots, delimiter)
    assert figures["predictions"] == expected
    right = [True] * len(items) if type_ == "language_modeling" else [item["gold"] for item in items]
    correct = sum(a == b for a, b in zip(expected, right, strict=True))
    assert (figures["correct"], figures["total"]) == (correct, 16)
    assert figures["acc"] == correct / 16
    assert figures["centered"] == pytest.approx((correct / 16 - 0.25) / 0.75)
    assert figures["interval95"] == multiple_choice.interval95(correct, 16)
    if shots == 10:
        assert figures["truncated"] > 0
    if type_ == "language_modeling" and shots == 0 and delimiter == " ":
        assert correct >= 4


def texts(tokenizer, type_: str, items: list[dict], shots: int = 0, delimiter: str = " ", block_size: int = 1000):
    prompts = few_shot.encode(tokenizer, make_task(type_, items, shots, delimiter).items, shots, delimiter, block_size)
    return [tuple(map(tokenizer.decode, request)) for request in prompts.requests]


def test_prompts(tokenizer):
    choice = {"query": "Q? ", "choices": ["a b", "a c"], "gold": 1}
    assert texts(tokenizer, "multiple_choice", [choice] * 2, 1, "\nAnswer: ")[:2] == [
        ("<|endoftext|>Q? \nAnswer: a c\n\nQ? \nAnswer: a", " b"),  # what choices have in common is not scored
        ("<|endoftext|>Q? \nAnswer: a c\n\nQ? \nAnswer: a", " c"),
    ]
    schema = {"context_options": ["Ann saw Bea", "Ann saw Cleo and Bea"], "continuation": "sing.", "gold": 0}
    assert texts(tokenizer, "schema", [schema]) == [
        ("<|endoftext|>Ann saw", " Bea sing."),  # what contexts have in common at their end is scored
        ("<|endoftext|>Ann saw Cleo and", " Bea sing."),
    ]
    last = {"context": " One two \n", "continuation": "three"}
    assert texts(tokenizer, "language_modeling", [last] * 3, 2)[0] == (
        "<|endoftext|>One two three\n\nOne two three\n\nOne two",
        " three",
    )
    number = {"query": "2 + 2 =", "choices": [4, "5"], "gold": 0}
    assert texts(tokenizer, "multiple_choice", [number])[0][1] == " 4"


def test_a_long_text_is_cut_on_the_left_and_its_answer_stays(tokenizer):
    item = {"query": "one two three four five six", "choices": ["a", "b"], "gold": 0}
    assert texts(tokenizer, "multiple_choice", [item], block_size=4)[0] == (" four five six", " a")
    item["choices"] = ["a b c d e f g", "x"]  # longer than the window: its last tokens, without the first one's loss
    assert texts(tokenizer, "multiple_choice", [item], block_size=4)[0] == (" d", " e f g")


def test_a_text_in_parts_has_the_ids_of_the_whole(tokenizer):
    rng = random.Random(0)
    pieces = [" ", "\n", "\n\n", "\u00a0", "\x1c", "\u2003", "a", "it'", "s", "'ll", "12", "!?", "é", "東", "🙂", ""]
    for _ in range(2000):
        parts = ["".join(rng.choices(pieces, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 5))]
        whole = tokenizer.encode("".join(parts))
        assert few_shot._encode_text(lambda part: tuple(tokenizer.encode(part)), parts) == (EOT, *whole), parts
        assert "".join(few_shot._strip(parts)) == "".join(parts).strip()


def test_examples_are_other_items_and_always_the_same():
    for index in range(12):
        drawn = few_shot.draw(12, index, 10)
        assert len({*drawn}) == 10
        assert index not in drawn
        assert drawn == random.Random(1234 + index).sample([n for n in range(12) if n != index], 10)


def test_choices_without_a_token_of_their_own(model, tokenizer, alone, fp32):
    def predict(*choices: str) -> int:
        item = {"query": "Q", "choices": choices, "gold": 0}
        return evaluate(model, tokenizer, make_task("multiple_choice", [item], 0, " "), alone, fp32)["predictions"][0]

    assert predict("the dog", "the dog sings") == 0  # nanochat takes the first one, whose mean is not a number
    assert predict("the dog sings", "the dog") == 0  # and no other
    assert predict("the dog", "the dog") == 0


def test_choices_share_a_row(tokenizer):
    item = {"query": "one two three", "choices": ["a", "b", "c"], "gold": 0}
    prompts = few_shot.encode(tokenizer, make_task("multiple_choice", [item], 0, " ").items, 0, " ", 64)
    assert len({id(request.context) for request in prompts.requests}) == 1


def test_core_is_the_mean_of_the_centered_accuracies(model, tokenizer, alone, fp32, tmp_path):
    from gpt2lab.evaluation import core_bundle

    bundle = core_bundle.load(write_bundle(tmp_path, tasks=3))
    result = core.measure(model, tokenizer, bundle, batch_tokens=256, dist=alone, precision=fp32)
    assert result["core"] == pytest.approx(np.mean([t["centered"] for t in result["tasks"].values()]))
    assert result["total"] == 18
    assert [task["baseline"] for task in result["tasks"].values()] == pytest.approx([0, 0.25, 0.62])


# The command.


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    workspace = tmp_path_factory.mktemp("core")
    write_bundle(workspace / "bundle")
    make_model(BLOCK_SIZE).save_pretrained(workspace / "model")
    return workspace


def arguments(workspace: Path, *more: str) -> list[str]:
    model, data = str(workspace / "model"), str(workspace / "bundle")
    command = ["--model-checkpoint", model, "--tasks", "core", "--data-dir", data]
    return [*command, "--device", "cpu", "--precision", "fp32", *more]


def test_a_bundle_of_22_tasks_through_the_command(workspace, capsys, tokenizer):
    assert cli.main(["evaluate", *arguments(workspace, "--json")]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)["tasks"]["core"]
    assert "CORE: 22 tasks, 132 items" in err
    assert list(result["tasks"]) == [f"task_{number:02d}" for number in range(22)]
    model = make_model(BLOCK_SIZE)
    for number in (0, 4, 8, 21):  # the items of a task, in nanochat's order
        label, type_ = f"task_{number:02d}", TYPES[number % 3]
        items = read_items(workspace / "bundle", label)
        random.Random(1337).shuffle(items)
        delimiter = "\nAnswer: " if number % 2 else " "
        expected = answers(model, tokenizer, type_, items, (0, 1, 3)[number // 3 % 3], delimiter)
        assert result["tasks"][label]["predictions"] == expected
    assert cli.main(["evaluate", *arguments(workspace)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"CORE: {result['core']:.4f} (mean of 22 centered; 132 items)"
    assert max(len(line) for line in shown.splitlines() if str(workspace) not in line) <= 80
    assert "0.2565" in shown


def test_a_limit_keeps_the_first_items_after_the_shuffle(workspace, capsys, tokenizer):
    assert cli.main(["evaluate", *arguments(workspace, "--json", "--limit", "4")]) == 0
    result = json.loads(capsys.readouterr().out)["tasks"]["core"]
    items = read_items(workspace / "bundle", "task_06")
    random.Random(1337).shuffle(items)
    expected = answers(make_model(BLOCK_SIZE), tokenizer, "multiple_choice", items[:4], 3, " ")
    assert result["tasks"]["task_06"]["predictions"] == expected
    assert cli.main(["evaluate", *arguments(workspace, "--limit", "3")]) == 2
    assert "task_06 has 3 examples in each prompt, of 3 items; raise --limit to 4" in capsys.readouterr().err
    assert cli.main(["evaluate", *arguments(workspace, "--limit", "4")]) == 0
    assert "not comparable" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_the_number_of_ranks_does_not_change_the_result(workspace, capsys):
    assert cli.main(["evaluate", *arguments(workspace, "--json", "--batch-tokens", "256")]) == 0
    alone = json.loads(capsys.readouterr().out)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "evaluate.py", *arguments(workspace, "--json", "--batch-tokens", "256")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["tasks"] == alone["tasks"]
