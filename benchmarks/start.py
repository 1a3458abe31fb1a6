"""How soon `gpt2lab train` takes its first step, and whether a second start finds what was compiled for the first.

    python benchmarks/start.py          # two to three minutes on two cores

Seconds from the call to the line of step 1 on the screen, on Python's own texts, which are prepared before. Rows:

    quickstart           as it is: with the validation loss and samples before the first step
    124M                 GPT-2 124M, 2 sequences of 512 tokens, without
    124M, compiled       the same with system.compile on and an empty cache of the compiler
    124M, compiled again the same, the second start
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gpt2lab.system import device as devices
from gpt2lab.training.run_directory import commit

LIMIT = 10.0  # seconds, without compiling
SHAPE = ["--model.block_size", "512", "--train.micro_batch_size", "2", "--train.total_batch_size", "1024"]
ALONE = ["--train.eval_every", "0", "--train.sample_every", "0", "--train.hellaswag_every", "0"]
LARGE = ["--config", "gpt2_124m", "--data.source", "stdlib", *SHAPE, *ALONE]
COMPILED = [*LARGE, "--system.compile", "on"]
ROWS = {
    "quickstart": ["--tracking.log_every", "1"],
    "124M": LARGE,
    "124M, compiled": COMPILED,
    "124M, compiled again": COMPILED,
}


def first_step(arguments: list[str], name: str, folder: Path) -> float:
    """Seconds until a run in `folder` says what step 1 was like; it is ended there."""
    command = [sys.executable, "-u", "-m", "gpt2lab", "train", *arguments, "--run.name", name]
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = any(line.startswith("step     1 |") and "loss" in line for line in process.stdout)
        seconds = time.perf_counter() - began
        process.kill()
    if not found:
        raise SystemExit(f"{' '.join(command)} took no step")
    return seconds


def main() -> None:
    """Print a line a row; rows without the compiler say whether the bar is met."""
    print(f"commit {commit() or 'unknown'}; torch {torch.__version__}; {devices.describe(devices.choose('auto'))}")
    with tempfile.TemporaryDirectory() as scratch:
        first_step(ROWS["quickstart"], "warm-up", Path(scratch))  # data, and the files of Python and torch
        for number, (name, arguments) in enumerate(ROWS.items()):
            seconds = first_step(arguments, f"run{number}", Path(scratch))
            verdict = "    " if "compiled" in name else "ok  " if seconds < LIMIT else "MISS"
            print(f"{verdict} {name}: {seconds:.1f} s to the first step", flush=True)


if __name__ == "__main__":
    main()
