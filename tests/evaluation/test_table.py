"""The table of an evaluation: it fits on a terminal, and says which results random answers may give."""

from typing import Any

import pytest

from gpt2lab.evaluation import hellaswag, names
from gpt2lab.evaluation.table import render
from tests.terminal import COLUMNS


def accuracy(value: float, low: float, high: float, chance: float, **more: Any) -> dict[str, Any]:
    return {"acc": value, "acc_norm": value, "interval95": [low, high], "chance": chance, "total": 10_042, **more}


def render_tasks(figures: dict[str, Any]) -> str:
    loss = {"val_loss": 10.8251, "bits_per_byte": 10.1234, "val_tokens": 10_485_760}
    return render({"tasks": figures, **loss})


@pytest.mark.parametrize(
    ("low", "high", "above"), [(0.26, 0.28, True), (0.24, 0.26, False), (0.20, 0.22, False), (0.25, 0.27, False)]
)
def test_a_task_whose_interval_is_not_above_chance_is_named(low, high, above):
    shown = render_tasks({"boolq": accuracy((low + high) / 2, low, high, 0.25, format="LLM Foundry")})
    row = next(line for line in shown.splitlines() if line.startswith("boolq"))
    assert row.split()[4] == "0.2500"
    assert ("not above chance: boolq" in shown) is not above
    assert "includes" not in shown  # the interval may lie below chance


def test_a_table_of_all_tasks_fits_on_a_terminal():
    figures: dict[str, Any] = {
        name: accuracy(0.25, 0.2, 0.3, 0.25, format="LLM Foundry")
        for name in names.NAMES
        if name not in ("hellaswag", "core")
    }
    styles = {style: accuracy(0.25, 0.2, 0.3, 0.25, correct_norm=2510) for style in hellaswag.CONVENTIONS}
    long_name = "lm_eval:mmlu_high_school_government_and_politics_generative"
    shown = render_tasks({"hellaswag": styles} | figures | {long_name: accuracy(0.25, 0.2, 0.3, 0.25)})
    lines = shown.splitlines()
    assert max(map(len, lines)) <= COLUMNS, shown
    assert all(style in shown for style in hellaswag.CONVENTIONS)
    assert long_name.removeprefix("lm_eval:mmlu")[-10:] in shown
