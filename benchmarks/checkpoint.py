"""What a checkpoint of GPT-2 124M (1.5 GB of weights and optimizer state) costs the training loop.

    python benchmarks/checkpoint.py                # some four minutes on two cores

Trains on random tokens as `gpt2lab train` does, with two checkpoints on the way, and compares the time of each step
from end to end with the median step. A step here is as short as it gets, one sequence of 1,024 tokens, which is the
hardest case: in a real run it has hundreds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2lab.bench import measure
from gpt2lab.bench.measure import Check
from gpt2lab.config import Config
from gpt2lab.system import device as devices
from gpt2lab.training import checkpoint
from gpt2lab.training import run as training_run

STEPS_OF_A_WRITE = 7  # steps after a checkpoint during which it may still be written


class StepEnds:
    """A sink of metrics that keeps the time at which each step was recorded."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def log(self, step: int, *_: object, **__: object) -> None:
        """Keep the time of a step."""
        self.times[step] = time.perf_counter()

    def close(self) -> None:
        """Nothing to close."""


def time_checkpoints(arguments: argparse.Namespace) -> Iterator[Check]:
    """Train, and compare the steps after a checkpoint with the others."""
    write_seconds: list[float] = []
    write = checkpoint.write

    def timed_write(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = write(*args, **kwargs)
        write_seconds.append(time.perf_counter() - start)
        return result

    checkpoint.write = timed_write
    ends = StepEnds()
    every = arguments.steps // 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training_run.run(_settings(arguments, folder, every), [ends])
        records = [json.loads(line) for line in (folder / "stall/metrics.jsonl").read_text().splitlines()]
    seconds = {step: end - ends.times[step - 1] for step, end in ends.times.items() if step > 2}
    during_write = {step for save in (every, 2 * every) for step in range(save + 1, save + 1 + STEPS_OF_A_WRITE)}
    median = statistics.median(seconds[step] for step in seconds if step not in during_write)
    peak = max(record.get("perf/peak_memory_gib", 0) for record in records)
    yield Check(f"a step of {1024 * arguments.sequences} tokens", f"{median:.2f} s; peak {peak:.1f} GiB")
    step_ms = {record["step"]: record["perf/step_ms"] for record in records if "perf/step_ms" in record}
    for save, write_time in zip((every, 2 * every), write_seconds, strict=False):
        stall = seconds[save + 1] - step_ms[save + 1] / 1e3
        after = [seconds[step] for step in range(save + 1, save + 1 + STEPS_OF_A_WRITE) if step in seconds]
        loss = max(0.0, sum(after) - median * len(after) - stall)
        yield Check(
            f"checkpoint after step {save}",
            f"the loop stood still for {stall:.2f} s = {stall / median:.2f} steps; the steps during the write "
            f"({write_time:.1f} s) lost {loss:.2f} s more",
        )


def _settings(arguments: argparse.Namespace, folder: Path, every: int) -> Config:
    """Random tokens in `folder`, and a run that trains on them."""
    rng = np.random.default_rng(0)
    for split in ("train_000", "val_000"):
        np.save(folder / f"{split}.npy", rng.integers(0, 50257, 100_000, dtype=np.uint16))
    settings: dict[str, Any] = {
        "run": {"name": "stall", "out_dir": str(folder)},
        "data": {"dir": str(folder)},
        "train": {
            "max_steps": arguments.steps,
            "total_batch_size": 1024 * arguments.sequences,
            "eval_every": 0,
            "sample_every": 0,
        },
        "optimizer": {"warmup_steps": 1},
        "checkpoint": {"every": every, "keep_last": 1, "keep_best": False},
        "system": {"device": arguments.device},
    }
    return Config.model_validate(settings)


def main() -> None:
    """Train, and print what the checkpoints cost."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--steps", type=int, default=24, metavar="N")
    parser.add_argument("--sequences", type=int, default=1, metavar="N", help="of a step (default: 1)")
    arguments = parser.parse_args()
    print(measure.format_environment(measure.environment(devices.choose(arguments.device))))
    measure.run_parts({"checkpoint": lambda: time_checkpoints(arguments)}, ["checkpoint"])


if __name__ == "__main__":
    main()
