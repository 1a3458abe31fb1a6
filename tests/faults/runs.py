"""A tiny training run: its recipe and data, how far it has come, and the parts in which two runs must be equal."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2lab.data.loader import Loader
from gpt2lab.data.shards import open_split
from gpt2lab.model import resolve

STEPS = 60
EVERY = 10  # steps between checkpoints
SEQUENCES, MICRO_BATCH, BLOCK_SIZE = 12, 3, 16  # the sequences of a step divide by 1, 2 and 3 ranks
MODERN: dict[str, Any] = {  # changes for `make`
    "model__architecture": "modern",
    "optimizer__name": "muon",
    "optimizer__schedule": "linear",
    "optimizer__embedding_lr": 0.1,
    "optimizer__head_lr": 0.01,
}


class Run(NamedTuple):
    """A run directory, and the recipe that writes to it."""

    recipe: Path
    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}"


def make_data(folder: Path) -> Path:
    """Make third-party shards without a manifest: 20,000 train and 1,000 val tokens, all below 300."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, length in (("train_000", 12_000), ("train_001", 8_000), ("val_000", 1_000)):
        np.save(folder / f"{name}.npy", (rng.zipf(1.5, size=length) % 300).astype(np.uint16))
    return folder


def make_loader(data: Path) -> Loader:
    """A loader of the train split with the settings of these runs."""
    stream = open_split(data, "train")
    return Loader(stream, block_size=BLOCK_SIZE, sequences_per_step=SEQUENCES, vocab_size=300, seed=1337)


def make(folder: Path, data: Path, **changes: object) -> Run:
    """Write the recipe of a run to `folder`. Changes are settings with `__` for the dot."""
    values: dict[str, dict[str, object]] = {
        "run": {"name": "tiny", "out_dir": str(folder / "runs"), "seed": 1337},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": BLOCK_SIZE, "vocab_size": 300},
        "data": {"dir": str(data)},
        "train": {
            "max_steps": STEPS,
            "total_batch_size": SEQUENCES * BLOCK_SIZE,
            "micro_batch_size": MICRO_BATCH,
            "eval_every": 0,
            "sample_every": 0,
        },
        "optimizer": {"max_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 5},
        "checkpoint": {"every": EVERY, "keep_last": 3},
        "system": {"device": "cpu", "precision": "fp32"},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(values, indent=2))  # JSON is YAML too
    return Run(recipe, Path(str(values["run"]["out_dir"])) / str(values["run"]["name"]))


def read_records(run: Run) -> list[dict[str, float]]:
    """The complete lines of metrics.jsonl. A kill may have cut off the last line."""
    if not run.metrics.exists():
        return []
    lines = run.metrics.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def last_step(run: Run) -> int:
    """The last step in metrics.jsonl, 0 without any."""
    lines = read_records(run)
    return int(lines[-1]["step"]) if lines else 0


def has_reached(run: Run, step: int) -> Callable[[], bool]:
    """A condition: `step` is in metrics.jsonl."""
    return lambda: last_step(run) >= step


def has_saved(run: Run) -> Callable[[], bool]:
    """A condition: the run has a checkpoint."""
    return lambda: newest_step(run) >= EVERY


def read_losses(run: Run) -> list[tuple[int, float]]:
    """(step, train/loss) in the order of metrics.jsonl."""
    return [(int(line["step"]), line["train/loss"]) for line in read_records(run) if "train/loss" in line]


def compute_identity(run: Run, step: int = STEPS) -> dict[str, str]:
    """The sha256 of all that must be equal: weights, optimizer, random state, guard, and the loss of every step."""
    losses = read_losses(run)
    assert [s for s, _ in losses] == list(range(1, step + 1)), f"{run.metrics}: not every step once"
    folder = run.checkpoint(step)
    state = json.loads((folder / "state.json").read_text())
    parts = {
        "weights": (folder / "model.safetensors").read_bytes(),
        "optimizer": (folder / "optimizer.safetensors").read_bytes(),
        "rng": json.dumps(state["rng"], sort_keys=True).encode(),
        "guard": json.dumps(state["guard"]).encode(),
        "losses": json.dumps(losses).encode(),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def find_differences(run: Run, reference: Run, step: int = STEPS) -> list[str]:
    """The parts in which two runs differ, and temporary files that the first one left."""
    leftovers = [f"left {name}" for name in find_leftovers(run)]
    try:
        identity = compute_identity(run, step)
    except (AssertionError, OSError) as error:
        return [str(error), *leftovers]
    expected = compute_identity(reference, step)
    return [f"{name} differs" for name in expected if identity[name] != expected[name]] + leftovers


def newest_step(run: Run) -> int:
    """The step of the newest checkpoint, 0 without any."""
    checkpoints = resolve.list_checkpoints(run.checkpoints)
    return checkpoints[-1][0] if checkpoints else 0


def newest_intact_step(run: Run) -> int:
    """The step of the newest checkpoint whose digests match, 0 without any."""
    return (newest_step(run) and resolve.find_checkpoint(run.path).step) or 0


def find_leftovers(run: Run) -> list[str]:
    """Temporary files and folders anywhere in the run directory."""
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob(".tmp-*"))
