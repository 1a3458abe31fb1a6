"""Compare what `gpt2lab plan` estimates after `--calibrate` with training runs: tokens per second and memory.

    python benchmarks/plan_speed.py                  # calibrates and trains, for each of the 6 models for a CPU
    python benchmarks/plan_speed.py --steps 5        # fewer steps of each
    python benchmarks/plan_speed.py --rounds 3       # three times, and the median error of each model
    python benchmarks/plan_speed.py --only 2,4       # the second and the fourth model
    python benchmarks/plan_speed.py --models gpu     # the 4 models for a GPU

Prints a Markdown table. Nothing else may run on the machine. Each run has a calibration of its own just before it,
since the speed of a virtual machine changes within minutes. The models are others than those that the calibration
times, except the first for a CPU. The estimates are those that the run keeps in environment.json. The first step, which
is slower, is not counted. DATA_DIR is a folder with the text of `data.source: stdlib`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Model(NamedTuple):
    """A model to train; of the recipe, all other settings."""

    recipe: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    micro_batch_size: int
    micro_steps: int = 1


MODELS = {
    "cpu": (
        Model("quickstart", 2, 4, 128, 64, 24),
        Model("quickstart", 4, 4, 128, 64, 8, 3),
        Model("gpt2_124m", 8, 8, 512, 512, 4),
        Model("gpt2_124m", 6, 6, 384, 1024, 2, 2),
        Model("gpt2_124m", 12, 12, 768, 512, 2),
        Model("gpt2_124m", 12, 12, 768, 1024, 2),
    ),
    "gpu": (
        Model("gpt2_124m", 12, 12, 768, 1024, 64),
        Model("gpt2_124m", 12, 12, 768, 1024, 16, 4),
        Model("modern_124m", 12, 6, 768, 1024, 32),
        Model("gpt2_medium", 24, 16, 1024, 1024, 16),
    ),
    "tiny": (Model("gpt2_124m", 2, 2, 32, 64, 2), Model("modern_124m", 2, 2, 32, 64, 2)),  # rehearses `gpu` on a CPU
}


class Figures(NamedTuple):
    """Measured and estimated, of one run."""

    tokens_per_second: float
    estimated_tokens_per_second: float
    memory_gib: float
    estimated_memory_gib: float

    @property
    def errors(self) -> tuple[float, float]:
        """Of the speed and of the memory, as a fraction of the measured one."""
        return (
            self.estimated_tokens_per_second / self.tokens_per_second - 1,
            self.estimated_memory_gib / self.memory_gib - 1,
        )


def settings_of(model: Model, steps: int, device: str) -> list[str]:
    """The options of a run without evaluations."""
    values = {
        **{f"model.{name}": getattr(model, name) for name in ("n_layer", "n_head", "n_embd", "block_size")},
        "train.micro_batch_size": model.micro_batch_size,
        "train.total_batch_size": model.micro_batch_size * model.micro_steps * model.block_size,
        "train.max_steps": steps,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "train.hellaswag_every": 0,
        "optimizer.warmup_steps": 1,
        "checkpoint.every": 0,
        "system.device": device,
        "data.source": "stdlib",
        "data.dir": os.environ.get("DATA_DIR", "data/stdlib"),
    }
    return ["--config", model.recipe, *(word for name, value in values.items() for word in (f"--{name}", str(value)))]


def calibrate(device: str) -> None:
    """Measure the machine as a user would."""
    command = [sys.executable, "-m", "gpt2lab", "plan", "--calibrate", "--system.device", device]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def compare(model: Model, steps: int, device: str) -> Figures:
    """Train a model."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*settings_of(model, steps, device), "--run.out_dir", folder, "--run.name", "x"]
        subprocess.run([sys.executable, "-m", "gpt2lab", "train", *options], check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "x" / "metrics.jsonl").read_text().splitlines()
        environment = json.loads((Path(folder) / "x" / "environment.json").read_text())
    timed = [values for values in map(json.loads, lines) if "perf/step_ms" in values][1:]
    return Figures(
        len(timed) / sum(1 / values["perf/tokens_per_second"] for values in timed),
        environment["estimate"]["tokens_per_second"]["estimate"],
        max(values["perf/peak_memory_gib"] for values in timed),
        environment["estimate"]["memory_gib"],
    )


def main() -> None:
    """Calibrate, train, and print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=list(MODELS), default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", metavar="N,N")
    arguments = parser.parse_args()
    models = MODELS[arguments.models]
    if arguments.only:
        models = tuple(models[int(number) - 1] for number in arguments.only.split(","))
    device = "cuda" if arguments.models == "gpu" else "cpu"
    errors: dict[Model, list[float]] = {}
    print(
        "| layers, heads, channels | block size | micro batch x steps | tokens/s | estimated | error "
        "| GiB | estimated | error |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for _ in range(arguments.rounds):
        for model in models:
            calibrate(device)
            figures = compare(model, arguments.steps, device)
            size = f"{model.n_layer}, {model.n_head}, {model.n_embd} | {model.block_size}"
            if model.recipe.startswith("modern"):
                size = "modern " + size
            speed, estimated, memory, estimated_memory = figures
            of_speed, of_memory = figures.errors
            errors.setdefault(model, []).append(of_speed)
            print(
                f"| {size} | {model.micro_batch_size} x {model.micro_steps} | {speed:,.0f} | {estimated:,.0f} | "
                f"{of_speed:+.1%} | {memory:.2f} | {estimated_memory:.2f} | {of_memory:+.1%} |",
                flush=True,
            )
    if arguments.rounds > 1:
        for model, values in errors.items():
            print(
                f"median error of the speed of {model.n_layer}, {model.n_head}, {model.n_embd}: "
                f"{statistics.median(values):+.1%}"
            )


if __name__ == "__main__":
    main()
