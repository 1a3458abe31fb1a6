"""SIGKILL at any moment: the run that is started again ends like the one that was not interrupted."""

import itertools
import os
import random
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import injection, runs
from tests.faults.outcome import Outcome
from tests.faults.processes import Command, Forked, TrainingProcesses
from tests.faults.runs import EVERY, Run

KILLS_PER_RUN = 10
INTERVAL = 25  # steps between checkpoints: more than are trained while one is written, as in any real run


class Kill(NamedTuple):
    """The last step in metrics.jsonl and the newest checkpoint after a kill, and the step that was resumed from."""

    last_step: int
    newest_checkpoint: int
    resumed_from: int


def train_uninterrupted(folder: Path, data: Path, ranks: int = 1, **changes: object) -> Run:
    """Train a run that nothing interrupts: the reference."""
    run = runs.make(folder, data, **changes)
    with Forked(run, folder / "output", ranks=ranks) as processes:
        assert processes.wait() == 0, processes.text()
    return run


def find_steps(text: str) -> list[int]:
    """The steps that a process printed."""
    return [int(step) for step in re.findall(r"^step +(\d+)/\d+  loss", text, re.MULTILINE)]


def first_step(text: str) -> int | None:
    """The first step that a process printed."""
    return next(iter(find_steps(text)), None)


def next_output(run: Run) -> Path:
    """A new file for the output of the processes of a run."""
    folder = run.recipe.parent
    return folder / f"output-{len(list(folder.glob('output-*')))}"


def kill_at_random_steps(
    folder: Path, data: Path, count: int, ranks: int = 1, real: bool = False, **settings: object
) -> Outcome:
    """Kill `count` times, at random steps, a quarter of them while a checkpoint is being written.

    With several ranks a kill ends one of them or all. With `real` the processes are commands, and those of several
    ranks run under torchrun: it restarts the ranks itself after one of them died (--max-restarts).

    The next process must continue from the newest checkpoint that is complete. That is the last one that was due, so
    at most an interval of steps is repeated; or the one before it, if the kill came while the last was being written
    (a thread writes it while training continues). `settings` are others of the run.
    """
    rng = random.Random(f"{ranks} {real}")
    steps = INTERVAL * (min(count, KILLS_PER_RUN) + 2)
    changes = {"train__max_steps": steps, "checkpoint__every": INTERVAL, **settings}
    reference = train_uninterrupted(folder / "reference", data, ranks, **changes)
    outcome, repeated = Outcome(), {"complete": [0], "being written": [0]}
    attempts = itertools.count()
    while outcome.trials < count:
        name = f"killed-{next(attempts)}"
        run = runs.make(folder / name, data, system__timeout=4, **changes)
        targets = sorted(rng.sample(range(1, steps - INTERVAL), min(count - outcome.trials, KILLS_PER_RUN)))
        killed = _train_through_kills(run, targets, ranks, real, rng)
        differences = runs.find_differences(run, reference, steps)
        for last, newest, resumed in killed:
            due = (last - 1) // INTERVAL * INTERVAL  # the writing of this checkpoint had begun
            repeated["complete" if newest >= due else "being written"].append(last - resumed)
            problems = [] if resumed == newest >= due - INTERVAL else [f"resumed from step {resumed}"]
            outcome.add(f"{name}, killed at step {last} with checkpoint {newest}", [*differences, *problems])
    outcome.figures = f"a checkpoint every {INTERVAL} steps; at most {max(repeated['complete'])} steps repeated"
    if during_write := len(repeated["being written"]) - 1:
        most = max(repeated["being written"])
        outcome.figures += ", except after kills during a write"
        kills = "kill" if during_write == 1 else "kills"
        outcome.missed_bar = f"{during_write} {kills} during a write: {most} steps repeated"
    return outcome


def _train_through_kills(run: Run, targets: list[int], ranks: int, real: bool, rng: random.Random) -> list[Kill]:
    """Train a run to its end, and kill it at the steps `targets`."""
    restarts = real and ranks > 1  # torchrun restarts the ranks, unless it was killed itself

    def start() -> TrainingProcesses:
        if real:
            return Command(run, next_output(run), ranks=ranks, torchrun=("--max-restarts=100",))
        return Forked(run, next_output(run), ranks=ranks)

    killed, first_steps, processes, seen = [], [], start(), 0  # seen: length of the output before the last restart
    try:
        for target in targets:
            if not processes.wait_until(_is_due(run, processes, seen, target, rng.random() < 0.25)):
                break  # the run ended first
            pids = processes.pids()
            kill_all = len(pids) == 1 or rng.random() < 0.5
            if kill_all:
                processes.kill_all()
            else:
                os.kill(rng.choice(pids), signal.SIGKILL)
                if restarts:
                    processes.wait_until(partial(_are_gone, processes, pids))
                else:
                    assert processes.wait() != 0, "a rank ended with exit status 0 after the other was killed"
            killed.append((runs.last_step(run), runs.newest_step(run)))
            first_steps.append(find_steps(processes.text()[seen:])[0])
            seen = len(processes.text())
            if kill_all or not restarts:
                processes.kill_all()
                processes, seen = start(), 0
        assert processes.wait() == 0, processes.text()
        first_steps.append(find_steps(processes.text()[seen:])[0])
    finally:
        processes.kill_all()
    return [Kill(last, newest, first - 1) for (last, newest), first in zip(killed, first_steps[1:], strict=True)]


def _is_due(run: Run, processes: TrainingProcesses, seen: int, target: int, while_writing: bool) -> Callable[[], bool]:
    """A condition: steps are printed, `target` is reached and, if asked for, a checkpoint is being written."""

    def is_due() -> bool:
        if not find_steps(processes.text()[seen:]) or runs.last_step(run) < target:
            return False
        return not while_writing or any(run.checkpoints.glob(".tmp-step_*"))

    return is_due


def _are_gone(processes: TrainingProcesses, pids: list[int]) -> bool:
    return not set(pids) & set(processes.pids())


def kill_while_writing(folder: Path, data: Path, step: int) -> Outcome:
    """Kill at every point of the writing of one checkpoint. Only the newest is kept, so that pruning takes place."""
    changes = {"checkpoint__keep_last": 1, "train__max_steps": step + EVERY}
    reference = train_uninterrupted(folder / "reference", data, **changes)
    outcome = Outcome()
    for point in injection.POINTS:
        run_folder = folder / re.sub(r"\W+", "-", point)
        run = runs.make(run_folder, data, **changes)
        fault = partial(injection.kill_self_at_point, point, step)
        with Forked(run, run_folder / "output-0", fault=fault) as processes:
            status = processes.wait()
        problems = [] if status < 0 else [f"exit status {status}"]
        expected = step if point in ("after the rename, before pruning", "while pruning") else step - EVERY
        if (runs.newest_step(run), runs.newest_intact_step(run)) != (expected, expected):
            problems.append(f"the newest checkpoint is {runs.newest_step(run)}, not an intact {expected}")
        with Forked(run, run_folder / "output-1") as processes:
            assert processes.wait() == 0, processes.text()
        outcome.add(point, problems + runs.find_differences(run, reference, step + EVERY))
    return outcome
