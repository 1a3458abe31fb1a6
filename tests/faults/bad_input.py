"""Runs the table of bad input: each case must end in one line that names the key or file, and must change no file."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from gpt2lab import cli
from tests.faults import runs
from tests.faults.bad_input_cases import CASES, REAL_COMMANDS, Case
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY, free_port
from tests.faults.runs import EVERY

Result = tuple[int | str, str]  # exit status, or the exception; standard error

# A command that fails may have opened the run: it updates these.
BOOKKEEPING = (".lock", "environment.json", "config.yaml", "events.jsonl")


def make_good_state(folder: Path) -> Path:
    """Make the state that every case starts from: shards, a recipe, and a run that the recipe continues."""
    runs.make_data(folder / "data")
    runs.make(folder, Path("data"), run__out_dir="runs")
    status, error = run_in_process(("train", "--config", "recipe.yaml", "--train.max_steps", str(2 * EVERY)), folder)
    assert status == 0, error
    (folder / "runs" / "empty" / "checkpoints").mkdir(parents=True)
    return folder


def find_problems(case: Case, good_state: Path, folder: Path, real_command: bool = False) -> list[str]:
    """Run a case in `folder`, which must not exist.

    Args:
        case: the bad input.
        good_state: from `make_good_state`.
        folder: where to run; a copy of `good_state` is made there.
        real_command: in a process of its own, instead of by `main` in this one.

    Returns:
        What is wrong with the answer, nothing if it is right.
    """
    shutil.copytree(good_state, folder)
    case.change(folder)
    before = list_files(folder)
    port = str(free_port())
    variables = {name: port if value == "PORT" else value for name, value in case.variables.items()}
    run = run_as_command if real_command else run_in_process
    status, error = run(case.arguments, folder, variables)
    problems = [] if status == 2 else [f"exit status {status}"]
    is_one_line = error.startswith("gpt2lab: ") and error.count("\n") == 1 and len(error) <= 1000
    if not is_one_line or case.expected.lower() not in error.lower():
        problems.append(f"standard error {error[:500]!r}, not a line with {case.expected!r}")
    if changed := {name for name, _ in list_files(folder) ^ before}:
        problems.append(f"changed {sorted(changed)}")
    return problems


def bad_inputs(folder: Path, data: Path) -> Outcome:
    """All cases in this process, and those of REAL_COMMANDS as real commands, two at a time."""
    good_state = make_good_state(folder / "good")
    outcome = Outcome()
    with ThreadPoolExecutor(2) as pool:
        real = {
            name: pool.submit(find_problems, CASES[name], good_state, folder / f"real {index}", real_command=True)
            for index, name in enumerate(REAL_COMMANDS)
        }
        problems = {f"{name}, as a command": future.result() for name, future in real.items()}
    for index, (name, case) in enumerate(CASES.items()):
        problems[name] = find_problems(case, good_state, folder / str(index))
    for name, of_case in problems.items():
        outcome.add(name, of_case)
    counts = Counter(name.partition(":")[0] for name in CASES)
    outcome.figures = ", ".join(f"{count} of {section}" for section, count in counts.items())
    outcome.figures += f"; {len(REAL_COMMANDS)} as real commands"
    return outcome


def run_in_process(arguments: tuple[str, ...], folder: Path, variables: Mapping[str, str] | None = None) -> Result:
    """Run a command by `main` in this process. An exception counts as the status: it would print a traceback."""
    error = io.StringIO()
    streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error)
    with streams[0], streams[1], contextlib.chdir(folder), mock.patch.dict(os.environ, variables or {}):
        try:
            return cli.main(list(arguments)), error.getvalue()
        except BaseException as bug:
            return f"{type(bug).__name__}: {bug}", error.getvalue()


def run_as_command(arguments: tuple[str, ...], folder: Path, variables: Mapping[str, str] | None = None) -> Result:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "gpt2lab", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | dict(variables or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def list_files(folder: Path) -> set[tuple[str, str]]:
    """Name and sha256 of every file below a folder, and the names of the folders, without the bookkeeping of runs."""
    entries = set()
    for path in folder.rglob("*"):
        if path.name not in BOOKKEEPING:
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            entries.add((str(path.relative_to(folder)), digest))
    return entries
