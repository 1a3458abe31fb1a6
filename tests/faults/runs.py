"""A tiny run to do harm to: its recipe, how far it has come, and what makes two runs equal."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2lab.config import Config
from gpt2lab.model.resolve import list_checkpoints as checkpoints_in

STEPS = 60
EVERY = 10  # steps from one checkpoint to the next
SEQUENCES, MICRO_BATCH, BLOCK_SIZE = 12, 3, 16  # a step's sequences divide by 1, 2 and 3 ranks


class Run(NamedTuple):
    """A run directory, and the recipe file that leads to it."""

    recipe: Path
    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def make_data(folder: Path) -> Path:
    """Shards as others write them, without a manifest: 20,000 train and 1,000 val tokens below 300."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, length in (("train_000", 12_000), ("train_001", 8_000), ("val_000", 1_000)):
        np.save(folder / f"{name}.npy", (rng.zipf(1.5, size=length) % 300).astype(np.uint16))
    return folder


def make(folder: Path, data: Path, **changes: object) -> Run:
    """Write the recipe of a run below `folder`. Changes by dotted name, `.` as `__`."""
    values: dict[str, dict[str, object]] = {
        "run": {"name": "tiny", "out_dir": str(folder / "runs")},
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
    config = Config.model_validate(values)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    return Run(recipe, Path(config.run.out_dir) / str(config.run.name))


def records(run: Run) -> list[dict[str, float]]:
    """The whole lines of metrics.jsonl; a kill may have cut off the last one."""
    if not run.metrics.exists():
        return []
    lines = run.metrics.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def last_step(run: Run) -> int:
    """The newest step on record, 0 without any."""
    lines = records(run)
    return int(lines[-1]["step"]) if lines else 0


def losses(run: Run) -> list[tuple[int, float]]:
    """(step, train/loss) in the order of the record."""
    return [(int(line["step"]), line["train/loss"]) for line in records(run) if "train/loss" in line]


def identity(run: Run, step: int = STEPS) -> dict[str, str]:
    """What must be equal: sha256 of weights, optimizer, random state, and of the losses with every step once."""
    taken = losses(run)
    assert [s for s, _ in taken] == list(range(1, step + 1)), f"{run.metrics}: not every step once"
    folder = run.checkpoints / f"step_{step:08d}"
    state = json.loads((folder / "state.json").read_text())
    parts = {
        "weights": (folder / "model.safetensors").read_bytes(),
        "optimizer": (folder / "optimizer.safetensors").read_bytes(),
        "rng": json.dumps(state["rng"], sort_keys=True).encode(),
        "guard": json.dumps(state["guard"]).encode(),
        "losses": json.dumps(taken).encode(),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def differences(run: Run, reference: Run, step: int = STEPS) -> list[str]:
    """Which parts of two runs' identities differ."""
    try:
        ours = identity(run, step)
    except (AssertionError, OSError) as error:
        return [str(error)]
    theirs = identity(reference, step)
    return [name for name in theirs if ours[name] != theirs[name]]


def newest_step(run: Run) -> int:
    """The newest checkpoint's step, 0 without any."""
    present = checkpoints_in(run.checkpoints)
    return present[-1][0] if present else 0


def leftovers(run: Run) -> list[str]:
    """Temporary files and folders anywhere in the run directory."""
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob(".tmp-*"))
