"""The full form of the experiments, and their figures in docs/results/faults.md.

python -m tests.faults                    all of them: a quarter of an hour or more
python -m tests.faults kills signals      these; the others' rows stay as they are
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.experiments import EXPERIMENTS
from tests.faults.processes import REPOSITORY
from tests.faults.runs import make_data

RESULTS = REPOSITORY / "docs" / "results" / "faults.md"
PREFACE = """\
# Faults: what a run survives

    make faults                             # all of it
    python -m tests.faults NAME ...         # these rows

{machine}; one thread a process.

A tiny model, harmed on purpose ([tests/faults](../../tests/faults)), then started again with the same command. "Equal"
means: sha256 of weights, optimizer, random state and guard are those of the run nobody touched, and so are the losses
in metrics.jsonl, every step once. Kills and signals are placed by the steps seen in metrics.jsonl. Most victims are
forked from a process that has torch imported; rows that say torchrun or `gpt2lab train` are of real commands. A short
form of most rows is part of `make test`. What a checkpoint costs the loop: [checkpoint.md](checkpoint.md).

A checkpoint is written while training goes on, so a kill in the midst of that goes back to the one before: it repeats
an interval and what was trained beside the write. A quarter of the kills are aimed there. A step takes a few
milliseconds here, so a write takes as long as several of them.

| experiment | bar | figure | verdict | s | commit |
|---|---|---|---|---:|---|
"""


def main(names: list[str]) -> int:
    if unknown := set(names) - EXPERIMENTS.keys():
        print(f"no such experiment: {', '.join(sorted(unknown))} (there are {', '.join(EXPERIMENTS)})")
        return 2
    failed = False
    for name in names or EXPERIMENTS:
        with tempfile.TemporaryDirectory(prefix="gpt2lab-faults-") as folder:
            began = time.monotonic()
            outcome = EXPERIMENTS[name].full(Path(folder) / "runs", make_data(Path(folder) / "data"))
            seconds = time.monotonic() - began
        if outcome is None:
            print(f"{name}: cannot be had here", flush=True)
            continue
        figure = f"{outcome.good} of {outcome.tried}{'; ' * bool(outcome.figures)}{outcome.figures}"
        verdict = "met" if outcome.good and not outcome.wrong else "**missed**"
        if outcome.short_of:
            verdict += f", **missed** by {outcome.short_of}"
        print(f"{name}: {figure}; {verdict} ({seconds:.0f} s)", *outcome.wrong, sep="\n    ", flush=True)
        failed |= bool(outcome.wrong)
        cells = (name, EXPERIMENTS[name].bar, figure, verdict, f"{seconds:.0f}", f"`{_commit()}`")
        _record(name, f"| {' | '.join(cells)} |")
    return int(failed)


def _record(name: str, row: str) -> None:
    """Put a row into the table, in place of the one of that name."""
    rows = {}
    if RESULTS.exists():
        lines = [line for line in RESULTS.read_text().splitlines() if line.startswith("| ")][1:]
        rows = {line.split(" ")[1]: line for line in lines}
    rows[name] = row
    table = "\n".join(rows[name] for name in EXPERIMENTS if name in rows)
    preface = PREFACE.format(machine=_machine())
    RESULTS.write_text(f"{preface}{table}\n")


def _machine() -> str:
    import platform

    import torch

    from gpt2lab.system.device import describe

    hardware = describe(torch.device("cpu"))
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores; Python {platform.python_version()}, torch {torch.__version__}"
    )


def _commit() -> str:
    """The commit, with a mark if the code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git("rev-parse", "--short=9", "HEAD").strip() + ("-dirty" if changed else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
