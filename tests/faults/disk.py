"""A disk that is full: a clear error, the checkpoint before it good, nothing half-written left."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from gpt2lab.model.resolve import list_checkpoints as checkpoints_in
from gpt2lab.training import checkpoint
from tests.faults import harm, runs
from tests.faults.kills import straight
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY, Forked
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
        found = checkpoint.newest_valid(run.checkpoints)
        if (found.step if found else 0) != there:
            wrong.append(f"the newest checkpoint is {found and found.step}, not {there}")
        with Forked(run, place / "output-1", ranks=ranks) as again:
            assert again.wait() == 0, again.text()
        wrong += runs.differences(run, reference, STEPS)
        outcome.trial(file, wrong)
    return outcome


SIZES = (40, 200, 400, 520, 640)  # KiB; a checkpoint of this run takes about 170


def full_tmpfs(folder: Path, data: Path) -> Outcome | None:
    """The real command on a disk that is really full: a small tmpfs, in a mount namespace of its own, of five sizes.

    None where nothing may be mounted (it takes root).
    """
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return None
    reference = straight(folder / "straight", data)
    outcome, kept = Outcome(), []
    for size in SIZES:
        place = folder / str(size)
        run = runs.make(place, data)
        script = (
            f"mount -t tmpfs -o size={size}k tmpfs {place / 'runs'} && "
            f"{sys.executable} -m gpt2lab train --config {run.recipe}; "
            f"status=$?; cp -a {place / 'runs'} {place / 'left'}; exit $status"
        )
        (place / "runs").mkdir()
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        shutil.rmtree(place / "runs")
        (place / "left").rename(place / "runs")
        wrong = [] if done.returncode == 2 else [f"exit status {done.returncode}"]
        if not re.fullmatch(r"gpt2lab: [^\n]*(No space left on device|the disk has)[^\n]*\n", done.stderr):
            wrong.append(f"it says {done.stderr[-500:]}")
        wrong += [f"left {name}" for name in runs.leftovers(run)]
        for _, path in checkpoints_in(run.checkpoints):
            checkpoint.read(path)
        kept.append(runs.newest_step(run))
        with Forked(run, place / "output") as again:
            assert again.wait() == 0, again.text()
        wrong += runs.differences(run, reference, STEPS)
        outcome.trial(f"{size} KiB", wrong)
    outcome.figures = f"tmpfs of {', '.join(map(str, SIZES))} KiB; newest checkpoint {', '.join(map(str, kept))}"
    return outcome
