"""Two torchrun agents, as on two machines, through launch/torchrun_multinode.sh: the same as one with two ranks."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from tests.faults import runs
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY, Command, free_port
from tests.faults.runs import EVERY, Run

LENGTH = 300  # steps: enough to be killed on the way
SCRIPT = REPOSITORY / "launch" / "torchrun_multinode.sh"


def two_agents(folder: Path, data: Path) -> Outcome:
    """Once untouched, once with the second agent's rank killed on the way; both against one agent with two ranks."""
    reference = runs.make(folder / "one agent", data, train__max_steps=LENGTH)
    with Command(reference, folder / "one agent" / "output", ranks=2) as one:
        assert one.wait() == 0, one.text()
    outcome = Outcome()
    for killed in (False, True):
        place = folder / f"two agents, killed {killed}"
        run = runs.make(place, data, train__max_steps=LENGTH, system__timeout=4)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        own = {"NNODES": "2", "NPROC_PER_NODE": "1", "PYTHON": sys.executable, **address}
        first, second = (
            Command(run, place / f"output-{node}", start=(str(SCRIPT),), NODE_RANK=str(node), **own) for node in (0, 1)
        )
        with first, second:
            if killed:
                assert second.wait_until(partial(_has_saved, run)), second.text()
                os.kill(second.pids()[0], signal.SIGKILL)
            statuses = [agent.wait() for agent in (first, second)]
            wrong = [] if statuses == [0, 0] else [f"exit statuses {statuses}"]
            if ("resuming after step" in first.text()) != killed:
                wrong.append("it did not go on" if killed else "it was started again")
        outcome.trial("a rank killed" if killed else "untouched", wrong + runs.differences(run, reference, LENGTH))
    outcome.figures = "untouched, and with a rank killed and started again"
    return outcome


def _has_saved(run: Run) -> bool:
    return runs.newest_step(run) >= EVERY
