"""Which ranks count as lost, by their last values in the store."""

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
