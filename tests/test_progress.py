"""Progress: logged where there is no terminal, bars that disappear where there is one."""

import contextlib
import io
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from gpt2lab import logs, progress
from tests.runs import REPOSITORY


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_long_phases_are_logged_with_the_time_left_and_short_ones_are_not(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with progress.Phase("short", 2) as phase:
        phase.advance()
    monkeypatch.setattr(progress, "LOG_EVERY", 0.05)
    with progress.Phase("long", 4) as phase, progress.Phase("of unknown length"):
        phase.update(1, "77 tokens")
        wait_for(lambda: "unknown" in caplog.text and "long: 25%, 77 tokens, " in caplog.text)
    assert " left" in caplog.text
    assert " so far" in caplog.text
    assert "short" not in caplog.text
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "progress"])


def test_an_announced_phase_is_logged_once_by_its_name(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "ANNOUNCE_AFTER", 0.05)
    with progress.Phase("loading", announce=True), progress.Phase("a step"):
        wait_for(lambda: caplog.messages)
        time.sleep(3 * progress._TICK)
    assert caplog.messages == ["loading"]


def test_the_time_left_is_in_proportion_to_the_work(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    phase, resumed = progress.Phase("all", 10), progress.Phase("the rest", 10, completed=6, skip_first=True)
    assert phase.seconds_left() is None
    now = 104.0
    phase.update(2)
    resumed.update(7)  # slow, as it compiles
    assert phase.seconds_left() == 16
    assert resumed.seconds_left() is None
    now = 105.0
    resumed.update(8)
    assert phase.seconds_left() == 15
    assert resumed.seconds_left() == 2


def test_a_process_whose_messages_are_not_shown_shows_no_progress(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logs.configure()
    with progress.Phase("of rank 1"):
        assert not progress._display._phases


def test_short_phases_are_not_drawn_when_they_end_and_share_a_thread(monkeypatch, caplog):
    """Such as the steps of a fast run, below the bar of the training."""
    caplog.set_level(logging.INFO)
    started, drawn, start = [], [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    monkeypatch.setattr(progress, "_TICK", 2.0)
    monkeypatch.setattr(progress, "SHOW_AFTER", 2.0)
    display = progress._Display()
    monkeypatch.setattr(progress, "_display", display)
    monkeypatch.setattr(display, "_live", object())
    monkeypatch.setattr(display, "_draw", lambda: drawn.append(True))
    for _ in range(20):
        with progress.Phase("a step"):
            pass
    assert not drawn
    assert len(started) == 1
    with progress.Phase("a long one") as phase:
        phase.shown = True
    assert drawn == [True]


@pytest.mark.parametrize("width", [80, 60, 30])
def test_bars_are_not_wider_than_the_terminal(width, phases):
    training = progress.Phase("training", 19_073)
    training.update(10_000, "step 10,000 of 19,073")
    training.began -= 10_000
    training._baseline = training.began, 0
    shown = [training, progress.Phase("writing checkpoint 10,000"), progress.Phase("step 10,001", 32)]
    terminal = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    terminal.print(progress._build_table(shown, width))
    lines = terminal.file.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("training")
    if width >= 60:
        assert "step 10,000 of 19,073, " in lines[0]
    if width == 80:
        assert "━" in lines[0]


def run_on_a_terminal(code: str) -> str:
    """What a process writes to a terminal."""
    master, slave = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        written = b""
        with contextlib.suppress(OSError):  # the end of the output
            while piece := os.read(master, 4096):
                written += piece
    os.close(master)
    assert process.returncode == 0, written
    return written.decode()


def test_bars_share_a_display_on_a_terminal_and_disappear():
    code = """
import time
from gpt2lab import logs, progress
progress.SHOW_AFTER = 0.05
logs.configure()
training = progress.Phase("training", 10, log=False)
training.update(2, "step 2 of 10")
with progress.Phase("validating [1]", 5) as phase:
    phase.advance()
    time.sleep(1)
    print("a line above the bars")
    time.sleep(0.5)
training.close()
print("the end")
"""
    shown = run_on_a_terminal(code)
    assert "training" in shown
    assert "validating [1]" in shown
    assert "20%, step 2 of 10" in shown
    assert " left" in shown
    assert "a line above the bars" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is visible again
    rest = shown[shown.rindex("\x1b[?25h") :]
    assert "training" not in rest
    assert "the end" in rest
    assert shown.count("\x1b[?25l") == 1


def test_short_phases_write_nothing_to_a_terminal():
    code = """
from gpt2lab import logs, progress
logs.configure()
with progress.Phase("quick"):
    pass
print("the end")
"""
    assert run_on_a_terminal(code) == "the end\r\n"
