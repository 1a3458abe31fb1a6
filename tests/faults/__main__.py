"""The full form of the experiments, and their figures in docs/results/faults.md.

python -m tests.faults                    all of them: ten minutes on two cores
python -m tests.faults kills signals      these, and no page
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.experiments import EXPERIMENTS, Form
from tests.faults.outcome import Outcome
from tests.faults.processes import REPOSITORY
from tests.faults.runs import make_data

RESULTS = REPOSITORY / "docs" / "results" / "faults.md"
PREFACE = """\
# Faults: what a run survives

    make faults

{machine}; one thread a process; commit `{commit}`.

A tiny model, harmed on purpose ([tests/faults](../../tests/faults)), then started again with the same command. "Equal"
means: sha256 of weights, optimizer, random state and guard are those of the run nobody touched, and so are the losses
in metrics.jsonl, every step once. Kills and signals are placed by the steps seen in metrics.jsonl. Most victims are
forked from a process that has torch imported; rows that say torchrun or `gpt2lab train` are of real commands. A short
form of most rows is part of `make test`. What a checkpoint costs the loop: [checkpoint.md](checkpoint.md).

A checkpoint is written while training goes on, so a kill in the midst of that goes back to the one before: it repeats
an interval and what was trained beside the write. A quarter of the kills are aimed there. A step takes a few
milliseconds here, so a write takes as long as several of them.

| experiment | bar | figure | verdict | s |
|---|---|---|---|---:|
"""


def main(names: list[str]) -> int:
    if unknown := set(names) - EXPERIMENTS.keys():
        print(f"no such experiment: {', '.join(sorted(unknown))} (there are {', '.join(EXPERIMENTS)})")
        return 2
    commit, rows, good = _commit(), [], True
    for name in names or EXPERIMENTS:
        with tempfile.TemporaryDirectory(prefix="gpt2lab-faults-") as folder:
            began = time.monotonic()
            outcome = _tried(EXPERIMENTS[name].full, Path(folder))
            seconds = time.monotonic() - began
        if outcome is None:
            figure, verdict = "takes root, to mount", "not measured"
        else:
            figure = f"{outcome.good} of {outcome.tried}{'; ' * bool(outcome.figures)}{outcome.figures}"
            verdict = "met" if outcome.good and not outcome.wrong else "**missed**"
            if outcome.short_of:
                verdict += f", **missed** by {outcome.short_of}"
            good &= verdict.startswith("met")
        print(f"{name}: {figure}; {verdict} ({seconds:.0f} s)", flush=True)
        for complaint in outcome.wrong if outcome else ():
            print(f"    {complaint}", flush=True)
        rows.append(f"| {name} | {EXPERIMENTS[name].bar} | {figure} | {verdict} | {seconds:.0f} |\n")
    if not names:
        RESULTS.write_text(PREFACE.format(machine=_machine(), commit=commit) + "".join(rows))
    return int(not good)


def _tried(form: Form, folder: Path) -> Outcome | None:
    """What came of an experiment; one that breaks down has come to no good."""
    try:
        return form(folder / "runs", make_data(folder / "data"))
    except Exception as error:
        traceback.print_exc()
        return Outcome(wrong=[f"it broke down: {error}"])


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
