"""What does a checkpoint of GPT-2 124M cost the training loop? Weights and optimizer are 1.5 GB.

    python benchmarks/checkpoint.py                # some four minutes on two cores

Trains on made-up tokens through the command's own code, with a checkpoint in the middle, and holds the time that each
step took from end to end (by the times at which the records of the steps were written) against the median step. A step
here is as short as it gets, one sequence of 1,024 tokens, which is the hardest case: in a real run it has hundreds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2lab.config import Config
from gpt2lab.system import device as devices
from gpt2lab.tracking.metrics import JsonLines
from gpt2lab.training import checkpoint
from gpt2lab.training import run as training_run
from gpt2lab.training.run_directory import commit


def main() -> None:
    """Train, and print what the checkpoint cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--steps", type=int, default=24, metavar="N")
    parser.add_argument("--sequences", type=int, default=1, metavar="N", help="of a step (default: 1)")
    arguments = parser.parse_args()
    ends: dict[int, float] = {}
    log = JsonLines.log

    def timed_log(self: JsonLines, step: int, values: dict[str, float]) -> None:
        log(self, step, values)
        ends[step] = time.perf_counter()

    written: list[float] = []
    write = checkpoint.write

    def timed_write(folder: Path, snapshot: checkpoint.Snapshot) -> Path:
        began = time.perf_counter()
        path = write(folder, snapshot)
        written.append(time.perf_counter() - began)
        return path

    JsonLines.log, checkpoint.write = timed_log, timed_write  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for split in ("train_000", "val_000"):
            np.save(folder / f"{split}.npy", rng.integers(0, 50257, 100_000, dtype=np.uint16))
        saves = [arguments.steps // 3, 2 * arguments.steps // 3]
        settings: dict[str, Any] = {
            "run": {"name": "stall", "out_dir": str(folder)},
            "data": {"dir": str(folder)},
            "train": {"max_steps": arguments.steps, "total_batch_size": 1024 * arguments.sequences}
            | {"eval_every": 0, "sample_every": 0},
            "optimizer": {"warmup_steps": 1},
            "checkpoint": {"every": saves[0], "keep_last": 1, "keep_best": False},
            "system": {"device": arguments.device},
        }
        training_run.run(Config.model_validate(settings))
        lines = [json.loads(line) for line in (folder / "stall/metrics.jsonl").read_text().splitlines()]
    gaps = {step: ends[step] - ends[step - 1] for step in ends if step - 1 in ends and step > 2}
    beside = {step for save in saves for step in range(save + 1, save + 8)}  # steps that a write may run beside
    quiet = statistics.median(gap for step, gap in gaps.items() if step not in beside)
    hardware = devices.describe(devices.choose(arguments.device))
    print(f"commit {commit() or 'unknown'}; torch {torch.__version__}; {hardware}")
    peak = max(line.get("perf/peak_memory_gib", 0) for line in lines)
    print(f"a step of {1024 * arguments.sequences} tokens: {quiet:.2f} s; peak {peak:.1f} GiB")
    for save, seconds in zip(saves, written, strict=False):
        taken = gaps[save + 1] - statistics.median(
            line["perf/step_ms"] / 1e3 for line in lines if line["step"] == save + 1
        )
        slower = sum(gaps[step] - quiet for step in range(save + 1, min(save + 8, arguments.steps + 1)))
        print(
            f"checkpoint after step {save}: the loop stood still for {taken:.2f} s = {taken / quiet:.2f} steps; steps "
            f"beside the write ({seconds:.1f} s) lost {max(0.0, slower - taken):.2f} s more"
        )


if __name__ == "__main__":
    main()
