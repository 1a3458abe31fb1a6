"""Another number of ranks, another micro batch: the same steps."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np

from gpt2lab.data.loader import Loader
from gpt2lab.data.shards import open_split
from tests.faults import harm, runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import Forked
from tests.faults.runs import BLOCK_SIZE, SEQUENCES, STEPS, Run

PHASES = ((2, 3, 17), (1, 2, 38), (3, 1, STEPS))  # ranks, micro batch, and the step at which all are killed
TOLERANCE = 1e-4


def changing_ranks(folder: Path, data: Path) -> Outcome:
    """One run with 2, then 1, then 3 ranks and three micro batches, through two kills, against a straight one.

    What is compared is what went into the model: the rows of tokens of every step, all ranks together.
    """
    reference = straight(folder / "straight", data)
    run = runs.make(folder / "elastic", data)
    rows: list[dict] = []
    for number, (ranks, micro, until) in enumerate(PHASES):
        record = folder / f"rows-{number}"
        more = ("--train.micro_batch_size", str(micro))
        look = partial(harm.record_rows, record)
        with Forked(run, folder / f"output-{number}", *more, ranks=ranks, harm=look) as victim:
            if until == STEPS:
                assert victim.wait() == 0, victim.text()
            else:
                assert victim.wait_until(partial(_has_come_to, run, until)), victim.text()
                for pid in victim.pids():
                    os.kill(pid, signal.SIGKILL)
        lines = record.read_bytes().split(b"\n")[:-1]
        rows += [json.loads(line) | {"phase": number} for line in lines]

    stream = open_split(data, "train")
    expected = Loader(stream, block_size=BLOCK_SIZE, sequences_per_step=SEQUENCES, vocab_size=300, seed=1337)
    outcome = Outcome()
    ours, theirs = dict(runs.losses(run)), dict(runs.losses(reference))
    for step in range(1, STEPS + 1):
        wrong = []
        whole = _whole_steps([line for line in rows if line["step"] == step])
        if not whole:
            wrong.append("no attempt at it is whole")
        if any(sorted(attempt) != sorted(expected.batch(step - 1)[0].tolist()) for attempt in whole):
            wrong.append("other sequences")
        if abs(ours[step] - theirs[step]) > TOLERANCE:
            wrong.append(f"loss {ours[step]} instead of {theirs[step]}")
        outcome.trial(f"step {step}", wrong)
    phases = ", ".join(f"{ranks} x {micro}" for ranks, micro, _ in PHASES)
    outcome.figures = f"ranks x micro batch {phases}; final loss differs by {abs(ours[STEPS] - theirs[STEPS]):.1e}"
    return outcome


def _has_come_to(run: Run, step: int) -> bool:
    return runs.last_step(run) >= step


def _whole_steps(lines: list[dict]) -> list[list[list[int]]]:
    """The rows of a step, ranks together, of every phase in which all ranks took it."""
    whole = []
    for phase in {line["phase"] for line in lines}:
        shares = [line for line in lines if line["phase"] == phase]
        if len(shares) == shares[0]["ranks"]:  # else a kill came between two ranks' updates
            whole.append([row for share in shares for row in share["rows"]])
    return whole


def first_gradients(folder: Path, data: Path) -> Outcome:
    """In float64, the gradients of the first step of 2 ranks against those of 1 rank that accumulates."""
    gradients = {}
    for ranks in (1, 2):
        place = folder / f"ranks-{ranks}"
        run = runs.make(place, data, optimizer__grad_clip=0)
        with Forked(run, place / "output", ranks=ranks, harm=partial(harm.save_first_gradients, place)) as victim:
            assert victim.wait() == 0, victim.text()
        gradients[ranks] = [list(np.load(place / f"{rank}.npz").values()) for rank in range(ranks)]
    alone = gradients[1][0]
    outcome, most = Outcome(), 0.0
    for rank, found in enumerate(gradients[2]):
        off = max(float(np.abs(a - b).max()) for a, b in zip(alone, found, strict=True))
        most = max(most, off)
        exact = all(gradient.dtype == np.float64 for gradient in found) and any(g.any() for g in found)
        outcome.trial(f"rank {rank}", [] if exact and off <= 1e-12 else [f"off by {off}"])
    largest = max(float(np.abs(gradient).max()) for gradient in alone)
    outcome.figures = f"largest difference {most:.1e}, largest gradient {largest:.1e}"
    return outcome
