"""Damage to a checkpoint on disk: found on loading, and the checkpoint before it is used."""

import random
import shutil
from pathlib import Path

from gpt2lab.errors import GPT2LabError
from gpt2lab.model import resolve
from gpt2lab.training import checkpoint
from tests.faults import runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import Command
from tests.faults.runs import EVERY, STEPS, Run


def bit_flips(folder: Path, data: Path, count: int, commands: int) -> Outcome:
    """Flip one random bit of the newest checkpoint at a time. Half of the flips are dealt out evenly over its files,
    SHA256SUMS and state.json among them; half fall wherever there are bytes. `commands` of them meet the real command.
    """
    reference = straight(folder / "straight", data)
    chance = random.Random(0)
    newest = reference.checkpoints / f"step_{STEPS:08d}"
    files = sorted(newest.iterdir())
    sizes = [file.stat().st_size for file in files]
    outcome = Outcome()
    for number in range(count):
        file = files[number // 2 % len(files)] if number % 2 else chance.choices(files, sizes)[0]
        bit = chance.randrange(8 * file.stat().st_size)
        if number < commands:
            wrong = _resumed_by_command(_copy(reference, folder / f"flip-{number}", data), file.name, bit, reference)
        else:
            flip(file, bit)
            wrong = _passed_over(reference, file)
            flip(file, bit)
        outcome.trial(f"bit {bit} of {file.name}", wrong)
    return outcome


def every_bit_of_digests(folder: Path, data: Path) -> Outcome:
    """Flip every single bit of SHA256SUMS, the one file that nothing else vouches for."""
    reference = straight(folder / "straight", data)
    file = reference.checkpoints / f"step_{STEPS:08d}" / "SHA256SUMS"
    outcome = Outcome()
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        outcome.trial(f"bit {bit}", _passed_over(reference, file))
        flip(file, bit)
    return outcome


def flip(file: Path, bit: int) -> None:
    """Flip one bit of a file in place."""
    with open(file, "r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ (1 << bit % 8)]))


def _passed_over(run: Run, damaged: Path) -> list[str]:
    """What is wrong with the choice of a checkpoint, in training and in every other use of a run's weights."""
    heard: list[str] = []
    wrong = []
    try:
        found = checkpoint.newest_valid(run.checkpoints, heard.append)
    except GPT2LabError as error:
        return [str(error)]
    if found is None or found.step != STEPS - EVERY:
        wrong.append(f"training would go on from step {found and found.step}")
    if not any(damaged.parent.name in line for line in heard):
        wrong.append(f"the damaged checkpoint is not named: {heard}")
    if resolve.find_checkpoint(run.path).step != STEPS - EVERY:
        wrong.append("evaluation would use it")
    return wrong


def _copy(run: Run, folder: Path, data: Path) -> Run:
    copy = runs.make(folder, data)
    shutil.copytree(run.path, copy.path)
    return copy


def _resumed_by_command(run: Run, name: str, bit: int, reference: Run) -> list[str]:
    """The damaged checkpoint under the real command: named, passed over, and written again, equal."""
    flip(run.checkpoints / f"step_{STEPS:08d}" / name, bit)
    with Command(run, run.recipe.parent / "output") as command:
        status = command.wait()
        text = command.text()
    wrong = [f"exit status {status}: {text[-200:]}"] if status else []
    if "trying the checkpoint before it" not in text or f"resuming after step {STEPS - EVERY}" not in text:
        wrong.append(f"it says: {text[:500]}")
    return wrong + runs.differences(run, reference)
