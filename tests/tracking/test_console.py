"""Lines on the terminal: their formats, when they are printed, their width and color."""

import itertools
import json
import logging
import math
import re
import sys

import pytest

from gpt2lab import formatting, progress
from gpt2lab.tracking import console as consoles
from gpt2lab.tracking.console import Console, format_sample

VALUES = {
    "train/loss": 3.103271,
    "train/lr": 6e-5,
    "train/grad_norm": 0.2596,
    "perf/step_ms": 555.33,
    "perf/tokens_per_second": 944104.07,
}
RESULTS = {
    "val/loss": 3.1078,
    "val/bits_per_byte": 1.2345,
    "hellaswag/acc_norm": 0.297,
    "hellaswag/harness_acc_norm": 0.3114,
}


def printed(console: Console, last_step: int, capsys, first_step: int = 1) -> list[int]:
    """The steps of the lines that are printed for the steps of a run."""
    for step in range(first_step, last_step + 1):
        console.log(step, VALUES)
    return [int(step) for step in re.findall(r"^step +(\d+)", capsys.readouterr().out, re.MULTILINE)]


@pytest.fixture
def clock(monkeypatch) -> dict[str, float]:
    now = {"now": 0.0}
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now["now"])
    return now


def test_a_short_line_has_the_digits_that_mean_something(capsys):
    Console(19073, 0, every=1, terminal=False).log(9067, VALUES | {"perf/mfu": 0.384})
    assert capsys.readouterr().out == "step  9067/19073  loss 3.10  lr 6.0e-5  944k tok/s  MFU 38%\n"
    Console(600, 0, every=1, terminal=False).log(2, VALUES | {"train/loss": 0.00312, "perf/tokens_per_second": 1234})
    assert capsys.readouterr().out == "step   2/600  loss 0.0031  lr 6.0e-5  1.2k tok/s\n"


def test_a_narrow_terminal_breaks_lines_between_measurements(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for terminal, lines in (
        (True, ["step  9067/19073  loss 3.10  lr 6.0e-5", "  944k tok/s  MFU 38%"]),
        (False, ["step  9067/19073  loss 3.10  lr 6.0e-5  944k tok/s  MFU 38%"]),
    ):
        console = Console(19073, 0, every=1, terminal=terminal)
        console.log(9067, VALUES | {"perf/mfu": 0.384})
        console.log(9068, {"val/loss": 3.1078, "val/bits_per_byte": 1.2345})
        console.close()
        printed = capsys.readouterr().out.splitlines()
        assert printed[: len(lines)] == lines
        results = ["step  9068/19073  val loss 3.108", "  1.234 bits/byte"]
        assert printed[len(lines) :] == (results if terminal else ["".join(results)])


def test_a_rate_is_the_mean_since_the_last_line(capsys):
    console = Console(10, 0, every=2, terminal=False)
    console.log(1, VALUES | {"perf/step_ms": 1000, "perf/tokens_per_second": 3000})
    console.log(2, VALUES | {"perf/step_ms": 3000, "perf/tokens_per_second": 1000})
    assert "1.5k tok/s" in capsys.readouterr().out  # 6,000 tokens in 4 s


@pytest.mark.parametrize("value", [9.99999, 1e8, math.inf, math.nan])
def test_no_line_is_wider_than_80_columns(capsys, clock, value):
    console = Console(100_000, 0, every=1, terminal=False)
    wide = {"train/loss": min(value, 999.0), "train/lr": 1e-10, "perf/mfu": 1.0, "perf/tokens_per_second": value}
    for step in (99_997, 99_998):
        console.log(step, VALUES | wide | RESULTS | {"val/loss": min(value, 99.0)})
        clock["now"] += 360_000
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # the step, the validation loss and HellaSwag, twice
    assert max(map(len, lines)) <= 80


def test_the_format_of_build_nanogpt(capsys):
    console = Console(19073, 0, every=1, terminal=False, log_format="build-nanogpt")
    console.log(19067, VALUES | {"val/loss": 3.2})
    assert capsys.readouterr().out == (
        "step 19067 | loss: 3.103271 | lr 6.0000e-05 | norm: 0.2596 | dt: 555.33ms | tok/sec: 944104.07\n"
        "step 19067 | val/loss: 3.2000\n"
    )


def test_json_lines_are_those_of_metrics_jsonl(capsys):
    console = Console(10, 0, every=5, terminal=True, log_format="json")  # without a bar
    for step in range(1, 11):
        console.log(step, VALUES | ({"val/loss": math.nan} if step == 7 else {}))
    console.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [5, 7, 10]
    assert lines[0] == {"step": 5, **VALUES}
    assert lines[1]["val/loss"] is None


def test_every_nth_step_the_last_step_and_all_results_are_printed(capsys):
    console = Console(11, 0, every=5, terminal=False)
    for step in range(12):
        console.log(step, (VALUES if step else {}) | ({"val/loss": 3.2} if step in (0, 7) else {}))
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.findall(r"\d+", line)[0]) for line in lines] == [0, 5, 7, 10, 11]
    assert lines[0] == "step  0/11  val loss 3.200"


