"""The sets of LLM Foundry and `everyday`: prompts, accuracies, and the published files."""

import json

import numpy as np
import pytest

from gpt2lab.errors import GPT2LabError
from gpt2lab.evaluation import names, tasks
from gpt2lab.evaluation.scoring import Scores, score
from gpt2lab.files import sha256
from tests.evaluation.conftest import write_jsonl

CHOICE = {"query": "Question: Why?\n", "choices": ["because", "no"], "gold": 0}
SCHEMA = {
    "context_options": ["Ann saw Bea because Ann", "Ann saw Bea because Bea"],
    "continuation": "looked.",
    "gold": 1,
}
LAST = {"context": "One two ", "continuation": "three"}


def texts(tokenizer, name, tmp_path, *items):
    task = tasks.load(tokenizer, name, write_jsonl(tmp_path / "task.jsonl", list(items)))
    return [(tokenizer.decode(context), tokenizer.decode(tail)) for context, tail in task.requests]


def test_prompts_are_those_of_llm_foundry(tokenizer, tmp_path):
    assert texts(tokenizer, "piqa", tmp_path, CHOICE) == [
        ("Question: Why?\nAnswer:", " because"),
        ("Question: Why?\nAnswer:", " no"),
    ]
    assert texts(tokenizer, "copa", tmp_path, CHOICE)[0] == ("Question: Why?", " because")
    assert texts(tokenizer, "winogrande", tmp_path, SCHEMA) == [(c, " looked.") for c in SCHEMA["context_options"]]
    assert texts(tokenizer, "lambada_openai", tmp_path, LAST) == [("One two", " three")]


def test_accuracies_of_all_formats(tokenizer, tmp_path):
    def figures(name, items, losses, greedy=False):
        task = tasks.load(tokenizer, name, write_jsonl(tmp_path / "task.jsonl", items))
        tokens = np.array([len(request.continuation) for request in task.requests])
        return task.as_json(Scores(np.array(losses), tokens, np.array(greedy), np.zeros(len(losses), bool)))

    two = [CHOICE | {"choices": [" a", " a b c"]}, CHOICE]
    values = figures("copa", two, [2.0, 3.0, 1.0, 4.0])  # means 2 1 | 1 4
    assert (values["acc"], values["acc_norm"], values["total"], values["format"]) == (1.0, 0.5, 2, "LLM Foundry")
    assert figures("winograd_wsc", [SCHEMA], [2.0, 1.0])["predictions"] == [1]
    values = figures("lambada_openai", [LAST, LAST], [np.log(2), np.log(8)], [True, False])
    assert (values["acc"], values["correct"], values["predictions"]) == (0.5, 1, [True, False])
    assert values["perplexity"] == pytest.approx(4)


BAD_LINES: dict[str, tuple[dict, str]] = {  # the line, and the field that the message must name
    "gold out of range": (CHOICE | {"gold": 2}, "gold"),
    "no gold": ({"query": "a", "choices": ["b", "c"]}, "gold"),
    "empty choice": (CHOICE | {"choices": ["", "a"]}, "choices: 0"),
    "one choice": (CHOICE | {"choices": ["a"]}, "choices"),
    "another format": (LAST, "query"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_the_error_names_line_and_field(tokenizer, tmp_path, case):
    bad, field = BAD_LINES[case]
    path = write_jsonl(tmp_path / "task.jsonl", [CHOICE, bad])
    with pytest.raises(GPT2LabError, match=f"task.jsonl: line 2: {field}"):
        tasks.load(tokenizer, "copa", path)


def test_an_unknown_task_names_the_nearest_one():
    with pytest.raises(GPT2LabError, match=r"hellaswang.* hellaswag\?"):
        names.check(["piqa", "hellaswang"])


def test_a_missing_file_names_the_mirror_option(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_URL", "http://127.0.0.1:9")
    with pytest.raises(GPT2LabError, match=r"eval/piqa\.jsonl.*--mirror"):
        tasks.find("piqa", tmp_path)


def test_everyday(tokenizer, model, alone, fp32):
    path = tasks.find("everyday")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) >= 24
    assert len({line["query"] for line in lines}) == len(lines)
    golds = [line["gold"] for line in lines]
    assert {golds.count(n) for n in range(4)} == {len(lines) // 4}
    task = tasks.load(tokenizer, "everyday", path)
    scores = score(model, task.requests, dist=alone, precision=fp32)
    assert not scores.truncated.any()  # short enough for the quickstart's window of 64
    figures = task.as_json(scores)
    assert (figures["total"], figures["format"]) == (len(lines), "gpt2lab")


@pytest.mark.parametrize("name", sorted(names.TASKS))
def test_the_published_files(shared_data, tokenizer, name):
    path = tasks.find(name, shared_data)
    assert sha256(path) == names.TASKS[name][1]
    task = tasks.load(tokenizer, name, path, limit=20)
    assert len(task.requests) >= 20
    assert all(len(context) and len(tail) for context, tail in task.requests)
