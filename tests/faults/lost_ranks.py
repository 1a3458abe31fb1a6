"""A rank that stops or dies, and torchrun that dies: all processes end soon, and the message names the lost rank."""

import os
import re
import signal
import time
from pathlib import Path

from tests.faults import runs
from tests.faults.kills import train_uninterrupted
from tests.faults.outcome import Outcome
from tests.faults.processes import WAIT_LIMIT, Command, Forked

TIMEOUT = 4.0  # seconds: system.timeout
SIGNALS = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}


def lose_ranks(folder: Path, data: Path, torchrun: bool, cases: tuple[tuple[str, int], ...], grace: float) -> Outcome:
    """Stop or kill one of two ranks during a run; then continue the run to its end.

    Args:
        folder: where to work.
        data: folder of shards.
        torchrun: run the ranks under torchrun.
        cases: (`stop` or `kill`, rank). Rank -1 is torchrun itself.
        grace: seconds after the timeout within which all processes must have ended.
    """
    reference = train_uninterrupted(folder / "reference", data, ranks=2)
    outcome, longest = Outcome(), 0.0
    for action, rank in cases:
        run_folder = folder / f"{action}-{rank}"
        run = runs.make(run_folder, data, system__timeout=TIMEOUT)
        start = Command if torchrun else Forked
        with start(run, run_folder / "output-0", ranks=2) as processes:
            assert processes.wait_until(runs.has_saved(run)), processes.text()
            lost = processes.process.pid if rank < 0 else processes.pids()[rank]
            os.kill(lost, SIGNALS[action])
            start_time = time.monotonic()
            status = processes.wait()
            while torchrun and processes.members():
                assert time.monotonic() - start_time < WAIT_LIMIT, f"orphans: {processes.members()}"
                time.sleep(0.05)
            seconds, text = time.monotonic() - start_time, processes.text()
        longest = max(longest, seconds)
        problems = [] if seconds <= TIMEOUT + grace else [f"ended only after {seconds:.0f} s"]
        if status == 0:
            problems.append("exit status 0")
        if rank >= 0 and not re.search(rf"^gpt2lab: .*\brank {rank} \(pid {lost}\b", text, re.MULTILINE):
            problems.append(f"errors {[line for line in text.splitlines() if line.startswith('gpt2lab')]}")
        with Forked(run, run_folder / "output-1", ranks=2) as processes:
            assert processes.wait() == 0, processes.text()
        outcome.add(f"{action} {rank}", problems + runs.find_differences(run, reference))
    outcome.figures = f"all gone after at most {longest:.1f} s; system.timeout {TIMEOUT:g}"
    return outcome
