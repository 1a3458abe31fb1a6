"""A disk that is full: a clear error, the checkpoint before it good, nothing half-written left."""

import re
from functools import partial
from pathlib import Path

from gpt2lab.training import checkpoint
from tests.faults import harm, runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import Forked
from tests.faults.runs import EVERY, STEPS

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS", "metrics.jsonl")
STEP = 2 * EVERY


def full_disk(folder: Path, data: Path, ranks: int = 1) -> Outcome:
    """No file may grow at one of five points of a run (RLIMIT_FSIZE: the same system call fails as on a full disk)."""
    reference = straight(folder / "straight", data, ranks)
    outcome = Outcome()
    for file in FILES:
        place = folder / file
        run = runs.make(place, data)
        with Forked(
            run, place / "output-0", ranks=ranks, harm=partial(harm.fill_disk_at, run.metrics, file, STEP)
        ) as victim:
            status, text = victim.wait(), victim.text()
        lines = [line for line in text.splitlines() if line.startswith("gpt2lab: ")]
        wrong = [] if status == 2 else [f"exit status {status}"]
        said = [line for line in lines if re.search(rf"cannot write {run.path}/.*: File too large; free space", line)]
        if len(lines) != ranks or not said:
            wrong.append(f"it says {lines}")
        if "Traceback" in text:
            wrong.append("traceback")
        wrong += [f"left {name}" for name in runs.leftovers(run)]
        there = STEP if file == "metrics.jsonl" else STEP - EVERY
        found = checkpoint.newest_good(run.checkpoints, wrong.append)
        if (found.step if found else 0) != there:
            wrong.append(f"the newest checkpoint is {found and found.step}, not {there}")
        with Forked(run, place / "output-1", ranks=ranks) as again:
            assert again.wait() == 0, again.text()
        wrong += runs.differences(run, reference, STEPS)
        outcome.trial(file, wrong)
    return outcome