@pytest.mark.parametrize("steps", [6, 50, 51, 300, 600, 5000, 19073])
def test_auto_prints_some_dozens_of_lines_of_a_fast_run(capsys, clock, steps):
    lines = printed(Console(steps, 0, every="auto", terminal=False), steps, capsys)
    assert min(steps, 20) <= len(lines) <= 52
    assert {1, steps} <= set(lines)
    assert len(set(map(int.__sub__, lines[2:-1], lines[1:-2]))) <= 1  # equal distances between the first and the last


def test_auto_prints_a_line_a_minute_of_a_slow_run(capsys, clock):
    console = Console(19073, 0, every="auto", terminal=False)
    for step in range(1, 31):
        console.log(step, VALUES)
        clock["now"] += 20
    steps = [int(step) for step in re.findall(r"^step +(\d+)", capsys.readouterr().out, re.MULTILINE)]
    assert steps == list(range(1, 31, 3))


def test_a_terminal_has_a_progress_bar_in_the_display_of_all_phases(capsys, caplog):
    caplog.set_level(logging.INFO)
    console = Console(10, 0, every=5, terminal=True)
    (bar,) = progress._display._phases
    for step in range(1, 11):
        console.log(step, VALUES)
    assert (bar.completed, bar.total) == (10, 10)
    console.close()
    assert not progress._display._phases
    assert "step  5/10  loss" in capsys.readouterr().out


def test_results_are_colored_on_a_terminal_only_and_not_with_no_color(capsys, monkeypatch):
    for is_terminal, no_color in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
        Console(10, 0, every=5, terminal=False).log(3, RESULTS)
        assert ("\x1b[" in capsys.readouterr().out) == (is_terminal and not no_color)


def test_guard_counters_are_not_printed(capsys):
    Console(10, 0, every=5, terminal=False).log(3, VALUES | {"guard/skipped": 1.0})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds_per_step", "left"),
    [(0.25, "40 s"), (5, "13 min"), (27, "1 h 12 min"), (1800, "3 d 8 h"), (0.001, "0 s")],
)
def test_lines_end_with_the_time_left(capsys, clock, seconds_per_step, left):
    """From the steps of this process, without the first one, which compiles."""
    console = Console(1000, 799, every=20, terminal=False)
    clock["now"] += 600
    for step in range(800, 1001):
        console.log(step, VALUES)
        clock["now"] += seconds_per_step
    lines = capsys.readouterr().out.splitlines()
    assert "left" not in lines[0] + lines[-1]
    assert lines[2].endswith(f"  left {left}")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (850, "850"), (999.6, "1.0k"), (1234, "1.2k"), (9960, "10k"), (944104, "944k"), (999600, "1.0M")],
)
def test_counts_have_two_or_three_digits(number, text):
    assert formatting.format_count(number) == text


def test_a_sample_is_text_of_at_most_80_columns_without_control_characters():
    from rich.cells import cell_len

    text = "Hello this is AI model,\n\n\n \n  indented \x1b[31m red\x00 \t" + "word " * 30 + "\u6f22" * 60 + "\n\n"
    lines = format_sample(text).split("\n")
    assert lines[:2] == ["  | Hello this is AI model,", "  |"]
    assert lines[2].startswith("  |   indented \ufffd[31m red\ufffd ")
    assert max(map(cell_len, lines)) <= 80
    assert "\\n" not in "".join(lines)
    assert sum("\u6f22" in line for line in lines) == 2
