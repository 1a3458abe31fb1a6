"""Compare the peak memory that `gpt2lab plan` estimates for a CPU with that of the training process.

    python benchmarks/plan_memory.py                # trains 12 models for two steps each; a Markdown table
    python benchmarks/plan_memory.py --other        # 6 others, by which no constant was chosen
    python benchmarks/plan_memory.py --modern       # 4 of the modern architecture, with AdamW and with Muon

The measured figure is `perf/peak_memory_gib` of metrics.jsonl: the largest resident memory of the process so far.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gpt2lab import config
from gpt2lab.planning import plan
from gpt2lab.planning.memory import GIB
from gpt2lab.system import gpus

# n_layer, n_head, n_embd, block_size, micro batch, micro-steps, precision, activation checkpointing
SHAPES = (
    (4, 4, 128, 64, 24, 1, "bf16", False),
    (4, 4, 128, 64, 24, 1, "fp32", False),
    (6, 6, 384, 256, 8, 2, "bf16", False),
    (6, 6, 384, 256, 8, 2, "fp32", False),
    (8, 8, 512, 512, 4, 1, "bf16", False),
    (8, 8, 512, 512, 16, 1, "bf16", True),
    (8, 8, 512, 1024, 4, 2, "fp32", True),
    (12, 12, 768, 512, 2, 1, "bf16", False),
    (12, 12, 768, 1024, 2, 2, "bf16", False),
    (12, 12, 768, 1024, 2, 1, "fp32", False),
    (4, 8, 512, 4096, 1, 2, "bf16", False),
    (24, 16, 1024, 256, 2, 1, "bf16", False),
)
OTHER_SHAPES = (
    (4, 4, 256, 128, 16, 1, "bf16", False),
    (2, 2, 128, 256, 8, 1, "fp32", False),
    (6, 6, 384, 256, 4, 3, "bf16", False),
    (6, 6, 384, 1024, 2, 1, "bf16", True),
    (8, 8, 512, 512, 2, 2, "fp32", False),
    (12, 12, 768, 256, 4, 1, "bf16", False),
)
MODERN_SHAPES = (
    (6, 6, 384, 256, 8, 2, "bf16", False),
    (8, 8, 512, 512, 4, 1, "bf16", True),
    (12, 12, 768, 512, 2, 1, "bf16", False),
    (4, 4, 256, 128, 16, 1, "fp32", False),
)


def settings_of(
    shape: tuple[int, int, int, int, int, int, str, bool], architecture: str = "gpt2", optimizer: str = "adamw"
) -> dict[str, str]:
    """The settings of a run of two steps without evaluations."""
    n_layer, n_head, n_embd, block_size, micro, steps, precision, checkpointing = shape
    values = {
        "model.architecture": architecture,
        "optimizer.name": optimizer,
        "model.n_layer": n_layer,
        "model.n_head": n_head,
        "model.n_embd": n_embd,
        "model.block_size": block_size,
        "train.micro_batch_size": micro,
        "train.total_batch_size": micro * steps * block_size,
        "train.max_steps": 2,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "optimizer.warmup_steps": 1,
        "system.precision": precision,
        "system.activation_checkpointing": str(checkpointing).lower(),
        "system.device": "cpu",
        "system.compile": "off",
        "data.dir": os.environ.get("DATA_DIR", "data/stdlib"),
    }
    return {name: str(value) for name, value in values.items()}


def main() -> None:
    """Train, read the peak, and print a row for each shape."""
    cpu = gpus.load()["cpu"]
    print("| layers, heads, channels | block | micro batch x steps | precision | measured GiB | estimated | error |")
    print("|---|---:|---|---|---:|---:|---:|")
    modern = "--modern" in sys.argv
    shapes = MODERN_SHAPES if modern else OTHER_SHAPES if "--other" in sys.argv else SHAPES
    for number, shape in enumerate(shapes):
        optimizer = "muon" if modern and number % 2 == 0 else "adamw"
        settings = settings_of(shape, "modern" if modern else "gpt2", optimizer)
        estimated = plan.make(config.load([], settings), cpu).memory.total / GIB
        with tempfile.TemporaryDirectory() as folder:
            arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
            command = [sys.executable, "-m", "gpt2lab", "train", *arguments, "--run.out_dir", folder, "--run.name", "x"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            lines = (Path(folder) / "x" / "metrics.jsonl").read_text().splitlines()
        measured = max(values["perf/peak_memory_gib"] for values in map(json.loads, lines) if "perf/step_ms" in values)
        n_layer, n_head, n_embd, block_size, micro, steps, precision, checkpointing = shape
        print(
            f"| {n_layer}, {n_head}, {n_embd} | {block_size} | {micro} x {steps} | "
            f"{precision}{', checkpointing' * checkpointing}{', Muon' * (optimizer == 'muon')} | "
            f"{measured:.3f} | {estimated:.3f} | {estimated / measured - 1:+.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
