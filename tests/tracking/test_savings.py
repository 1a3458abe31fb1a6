"""Where one run reaches the final loss of another: in tokens, in time, and on the page."""

import json
from pathlib import Path

import pytest

from gpt2lab.config import Config
from gpt2lab.tracking import records, report, savings


def make_run(folder: Path, name: str, losses: dict[int, float], step_ms: float, **changes) -> Path:
    """A run directory whose validation losses are given by step; a step of 100 tokens."""
    values = {
        "run": {"name": name},
        "data": {"source": changes.get("source", "stdlib")},
        "model": {"block_size": 10, "vocab_size": changes.get("vocab_size", 300)},
        "train": {
            "total_batch_size": changes.get("tokens", 100),
            "max_steps": max(losses),
            "eval_tokens": changes.get("eval_tokens", 1000),
        },
    }
    path = folder / name
    path.mkdir()
    (path / "config.yaml").write_text(Config.model_validate(values).to_yaml())
    facts = {"hardware": {"cpu": changes.get("cpu", "a CPU")}}
    facts |= {"data": {"source": values["data"]["source"], "val_shard": "val_000000.npy"} | changes.get("data", DATA)}
    (path / "environment.json").write_text(json.dumps(facts))
    lines = []
    for step in range(max(losses) + 1):
        line = {"step": step} | ({"train/loss": 5.0, "perf/step_ms": step_ms} if step else {})
        lines.append(json.dumps(line | ({"val/loss": losses[step]} if step in losses else {})))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return path


DATA = {"train_tokens": 9000, "val_tokens": 2000}
SLOW, FAST = {0: 10.0, 50: 5.0, 100: 4.0}, {0: 10.0, 30: 4.5, 40: 3.5, 60: 3.0}


def describe(tmp_path, **changes):
    of_slow = {key.removeprefix("slow_"): changes.pop(key) for key in list(changes) if key.startswith("slow_")}
    slow = make_run(tmp_path, "slow", SLOW, 10, **of_slow)
    fast = make_run(tmp_path, "fast", FAST, changes.pop("step_ms", 20), **changes)
    return savings.describe([records.read(slow), records.read(fast)])


def test_the_loss_is_interpolated_between_evaluations(tmp_path):
    """`fast` is at 4.0 after 35 steps of 20 ms, `slow` after 100 of 10 ms."""
    (sentence,) = describe(tmp_path)
    assert sentence.startswith("fast reaches the final validation loss of slow, 4.000, with 2.9 times fewer tokens")
    assert sentence.endswith("and in 1.4 times less training time.")


def test_more_time_for_fewer_tokens_is_said(tmp_path):
    (sentence,) = describe(tmp_path, step_ms=57.2)
    assert sentence.endswith("and in 2.0 times the training time.")


def test_tokens_count_not_steps(tmp_path):
    assert "1.4 times fewer tokens" in describe(tmp_path, tokens=200)[0]
    (tmp_path / "again").mkdir()
    assert describe(tmp_path / "again", tokens=400) == []  # 35 steps are 14,000 tokens, more than 10,000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "tinyshakespeare"}, "different text (stdlib, tinyshakespeare)"),
        ({"vocab_size": 256}, "different tokens (model.vocab_size 300, 256)"),
        ({"eval_tokens": 500}, "different numbers of tokens (1000, 500, train.eval_tokens)"),
        ({"data": DATA | {"val_tokens": 1999}}, "different validation data"),
        ({"data": DATA | {"train_tokens": 8999}}, "different validation data"),
    ],
)
def test_runs_whose_losses_differ_in_meaning_are_not_compared(tmp_path, change, reason, caplog):
    assert describe(tmp_path, **change) == []
    page = report.write(tmp_path / "slow", tmp_path / "fast")[0].read_text()
    for text in (page, caplog.text):  # on the terminal, too
        assert reason in text
        assert "do not compare" in text


@pytest.mark.parametrize(
    "change",
    [
        {"eval_tokens": 3000, "slow_eval_tokens": 2500},  # more than the split has
        {"source": "fineweb-edu", "slow_source": "fineweb-edu", "data": DATA | {"train_tokens": 8999}},
    ],
)
def test_the_same_validation_tokens_are_compared(tmp_path, change):
    assert len(describe(tmp_path, **change)) == 1


def test_a_padded_vocabulary_has_the_same_tokens(tmp_path):
    assert "2.9 times fewer tokens" in describe(tmp_path, slow_vocab_size=50257, vocab_size=50304)[0]


def test_times_on_other_hardware_are_not_compared(tmp_path):
    (sentence,) = describe(tmp_path, cpu="another CPU")
    assert sentence.endswith("times fewer tokens.")


def test_the_page_shows_it_over_tokens_and_over_time(tmp_path):
    folders = [make_run(tmp_path, "slow", SLOW, 10), make_run(tmp_path, "fast", FAST, 20)]
    page, *pictures = report.write(*folders)
    text = page.read_text()
    assert "fast reaches the final validation loss of slow" in text
    assert "minutes of training" in text
    assert any(picture.name.endswith("loss_over_time.png") for picture in pictures)
