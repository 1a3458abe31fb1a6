"""Signals that ask a run to stop: it finishes the step, saves, and its exit status says so; nothing is repeated."""

import os
import random
import re
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults import harm, runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import Command, Forked, Victim
from tests.faults.runs import EVERY, Run

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SIGNALS_A_RUN = 10
HANDED_ON = f"--signals-to-handle={','.join(one.name for one in SIGNALS)}"  # torchrun's own list lacks USR1 and USR2


def interruptions(
    folder: Path,
    data: Path,
    each: int,
    ranks: int = 1,
    real: bool = False,
    signals: tuple[signal.Signals, ...] = SIGNALS,
) -> Outcome:
    """Send every one of `signals` `each` times, at steps drawn by lot, and go on with the same command.

    Of several ranks one gets it, drawn by lot; under torchrun (`real`) torchrun does, and hands it on. torchrun has an
    exit status of its own, so there it only must not be 0.
    """
    chance = random.Random(f"{ranks} {real}")
    plan = [number for number in signals for _ in range(each)]
    chance.shuffle(plan)
    steps = 20 * min(len(plan), SIGNALS_A_RUN) + 20
    reference = straight(folder / "straight", data, ranks, train__max_steps=steps)
    outcome = Outcome()
    while plan:
        here, plan = plan[:SIGNALS_A_RUN], plan[SIGNALS_A_RUN:]
        name = f"stopped-{len(plan)}"
        run = runs.make(folder / name, data, train__max_steps=steps)
        targets = sorted(chance.sample(range(1, steps - 20), len(here)))
        found = [_stopped(run, *one, ranks, real, chance) for one in zip(targets, here, strict=True)]
        with _start(run, ranks, real) as victim:
            wrong = [] if victim.wait() == 0 else ["it does not come to its end"]
        wrong += [*runs.differences(run, reference, steps), *(f"left {name}" for name in runs.leftovers(run))]
        for number, complaints in zip(here, found, strict=True):
            outcome.trial(f"{name}, {number.name}", [*complaints, *wrong])
    outcome.figures = f"{each} x {', '.join(number.name for number in signals)}"
    return outcome


def _start(run: Run, ranks: int, real: bool) -> Victim:
    output = run.recipe.parent / f"output-{len(list(run.recipe.parent.glob('output-*')))}"
    if not real:
        return Forked(run, output, ranks=ranks)
    return Command(run, output, ranks=ranks, torchrun=(HANDED_ON,))


def _stopped(run: Run, target: int, number: signal.Signals, ranks: int, real: bool, chance: random.Random) -> list[str]:
    """What is wrong with a run that gets a signal at step `target` or, if that is behind it, after its first step."""
    before, on_record = runs.newest_step(run), runs.last_step(run)
    with _start(run, ranks, real) as victim:
        assert victim.wait_until(lambda: runs.last_step(run) >= max(target, before + 1)), victim.text()
        os.kill(victim.process.pid if isinstance(victim, Command) else chance.choice(victim.pids()), number)
        status, text = victim.wait(), victim.text()
    under_torchrun = real and ranks > 1
    wrong = [] if (status != 0 if under_torchrun else status == 128 + number) else [f"exit status {status}"]
    last, saved = runs.last_step(run), runs.newest_step(run)
    if saved != last + 1:  # the last step's record is in its checkpoint: the next start writes it
        wrong.append(f"saved step {saved} after step {last} on record")
    if f"stopped by {number.name}" not in text and not under_torchrun:
        wrong.append(f"it says {text[-300:]}")
    first = re.search(r"^step +(\d+) \| loss", text, re.MULTILINE)
    if first is None or int(first[1]) != on_record + 1:
        wrong.append("steps were repeated")
    if "Traceback" in text and not under_torchrun:
        wrong.append("traceback")
    return wrong


def second_signals(folder: Path, data: Path) -> Outcome:
    """In a step that does not end, the first signal is noted; the second ends the process at once, unsaved."""
    outcome = Outcome()
    for number in SIGNALS:
        place = folder / number.name
        run = runs.make(place, data)
        with Forked(run, place / "output-0", harm=partial(harm.hang_at_step, EVERY + 5)) as victim:
            hangs = victim.wait_until(lambda v=victim, r=run: "it hangs" in v.text() and runs.newest_step(r) == EVERY)
            assert hangs, victim.text()
            os.kill(victim.pids()[0], number)
            noted = victim.wait_until(lambda v=victim, n=number: f"{n.name}: stopping after this step" in v.text())
            began = time.monotonic()
            os.kill(victim.pids()[0], number)
            status, seconds = victim.wait(), time.monotonic() - began
        wrong = [] if noted else ["the first one ended it"]
        if status != 128 + number:
            wrong.append(f"exit status {status}")
        if seconds > 2:
            wrong.append(f"it took {seconds:.1f} s")
        if runs.newest_step(run) != EVERY:
            wrong.append(f"the newest checkpoint is {runs.newest_step(run)}")
        outcome.trial(number.name, wrong)
    return outcome
