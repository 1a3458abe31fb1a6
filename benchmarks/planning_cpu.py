"""Compare the speed that `gpt2lab plan` estimates on a CPU after `--calibrate` with that of training runs.

    python benchmarks/planning_cpu.py                # calibrates and trains, for 6 models; a Markdown table
    python benchmarks/planning_cpu.py --steps 5      # fewer steps of each
    python benchmarks/planning_cpu.py --rounds 3     # three times, and the median error of each model
    python benchmarks/planning_cpu.py --only 2,4     # the second and the fourth model

Nothing else may run on the machine. Each run has a calibration of its own just before it, since the speed of a virtual
machine changes within minutes. The shapes are others than those that the calibration times, except the first. The
estimate is the one that the run keeps in environment.json. The first step, which is slower, is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# n_layer, n_head, n_embd, block_size, micro batch, micro-steps, precision
SHAPES = (
    (2, 4, 128, 64, 24, 1, "auto"),  # the quickstart
    (4, 4, 128, 64, 8, 3, "auto"),
    (8, 8, 512, 512, 4, 1, "auto"),
    (6, 6, 384, 1024, 2, 2, "auto"),
    (12, 12, 768, 512, 2, 1, "auto"),  # GPT-2 124M
    (12, 12, 768, 1024, 2, 1, "auto"),
)


def settings_of(shape: tuple[int, int, int, int, int, int, str], steps: int) -> list[str]:
    """The options of a run without evaluations."""
    n_layer, n_head, n_embd, block_size, micro, micro_steps, precision = shape
    values = {
        "model.n_layer": n_layer,
        "model.n_head": n_head,
        "model.n_embd": n_embd,
        "model.block_size": block_size,
        "train.micro_batch_size": micro,
        "train.total_batch_size": micro * micro_steps * block_size,
        "train.max_steps": steps,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "optimizer.warmup_steps": 1,
        "checkpoint.every": 0,
        "system.precision": precision,
        "system.device": "cpu",
        "data.source": "stdlib",
        "data.dir": os.environ.get("DATA_DIR", "data/stdlib"),
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def calibrate() -> str:
    """Measure the machine as a user would; returns what the command printed."""
    command = [sys.executable, "-m", "gpt2lab", "plan", "--calibrate", "--system.device", "cpu"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(shape: tuple[int, int, int, int, int, int, str], steps: int) -> tuple[float, float]:
    """Train a model; returns the measured and the estimated tokens/s."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*settings_of(shape, steps), "--run.out_dir", folder, "--run.name", "x"]
        subprocess.run([sys.executable, "-m", "gpt2lab", "train", *options], check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "x" / "metrics.jsonl").read_text().splitlines()
        environment = json.loads((Path(folder) / "x" / "environment.json").read_text())
    timed = [values["perf/tokens_per_second"] for values in map(json.loads, lines) if "perf/step_ms" in values][1:]
    estimated = environment["estimate"]["tokens_per_second"]["estimate"]
    return len(timed) / sum(1 / rate for rate in timed), estimated


def main() -> None:
    """Calibrate, train, and print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="1,2,3,4,5,6", metavar="N,N")
    arguments = parser.parse_args()
    shapes = [SHAPES[int(number) - 1] for number in arguments.only.split(",")]
    errors: dict[str, list[float]] = {}
    print(calibrate())
    print("| layers, heads, channels | block | micro batch x steps | tokens/s | estimated | error |")
    print("|---|---:|---|---:|---:|---:|")
    for _ in range(arguments.rounds):
        for shape in shapes:
            calibrate()
            measured, estimated = compare(shape, arguments.steps)
            n_layer, n_head, n_embd, block_size, micro, micro_steps, _ = shape
            name = f"{n_layer}, {n_head}, {n_embd} | {block_size} | {micro} x {micro_steps}"
            error = estimated / measured - 1
            errors.setdefault(name, []).append(error)
            print(f"| {name} | {measured:,.0f} | {estimated:,.0f} | {error:+.1%} |", flush=True)
    if arguments.rounds > 1:
        for name, values in errors.items():
            print(f"| {name} | | median | {statistics.median(values):+.1%} |")


if __name__ == "__main__":
    main()
