"""SIGKILL at any moment: the run that is started again ends as the one that nobody touched."""

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
    """
    chance = random.Random(f"{ranks} {real}")
    steps = 20 * min(count, KILLS_A_RUN) + 2 * EVERY
    reference = straight(folder / "straight", data, ranks, train__max_steps=steps)
    outcome, most = Outcome(), 0
    while outcome.tried < count:
        name = f"killed-{outcome.tried}"
        run = runs.make(folder / name, data, train__max_steps=steps)
        here = min(count - outcome.tried, KILLS_A_RUN)
        repeated = _killed(run, sorted(chance.sample(range(1, steps - EVERY), here)), ranks, real, chance)
        wrong = [*runs.differences(run, reference, steps), *(f"left {name}" for name in runs.leftovers(run))]
        for number, again in enumerate(repeated):
            late = [f"{again} steps repeated"] if again > EVERY else []
            outcome.trial(f"{name}, kill {number}", [*wrong, *late])
            most = max(most, again)
    outcome.figures = f"at most {most} steps repeated, a checkpoint every {EVERY}"
    return outcome


def _killed(run: Run, targets: list[int], ranks: int, real: bool, chance: random.Random) -> list[int]:
    """Train a run to its end through kills at `targets`; the steps that each kill made it repeat."""
    goes_on = real and ranks > 1  # torchrun does, when it has lost a rank and not its own life

    def start():
        number = len(list(run.recipe.parent.glob("output-*")))
        output = run.recipe.parent / f"output-{number}"
        if real:
            restarts = ("--max-restarts=100",) if ranks > 1 else ()
            return Command(run, output, ranks=ranks, torchrun=restarts)
        return Forked(run, output, ranks=ranks)

    seen, began, victim, told = [], [], start(), 0
    for target in targets:
        if not victim.wait_until(partial(_is_due, run, victim, told, target, chance.random() < 0.25)):
            break  # it was faster than we
        doomed = victim.pids()
        everyone = len(doomed) == 1 or chance.random() < 0.5
        if everyone:
            victim.kill_all()
        else:
            os.kill(chance.choice(doomed), signal.SIGKILL)
            if goes_on:
                victim.wait_until(partial(_are_gone, victim, doomed))
            else:
                assert victim.wait() != 0, "a rank ended well without the other"
        seen.append(runs.last_step(run))
        began.append(_steps(victim.text()[told:])[0])
        told = len(victim.text())
        if everyone or not goes_on:
            victim.kill_all()
            victim, told = start(), 0
    with victim:
        assert victim.wait() == 0, victim.text()
        began.append(_steps(victim.text()[told:])[0])
    return [last - (first - 1) for last, first in zip(seen, began[1:], strict=True)]


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
        found = checkpoint.newest_good(run.checkpoints, wrong.append)
        if (found.step if found else 0) != there:
            wrong.append(f"the newest checkpoint is {found and found.step}, not {there}")
        with Forked(run, folder / name / "output-1") as again:
            assert again.wait() == 0, again.text()
        wrong += runs.differences(run, reference, step + EVERY) + [f"left {one}" for one in runs.leftovers(run)]
        outcome.trial(point, wrong)
    return outcome
