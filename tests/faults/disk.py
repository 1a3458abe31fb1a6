"""A full disk: a clear error, an intact checkpoint before it, no temporary files."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from gpt2lab.model.resolve import list_checkpoints
from gpt2lab.training import checkpoint
from tests.faults import injection, runs
from tests.faults.kills import train_uninterrupted
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY, Forked
from tests.faults.runs import EVERY, STEPS

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS", "metrics.jsonl")
STEP = 2 * EVERY
TMPFS_SIZES = (40, 200, 400, 520, 640)  # KiB; a checkpoint of these runs takes about 170


def fill_disk(folder: Path, data: Path, ranks: int = 1) -> Outcome:
    """Let no file grow at one of five points of a run (RLIMIT_FSIZE: the system call fails as on a full disk)."""
    reference = train_uninterrupted(folder / "reference", data, ranks)
    outcome = Outcome()
    for file in FILES:
        run = runs.make(folder / file, data)
        fault = partial(injection.fill_disk_at, run.metrics, file, STEP)
        with Forked(run, folder / file / "output-0", ranks=ranks, fault=fault) as processes:
            status, text = processes.wait(), processes.text()
        errors = [line for line in text.splitlines() if line.startswith("gpt2lab: ")]
        problems = [] if status == 2 else [f"exit status {status}"]
        if len(errors) != ranks or not any(re.search(rf"{run.path}/.*File too large", line) for line in errors):
            problems.append(f"errors {errors}")
        if "Traceback" in text:
            problems.append("traceback")
        problems += [f"left {name}" for name in runs.find_leftovers(run)]
        expected = STEP if file == "metrics.jsonl" else STEP - EVERY
        if (runs.newest_step(run), runs.newest_intact_step(run)) != (expected, expected):
            problems.append(f"the newest checkpoint is {runs.newest_step(run)}, not an intact {expected}")
        with Forked(run, folder / file / "output-1", ranks=ranks) as processes:
            assert processes.wait() == 0, processes.text()
        outcome.add(file, problems + runs.find_differences(run, reference, STEPS))
    return outcome


def fill_tmpfs(folder: Path, data: Path) -> Outcome | None:
    """Run the real command on a disk that is really full: a tmpfs of five sizes, in a mount namespace of its own.

    None where nothing can be mounted: it needs root.
    """
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return None
    reference = train_uninterrupted(folder / "reference", data)
    outcome, newest = Outcome(), []
    for size in TMPFS_SIZES:
        run_folder = folder / str(size)
        run = runs.make(run_folder, data)
        out_dir, copy = run_folder / "runs", run_folder / "copy"
        script = (
            f"mount -t tmpfs -o size={size}k tmpfs {out_dir} && "
            f"{sys.executable} -m gpt2lab train --config {run.recipe}; "
            f"status=$?; cp -a {out_dir} {copy}; exit $status"
        )
        out_dir.mkdir()
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        shutil.rmtree(out_dir)
        copy.rename(out_dir)
        problems = [] if done.returncode == 2 else [f"exit status {done.returncode}"]
        if not re.fullmatch(rf"gpt2lab: [^\n]*{out_dir}[^\n]*\n", done.stderr):
            problems.append(f"standard error: {done.stderr[-500:]}")
        problems += [f"left {name}" for name in runs.find_leftovers(run)]
        for _, path in list_checkpoints(run.checkpoints):
            checkpoint.read(path)
        newest.append(runs.newest_step(run))
        with Forked(run, run_folder / "output") as processes:
            assert processes.wait() == 0, processes.text()
        outcome.add(f"{size} KiB", problems + runs.find_differences(run, reference, STEPS))
    sizes, steps = (", ".join(map(str, numbers)) for numbers in (TMPFS_SIZES, newest))
    outcome.figures = f"tmpfs of {sizes} KiB; newest checkpoint {steps}"
    return outcome
