"""Which ranks count as lost, by their last values in the store."""

import math
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2lab.system import heartbeat
from gpt2lab.system.heartbeat import Heartbeat


@pytest.mark.parametrize(
    ("value", "seconds", "lost"),
    [(b"7", 20, []), (b"7", 70, [1]), (b"failed", 5, []), (b"failed", 20, [1]), (b"finished", 70, [])],
)
def test_a_failed_rank_is_lost_sooner_than_a_silent_one(monkeypatch, value, seconds, lost):
    generation: Any = SimpleNamespace(connect=lambda name, timeout: None, processes=["a", "b"], store_rank=0)
    beat = Heartbeat(generation, rank=0, timeout=60)
    now = time.monotonic()
    monkeypatch.setattr(beat, "_store_answered", now, raising=False)
    monkeypatch.setattr(beat, "_counts", {1: (value, now - seconds)}, raising=False)
    assert beat._silent_ranks(60) == lost
    assert heartbeat._EXIT_SECONDS < 60


def test_the_terminal_is_restored_before_the_process_ends(monkeypatch, capfd):
    """The message does not go through `sys.stderr`, which a progress bar replaces, and whose lock may be held."""
    generation: Any = SimpleNamespace(connect=lambda name, timeout: None, processes=["a", "b"], store_rank=0)
    beat = Heartbeat(generation, rank=0, timeout=0.04)
    beat._reset_clocks()
    restored = []

    def exit_process(status):
        assert restored
        raise SystemExit(status)

    monkeypatch.setattr(beat, "_silent_ranks", lambda _: [None])
    monkeypatch.setattr(heartbeat.progress, "restore_terminal", lambda: restored.append(True))
    monkeypatch.setattr(heartbeat.os, "_exit", exit_process)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit):
        beat._watch()
    assert "torchrun's agent" in capfd.readouterr().err


@pytest.mark.parametrize(("waited", "ends"), [(5.0, False), (15.0, True)])
def test_a_rank_that_waits_too_long_for_its_gpu_exits_with_a_message(monkeypatch, capfd, waited, ends):
    """NCCL does not return from a collective that another rank does not join, so the thread that watches ends it."""
    generation: Any = SimpleNamespace(connect=lambda name, timeout: None, processes=["a", "b"], store_rank=0)
    beat = Heartbeat(generation, rank=0, timeout=0.04, patience=10.0)
    beat._reset_clocks()
    monkeypatch.setattr(beat, "_silent_ranks", lambda _: [])
    waits = iter([False, False, True])
    monkeypatch.setattr(beat._stop, "wait", lambda _: next(waits))

    def exit_process(status):
        raise SystemExit(status)

    monkeypatch.setattr(heartbeat.os, "_exit", exit_process)
    with beat.deadline():
        beat._waiting_since -= waited
        if ends:
            with pytest.raises(SystemExit, match="3"):
                beat._watch()
            assert "one of them hangs" in capfd.readouterr().err
        else:
            beat._watch()
    assert beat._waiting_since == math.inf
