"""Two torchrun agents, as on two machines, through launch/torchrun_multinode.sh: equal to one with two ranks."""

import os
import signal
import sys
from pathlib import Path

from tests.faults import runs
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY, Command, free_port

STEPS = 300  # enough to be killed on the way
SCRIPT = REPOSITORY / "launch" / "torchrun_multinode.sh"


def run_two_agents(folder: Path, data: Path) -> Outcome:
    """Train uninterrupted, and with the rank of the second agent killed once; compare with one agent with two ranks."""
    reference = runs.make(folder / "one agent", data, train__max_steps=STEPS)
    with Command(reference, folder / "one agent" / "output", ranks=2) as agent:
        assert agent.wait() == 0, agent.text()
    outcome = Outcome()
    for kill in (False, True):
        run_folder = folder / ("killed" if kill else "uninterrupted")
        run = runs.make(run_folder, data, train__max_steps=STEPS, system__timeout=4)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        variables = {"NNODES": "2", "NPROC_PER_NODE": "1", "PYTHON": sys.executable, **address}
        first, second = (
            Command(
                run,
                run_folder / f"output-{node}",
                start=(str(SCRIPT),),
                variables={"NODE_RANK": str(node), **variables},
            )
            for node in (0, 1)
        )
        with first, second:
            if kill:
                assert second.wait_until(runs.has_saved(run)), second.text()
                os.kill(second.pids()[0], signal.SIGKILL)
            statuses = [agent.wait() for agent in (first, second)]
            problems = [] if statuses == [0, 0] else [f"exit statuses {statuses}"]
            if ("resuming" in first.text()) != kill:
                problems.append("not resumed" if kill else "restarted")
        outcome.add(
            "a rank killed" if kill else "uninterrupted", problems + runs.find_differences(run, reference, STEPS)
        )
    outcome.figures = "uninterrupted, and with a rank killed and restarted"
    return outcome
