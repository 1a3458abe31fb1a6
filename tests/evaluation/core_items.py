"""Items of CORE's three types, and an unpacked bundle of them."""

import json
import random
from pathlib import Path
from typing import Any

from tests.evaluation.conftest import sentence, write_jsonl

TYPES = ("multiple_choice", "schema", "language_modeling")


def make_items(type_: str, count: int, seed: int = 0, words: int = 8) -> list[dict[str, Any]]:
    """Items with what may go wrong: white space, other scripts, choices that begin alike or are equal."""
    rng = random.Random(seed)
    return [_make_item(type_, rng, words) for _ in range(count)]


def _make_item(type_: str, rng: random.Random, words: int) -> dict[str, Any]:
    def text(low: int, high: int) -> str:
        odd = rng.choice(["", "", " 東京", " 🙂 it's", " (42)", " 1,000"])
        return (
            rng.choice(["", "", " ", "\n"]) + sentence(rng, low, high) + odd + rng.choice(["", "", " ", "\n", "\u00a0"])
        )

    if type_ == "language_modeling":
        return {"context": text(1, words), "continuation": sentence(rng, 1, 2)}
    count = rng.randint(2, 4)
    if type_ == "schema":
        start, tail = text(1, words), rng.choice(["", " under the door"])
        contexts = [f"{start} {sentence(rng, 1, 2)}{tail}" for _ in range(count)]
        contexts = contexts[:1] * count if rng.random() < 0.1 else contexts
        return {"context_options": contexts, "continuation": text(1, 5), "gold": rng.randrange(count)}
    choices = [text(1, 6) for _ in range(count)]
    if rng.random() < 0.3:  # the end of one choice is the middle of another one
        choices[rng.randrange(count)] = f"{choices[0]} {sentence(rng, 1, 3)}"
    choices = choices[:1] * count if rng.random() < 0.1 else choices
    return {"query": text(1, words), "choices": choices, "gold": rng.randrange(count)}


def write_bundle(folder: Path, tasks: int = 22, items: int = 6) -> Path:
    """An unpacked bundle: tasks of all types with 0, 1 or 3 examples, and baselines of 0, 25 and 62 percent."""
    config, table = ["icl_tasks:"], ['Eval Task,"Task Category",Random baseline,Description']
    for number in range(tasks):
        label, type_ = f"task_{number:02d}", TYPES[number % 3]
        file = f"kind/{label}.jsonl"
        write_jsonl(folder / "eval_data" / file, make_items(type_, items, seed=number))
        shots = (0, 1, 3)[number // 3 % 3]
        config += ["-", f"  label: {label}", f"  dataset_uri: {file}", f"  num_fewshot: [{shots}]"]
        config += [f"  icl_task_type: {type_}", "  has_categories: true"]
        config += ['  continuation_delimiter: "\\nAnswer: " # between question and answer'] if number % 2 else []
        table.append(f'{label},"a, b",{(0, 25, 62)[number % 3]},"text, with a comma"')
    (folder / "core.yaml").write_text("\n".join(config) + "\n")
    (folder / "eval_meta_data.csv").write_text("\n".join([*table, 'other,x,50,""', ""]))
    return folder


def read_items(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "eval_data" / "kind" / f"{name}.jsonl").read_text().splitlines()]
