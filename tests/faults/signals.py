"""Signals that ask a run to stop: it discards the unfinished step, saves, and exits with the status of the signal."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults import injection, runs
from tests.faults.kills import first_step, next_output, train_uninterrupted
from tests.faults.outcome import Outcome
from tests.faults.processes import Command, Forked, TrainingProcesses
from tests.faults.runs import EVERY, Run

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SIGNALS_PER_RUN = 10
FORWARDED = f"--signals-to-handle={','.join(number.name for number in SIGNALS)}"  # torchrun's default lacks USR1, USR2


def interrupt(
    folder: Path,
    data: Path,
    count: int,
    ranks: int = 1,
    real: bool = False,
    signals: tuple[signal.Signals, ...] = SIGNALS,
) -> Outcome:
    """Send each of `signals` `count` times, at random steps, and continue with the same command.

    One of several ranks gets it, chosen at random. Under torchrun (`real`) torchrun gets it and forwards it; torchrun
    has an exit status of its own, which only must not be 0.
    """
    rng = random.Random(f"{ranks} {real}")
    plan = [number for number in signals for _ in range(count)]
    rng.shuffle(plan)
    steps = 20 * min(len(plan), SIGNALS_PER_RUN) + 20
    reference = train_uninterrupted(folder / "reference", data, ranks, train__max_steps=steps)
    outcome = Outcome()
    while plan:
        of_run, plan = plan[:SIGNALS_PER_RUN], plan[SIGNALS_PER_RUN:]
        name = f"stopped-{len(plan)}"
        run = runs.make(folder / name, data, train__max_steps=steps)
        targets = sorted(rng.sample(range(1, steps - 20), len(of_run)))
        answers = [_stop(run, *case, ranks, real, rng) for case in zip(targets, of_run, strict=True)]
        with _start(run, ranks, real) as processes:
            of_end = [] if processes.wait() == 0 else ["the last process failed"]
        of_end += runs.find_differences(run, reference, steps)
        for number, problems in zip(of_run, answers, strict=True):
            outcome.add(f"{name}, {number.name}", [*problems, *of_end])
    outcome.figures = f"{count} x {', '.join(number.name for number in signals)}"
    return outcome


def _start(run: Run, ranks: int, real: bool) -> TrainingProcesses:
    if not real:
        return Forked(run, next_output(run), ranks=ranks)
    return Command(run, next_output(run), ranks=ranks, torchrun=(FORWARDED,))


def _stop(run: Run, target: int, number: signal.Signals, ranks: int, real: bool, rng: random.Random) -> list[str]:
    """Send a signal at step `target` or, if the run is past it, after the next step; what is wrong with the answer."""
    saved_before, last_before = runs.newest_step(run), runs.last_step(run)
    with _start(run, ranks, real) as processes:
        reached = runs.has_reached(run, max(target, saved_before + 1))
        assert processes.wait_until(reached), processes.text()
        os.kill(processes.process.pid if isinstance(processes, Command) else rng.choice(processes.pids()), number)
        status, text = processes.wait(), processes.text()
    under_torchrun = real and ranks > 1
    problems = [] if (status != 0 if under_torchrun else status == 128 + number) else [f"exit status {status}"]
    last, saved = runs.last_step(run), runs.newest_step(run)
    if saved not in (last, last + 1):  # the record of the last step may be in the checkpoint, for the next start
        problems.append(f"saved step {saved} after step {last} in metrics.jsonl")
    if first_step(text) != last_before + 1:
        problems.append("steps were repeated")
    if not under_torchrun and (number.name not in text or "Traceback" in text):
        problems.append(f"output {text[-300:]}")
    return problems


def send_second_signal(folder: Path, data: Path, limit: float) -> Outcome:
    """Send two signals during a step that hangs: the first is noted, the second ends the process without saving.

    It must end within `limit` seconds.
    """
    outcome = Outcome()
    for number in SIGNALS:
        run_folder = folder / number.name
        run = runs.make(run_folder, data)
        fault = partial(injection.hang_at_step, EVERY + 5)
        with Forked(run, run_folder / "output-0", fault=fault) as processes:
            assert processes.wait_until(partial(_hangs, processes, run)), processes.text()
            os.kill(processes.pids()[0], number)
            noted = processes.wait_until(lambda p=processes, n=number: n.name in p.text())
            start_time = time.monotonic()
            os.kill(processes.pids()[0], number)
            status, seconds = processes.wait(), time.monotonic() - start_time
        problems = [] if noted else ["the first signal ended it"]
        if f"step {EVERY} is saved, and the" not in processes.text():
            problems.append("it does not say what is lost")
        if status != 128 + number:
            problems.append(f"exit status {status}")
        if seconds > limit:
            problems.append(f"it took {seconds:.1f} s")
        if runs.newest_step(run) != EVERY:
            problems.append(f"the newest checkpoint is {runs.newest_step(run)}")
        outcome.add(number.name, problems)
    return outcome


def _hangs(processes: TrainingProcesses, run: Run) -> bool:
    return "it hangs" in processes.text() and runs.newest_step(run) == EVERY
