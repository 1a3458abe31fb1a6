"""A rank that is stopped or dies, and torchrun itself dying: all leave soon, and the message names who was lost."""

import os
import re
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults import runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import Command, Forked
from tests.faults.runs import EVERY, Run

TIMEOUT = 4.0  # seconds: system.timeout
GRACE = 10.0  # seconds more within which all must be gone


def lost_ranks(folder: Path, data: Path, torchrun: bool, cases: tuple[tuple[str, int], ...]) -> Outcome:
    """Do something to one of two ranks in the midst of a run; then the run goes on to its end, equal.

    Args:
        cases: (deed, rank): `stop` or `kill`; rank -1 is torchrun itself.
    """
    reference = straight(folder / "straight", data, ranks=2)
    outcome, longest = Outcome(), 0.0
    for deed, rank in cases:
        place = folder / f"{deed}-{rank}"
        run = runs.make(place, data, system__timeout=TIMEOUT)
        kind = Command if torchrun else Forked
        with kind(run, place / "output-0", ranks=2) as victim:
            assert victim.wait_until(partial(_has_saved, run)), victim.text()
            lost = victim.process.pid if rank < 0 else victim.pids()[rank]
            os.kill(lost, signal.SIGSTOP if deed == "stop" else signal.SIGKILL)
            began = time.monotonic()
            status = victim.wait()
            while torchrun and victim.members():
                assert time.monotonic() - began < 120, f"orphans: {victim.members()}"
                time.sleep(0.05)
            seconds, text = time.monotonic() - began, victim.text()
        longest = max(longest, seconds)
        wrong = [] if seconds <= TIMEOUT + GRACE else [f"gone only after {seconds:.0f} s"]
        if status == 0:
            wrong.append("exit status 0")
        if rank >= 0 and not re.search(
            rf"^gpt2lab: (\[rank \d\] )?(lost )?rank {rank} \(pid {lost} on", text, re.MULTILINE
        ):
            wrong.append(f"it says {[line for line in text.splitlines() if line.startswith('gpt2lab')]}")
        with Forked(run, place / "output-1", ranks=2) as again:
            assert again.wait() == 0, again.text()
        wrong += runs.differences(run, reference)
        outcome.trial(f"{deed} {rank}", wrong)
    outcome.figures = f"all gone after at most {longest:.1f} s; system.timeout {TIMEOUT:g}"
    return outcome


def _has_saved(run: Run) -> bool:
    return runs.newest_step(run) >= EVERY
