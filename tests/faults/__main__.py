"""Runs the full form of the experiments and writes their figures to docs/results/faults.md.

python -m tests.faults                    all of them: ten minutes on two cores
python -m tests.faults kills signals      only these; the page is not written
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
# Faults that a run survives

    make faults

{machine}; one thread per process; commit `{commit}`.

The experiments interrupt or damage a tiny training run ([tests/faults](../../tests/faults)), then start it again with
the same command. "Equal" means that the sha256 of weights, optimizer state, random state and guard state are those of
an uninterrupted run, and that `metrics.jsonl` has the same losses, with every step once. The time of a kill or signal
is determined by the steps in `metrics.jsonl`. Most processes are forked from one that has imported torch; rows that
mention torchrun or `gpt2lab train` use real commands. The test suite contains a short form of most rows. The cost of a
checkpoint for the training loop: [checkpoint.md](checkpoint.md).

A checkpoint is written while training continues. After a kill during the write, training resumes from the previous
checkpoint, and repeats one interval and the steps that were trained during the write. A quarter of the kills are during
a write. A step takes a few milliseconds here, so a write takes as long as several steps.

| experiment | requirement | measured | result | s |
|---|---|---|---|---:|
"""


def main(names: list[str]) -> int:
    if unknown := set(names) - EXPERIMENTS.keys():
        print(f"no such experiment: {', '.join(sorted(unknown))} (there are {', '.join(EXPERIMENTS)})")
        return 2
    commit, rows, all_met = _find_commit(), [], True
    for name in names or EXPERIMENTS:
        with tempfile.TemporaryDirectory(prefix="gpt2lab-faults-") as folder:
            start = time.monotonic()
            outcome = _run(EXPERIMENTS[name].full, Path(folder))
            seconds = time.monotonic() - start
        if outcome is None:
            figure, verdict = "needs root, to mount", "not measured"
        else:
            figure = f"{outcome.passed} of {outcome.trials}{'; ' * bool(outcome.figures)}{outcome.figures}"
            verdict = "met" if outcome.passed and not outcome.problems else "**missed**"
            if outcome.missed_bar:
                verdict += f", **missed** by {outcome.missed_bar}"
            all_met &= verdict.startswith("met")
        print(f"{name}: {figure}; {verdict} ({seconds:.0f} s)", flush=True)
        for problem in outcome.problems if outcome else ():
            print(f"    {problem}", flush=True)
        rows.append(f"| {name} | {EXPERIMENTS[name].bar} | {figure} | {verdict} | {seconds:.0f} |\n")
    if not names:
        RESULTS.write_text(PREFACE.format(machine=_describe_machine(), commit=commit) + "".join(rows))
    return int(not all_met)


def _run(form: Form, folder: Path) -> Outcome | None:
    """Run an experiment. An exception is a trial that failed."""
    try:
        return form(folder / "runs", make_data(folder / "data"))
    except Exception as error:
        traceback.print_exc()
        return Outcome(problems=[f"exception: {error}"])


def _describe_machine() -> str:
    import platform

    import torch

    from gpt2lab.system.device import describe

    hardware = describe(torch.device("cpu"))
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores; Python {platform.python_version()}, torch {torch.__version__}"
    )


def _find_commit() -> str:
    """The commit, marked if the code differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git("rev-parse", "--short=9", "HEAD").strip() + ("-dirty" if changed else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
