"""Points of a known law, and run directories with its losses. Used by the tests of this folder."""

import csv
import json
from pathlib import Path

import numpy as np

from gpt2lab.config import Config
from gpt2lab.scaling import points
from gpt2lab.scaling.forms import Law
from gpt2lab.scaling.points import Points

SMALL_LAW = Law(E=1.5, A=60.0, alpha=0.34, B=90.0, beta=0.34)  # its optimum is among models that tests can build
LAW = Law(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)  # Besiroglu et al. 2024


def make_points(n, d, noise: float = 0.0, seed: int = 0, law: Law = LAW) -> Points:
    loss = law.loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))
    return Points(tuple(f"line {index + 2}" for index in range(len(n))), n, d, loss, 6 * n * d)


def grid(sizes: int = 4, counts: int = 4, noise: float = 0.0, seed: int = 0, law: Law = LAW) -> Points:
    """Sizes from 10M to 1B, each with 5 to 80 tokens a parameter."""
    n = np.repeat(np.geomspace(1e7, 1e9, sizes), counts)
    return make_points(n, np.tile(np.geomspace(5, 80, counts), sizes) * n, noise, seed, law)


def isoflops(noise: float = 0.0, seed: int = 0, law: Law = LAW, off_centre: float = 1.0, sizes: int = 27) -> Points:
    """Nine computes as Chinchilla's, with sizes up to 8 times below and above the optimum."""
    computes = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
    n = np.concatenate([law.optimum(c)[0] * off_centre * np.geomspace(1 / 8, 8, sizes) for c in computes])
    return make_points(n, np.repeat(computes, sizes) / 6 / n, noise, seed, law)


def write_csv(path: Path, found: Points, header: tuple[str, str, str] = ("parameters", "tokens", "loss")) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(zip(found.n, found.d, found.loss, strict=True))
    return str(path)


def write_run(folder: Path, width: int, steps: int, law: Law = LAW, **changes) -> Path:
    """A finished run whose final loss is that of the law. Changes by dotted name, `.` as `__`."""
    values: dict[str, dict[str, object]] = {
        "run": {"name": folder.name},
        "model": {
            "n_layer": max(1, width // 32),
            "n_head": width // 16,
            "n_embd": width,
            "block_size": 32,
            "vocab_size": 512,
        },
        "train": {"max_steps": steps, "total_batch_size": 32 * 8},
        "optimizer": {"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    config = Config.model_validate(values)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    loss = float(law.loss(points.count_parameters(config)["blocks-and-head"], steps * config.train.total_batch_size))
    lines = [
        {"step": 1, "train/loss": 9.0, "train/lr": config.optimizer.max_lr, "perf/tokens_per_second": 1e4},
        {"step": steps, "train/loss": loss, "train/lr": config.optimizer.min_lr, "val/loss": loss},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_sweep(folder: Path) -> Path:
    """Twelve runs: four sizes, three token counts."""
    for width in (32, 64, 96, 128):
        for steps in (500, 1500, 5000):
            write_run(folder / f"w{width}_s{steps}", width, steps)
    return folder
