"""Another number of ranks, another micro batch: the same steps."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import injection, runs
from tests.faults.kills import train_uninterrupted
from tests.faults.outcome import Outcome
from tests.faults.processes import Forked
from tests.faults.runs import STEPS

PHASES = ((2, 3, 17), (1, 2, 38), (3, 1, STEPS))  # ranks, micro batch, and the step at which all ranks are killed
TOLERANCE = 1e-4


def change_ranks(folder: Path, data: Path, **changes: Any) -> Outcome:
    """Train one run with 2, then 1, then 3 ranks and three micro batches, with two kills between them.

    Its losses, and the rows of tokens that went through the model in every step on all ranks together, must be those
    of an uninterrupted run. `changes` are settings of the run.
    """
    reference = train_uninterrupted(folder / "reference", data, **changes)
    run = runs.make(folder / "elastic", data, **changes)
    rows: list[dict] = []
    for phase, (ranks, micro_batch, last) in enumerate(PHASES):
        file = folder / f"rows-{phase}"
        option = ("--train.micro_batch_size", str(micro_batch))
        fault = partial(injection.record_rows, file)
        with Forked(run, folder / f"output-{phase}", *option, ranks=ranks, fault=fault) as processes:
            if last == STEPS:
                assert processes.wait() == 0, processes.text()
            else:
                assert processes.wait_until(runs.has_reached(run, last)), processes.text()
                for pid in processes.pids():
                    os.kill(pid, signal.SIGKILL)
        lines = file.read_bytes().split(b"\n")[:-1]
        rows += [json.loads(line) | {"phase": phase} for line in lines]

    loader = runs.make_loader(data)
    outcome = Outcome()
    losses, expected_losses = dict(runs.read_losses(run)), dict(runs.read_losses(reference))
    for step in range(1, STEPS + 1):
        problems = []
        attempts = _join_ranks([line for line in rows if line["step"] == step])
        expected = sorted(loader.batch(step - 1)[0].tolist())
        if not attempts:
            problems.append("in no phase did all ranks take it")
        if any(sorted(attempt) != expected for attempt in attempts):
            problems.append("other sequences")
        if abs(losses[step] - expected_losses[step]) > TOLERANCE:
            problems.append(f"loss {losses[step]}, expected {expected_losses[step]}")
        outcome.add(f"step {step}", problems)
    phases = ", ".join(f"{ranks} x {micro_batch}" for ranks, micro_batch, _ in PHASES)
    difference = abs(losses[STEPS] - expected_losses[STEPS])
    outcome.figures = f"ranks x micro batch {phases}; final loss differs by {difference:.1e}"
    return outcome


def _join_ranks(lines: list[dict]) -> list[list[list[int]]]:
    """The rows of a step on all ranks, for every phase in which all ranks took it."""
    attempts = []
    for phase in {line["phase"] for line in lines}:
        of_phase = [line for line in lines if line["phase"] == phase]
        if len(of_phase) == of_phase[0]["ranks"]:  # otherwise the kill came between the updates of two ranks
            attempts.append([row for line in of_phase for row in line["rows"]])
    return attempts


def compare_first_gradients(folder: Path, data: Path) -> Outcome:
    """Compare, in float64, the gradients of the first step of 2 ranks with those of 1 rank that accumulates."""
    gradients = {}
    for ranks in (1, 2):
        run_folder = folder / f"ranks-{ranks}"
        run = runs.make(run_folder, data, optimizer__grad_clip=0)
        fault = partial(injection.save_first_gradients, run_folder)
        with Forked(run, run_folder / "output", ranks=ranks, fault=fault) as processes:
            assert processes.wait() == 0, processes.text()
        gradients[ranks] = [list(np.load(run_folder / f"{rank}.npz").values()) for rank in range(ranks)]
    expected = gradients[1][0]
    outcome, largest_difference = Outcome(), 0.0
    for rank, of_rank in enumerate(gradients[2]):
        difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, of_rank, strict=True))
        largest_difference = max(largest_difference, difference)
        is_valid = all(gradient.dtype == np.float64 for gradient in of_rank) and any(g.any() for g in of_rank)
        outcome.add(f"rank {rank}", [] if is_valid and difference <= 1e-12 else [f"difference {difference}"])
    largest = max(float(np.abs(gradient).max()) for gradient in expected)
    outcome.figures = f"largest difference {largest_difference:.1e}, largest gradient {largest:.1e}"
    return outcome
