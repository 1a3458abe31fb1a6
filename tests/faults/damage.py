"""Damage to a checkpoint on disk: it is detected on loading, and the checkpoint before it is used."""

import random
import shutil
from pathlib import Path
from typing import Any

from gpt2lab.errors import GPT2LabError
from gpt2lab.model import resolve
from gpt2lab.training import checkpoint
from tests.faults import runs
from tests.faults.kills import first_step, train_uninterrupted
from tests.faults.outcome import Outcome
from tests.faults.processes import Command
from tests.faults.runs import EVERY, STEPS, Run


def flip_random_bits(folder: Path, data: Path, count: int, commands: int, **changes: Any) -> Outcome:
    """Flip one random bit of the newest checkpoint at a time, and try to use the checkpoint.

    Half of the flips are distributed evenly over its files, SHA256SUMS and state.json among them; the other half over
    its bytes. With the first `commands` of them the real command continues the run. `changes` are settings of the run.
    """
    reference = train_uninterrupted(folder / "reference", data, **changes)
    rng = random.Random(0)
    files = sorted(reference.checkpoint(STEPS).iterdir())
    sizes = [file.stat().st_size for file in files]
    outcome = Outcome()
    for number in range(count):
        file = files[number // 2 % len(files)] if number % 2 else rng.choices(files, sizes)[0]
        bit = rng.randrange(8 * file.stat().st_size)
        if number < commands:
            run = runs.make(folder / f"flip-{number}", data, **changes)
            shutil.copytree(reference.path, run.path)
            flip_bit(run.checkpoint(STEPS) / file.name, bit)
            problems = _continue_by_command(run, reference)
        else:
            flip_bit(file, bit)
            problems = _use_checkpoint(reference)
            flip_bit(file, bit)
        outcome.add(f"bit {bit} of {file.name}", problems)
    return outcome


def flip_every_bit_of_digests(folder: Path, data: Path) -> Outcome:
    """Flip every single bit of SHA256SUMS, which no other file holds a digest of."""
    reference = train_uninterrupted(folder / "reference", data)
    file = reference.checkpoint(STEPS) / "SHA256SUMS"
    outcome = Outcome()
    for bit in range(8 * file.stat().st_size):
        flip_bit(file, bit)
        outcome.add(f"bit {bit}", _use_checkpoint(reference))
        flip_bit(file, bit)
    return outcome


def flip_bit(file: Path, bit: int) -> None:
    """Flip one bit of a file in place."""
    with open(file, "r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ (1 << bit % 8)]))


def _use_checkpoint(run: Run) -> list[str]:
    """Use the run whose newest checkpoint is damaged; what is wrong with the choice of the checkpoint."""
    problems = []
    damaged = run.checkpoint(STEPS)
    try:
        checkpoint.read(damaged)
        problems.append("training would continue from it")
    except GPT2LabError as error:
        if damaged.name not in str(error):
            problems.append(f"the damaged checkpoint is not named: {error}")
    try:
        checkpoint.read(run.checkpoint(STEPS - EVERY))
        if resolve.find_checkpoint(run.path).step != STEPS - EVERY:
            problems.append("evaluation would use it")
    except GPT2LabError as error:
        problems.append(str(error))
    return problems


def _continue_by_command(run: Run, reference: Run) -> list[str]:
    """Continue a run with the real command: it names the damaged checkpoint, and writes it again, equal."""
    with Command(run, run.recipe.parent / "output") as command:
        status = command.wait()
        text = command.text()
    problems = [f"exit status {status}: {text[-200:]}"] if status else []
    if run.checkpoint(STEPS).name not in text or first_step(text) != STEPS - EVERY + 1:
        problems.append(f"output: {text[:500]}")
    return problems + runs.find_differences(run, reference)
