"""SIGKILL at any moment: the run that is started again ends as the one that nobody touched."""

import itertools
import os
import random
import re
import signal
from functools import partial
from pathlib import Path

from gpt2lab.training import checkpoint
from tests.faults import harm, runs
from tests.faults.outcome import Outcome
from tests.faults.processes import Command, Forked, Victim
from tests.faults.runs import EVERY, Run

KILLS_A_RUN = 10
INTERVAL = 25  # steps from one checkpoint to the next: longer than one takes to write, as in any real run


def straight(folder: Path, data: Path, ranks: int = 1, **changes: object) -> Run:
    """The run that nobody touches."""
    run = runs.make(folder, data, **changes)
    with Forked(run, folder / "output", ranks=ranks) as untouched:
        assert untouched.wait() == 0, untouched.text()
    return run


def random_kills(folder: Path, data: Path, count: int, ranks: int = 1, real: bool = False) -> Outcome:
    """Kill `count` times, at steps drawn by lot, a quarter of them while a checkpoint is being written.

    With several ranks a kill takes one of them or all. `real` victims are commands, those of several ranks under
    torchrun: having lost one rank it goes on by itself (--max-restarts); killed altogether it is started anew.

    The next process must go on from the newest checkpoint that is whole. That is the last one that was due, so at most
    an interval of steps is repeated; or the one before it, if the kill came while the last was being written (a thread
    does that while training goes on).
    """
    chance = random.Random(f"{ranks} {real}")
    changes = {"train__max_steps": INTERVAL * (min(count, KILLS_A_RUN) + 2), "checkpoint__every": INTERVAL}
    steps = changes["train__max_steps"]
    reference = straight(folder / "straight", data, ranks, **changes)
    outcome, costs = Outcome(), {True: [0], False: [0]}
    attempts = itertools.count()
    while outcome.tried < count:
        name = f"killed-{next(attempts)}"
        run = runs.make(folder / name, data, system__timeout=4, **changes)
        targets = chance.sample(range(1, steps - INTERVAL), min(count - outcome.tried, KILLS_A_RUN))
        deaths = _killed(run, sorted(targets), ranks, real, chance)
        wrong = [*runs.differences(run, reference, steps), *(f"left {name}" for name in runs.leftovers(run))]
        for last, newest, resumed in deaths:
            begun = (last - 1) // INTERVAL * INTERVAL  # the last checkpoint that was certainly begun
            costs[newest >= begun].append(last - resumed)
            early = [] if resumed == newest >= begun - INTERVAL else [f"went on from step {resumed}"]
            outcome.trial(f"{name}, killed at step {last} with checkpoint {newest}", [*wrong, *early])
    outcome.figures = f"a checkpoint every {INTERVAL} steps; at most {max(costs[True])} steps repeated"
    if during := len(costs[False]) - 1:
        outcome.figures += ", but for those in the midst of a write"
        outcome.short_of = f"{during} kills in the midst of a write: {max(costs[False])} steps repeated"
    return outcome


def _killed(run: Run, targets: list[int], ranks: int, real: bool, chance: random.Random) -> list[tuple[int, int, int]]:
    """Train a run to its end through kills at `targets`. For each: the last step on record when all were dead, the
    newest checkpoint then, and the step that the next process went on from.
    """
    goes_on = real and ranks > 1  # torchrun does, when it has lost a rank and not its own life

    def start() -> Victim:
        output = run.recipe.parent / f"output-{len(list(run.recipe.parent.glob('output-*')))}"
        if real:
            return Command(run, output, ranks=ranks, torchrun=("--max-restarts=100",))
        return Forked(run, output, ranks=ranks)

    left, began, victim, told = [], [], start(), 0
    try:
        for target in targets:
            if not victim.wait_until(partial(_is_due, run, victim, told, target, chance.random() < 0.25)):
                break  # it was faster than we
            ranks_here = victim.pids()
            everyone = len(ranks_here) == 1 or chance.random() < 0.5
            if everyone:
                victim.kill_all()
            else:
                os.kill(chance.choice(ranks_here), signal.SIGKILL)
                if goes_on:
                    victim.wait_until(partial(_are_gone, victim, ranks_here))
                else:
                    assert victim.wait() != 0, "a rank ended well without the other"
            left.append((runs.last_step(run), runs.newest_step(run)))
            began.append(_steps(victim.text()[told:])[0])
            told = len(victim.text())
            if everyone or not goes_on:
                victim.kill_all()
                victim, told = start(), 0
        assert victim.wait() == 0, victim.text()
        began.append(_steps(victim.text()[told:])[0])
    finally:
        victim.kill_all()
    return [(last, newest, first - 1) for (last, newest), first in zip(left, began[1:], strict=True)]


def _is_due(run: Run, victim: Victim, told: int, target: int, in_writing: bool) -> bool:
    """Whether the victim trains, has come to `target`, and is writing a checkpoint if it should be."""
    if not _steps(victim.text()[told:]) or runs.last_step(run) < target:
        return False
    return not in_writing or any(run.checkpoints.glob(".tmp-step_*"))


def _are_gone(victim: Victim, pids: list[int]) -> bool:
    return not set(pids) & set(victim.pids())


def _steps(text: str) -> list[int]:
    """The steps that a process says it took."""
    return [int(step) for step in re.findall(r"^step +(\d+) \| loss", text, re.MULTILINE)]


def kills_while_writing(folder: Path, data: Path, step: int) -> Outcome:
    """Die at every point of the writing of one checkpoint. Only the newest one is kept, so that there is pruning."""
    changes = {"checkpoint__keep_last": 1, "train__max_steps": step + EVERY}
    reference = straight(folder / "straight", data, **changes)
    outcome = Outcome()
    for point in harm.POINTS:
        name = re.sub(r"\W+", "-", point)
        run = runs.make(folder / name, data, **changes)
        with Forked(run, folder / name / "output-0", harm=partial(harm.die_before_point, point, step)) as victim:
            status = victim.wait()
        wrong = [] if status < 0 else [f"it ended with {status} instead"]
        there = step if point in ("after the rename, before pruning", "while pruning") else step - EVERY
        found = checkpoint.newest_valid(run.checkpoints)
        if (found.step if found else 0) != there:
            wrong.append(f"the newest checkpoint is {found and found.step}, not {there}")
        with Forked(run, folder / name / "output-1") as again:
            assert again.wait() == 0, again.text()
        wrong += runs.differences(run, reference, step + EVERY) + [f"left {one}" for one in runs.leftovers(run)]
        outcome.trial(point, wrong)
    return outcome
