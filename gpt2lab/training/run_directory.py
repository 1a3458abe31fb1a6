"""The folder a run leaves: who may write to it, what it starts from, and what it says about itself.

runs/NAME/  config.yaml  environment.json  metrics.jsonl  samples.jsonl  loss_curve.png  checkpoints/
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2lab import __version__, files
from gpt2lab.config import Config, load
from gpt2lab.errors import GPT2LabError
from gpt2lab.system.device import describe
from gpt2lab.system.distributed import DistContext
from gpt2lab.tracking.metrics import truncate_jsonl
from gpt2lab.training import checkpoint

_MAY_GROW = "train.max_steps"
# What a run writes down as fingerprint: with any of these changed, going on would train something else.
_MUST_MATCH = (
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.block_size",
    "model.vocab_size",
    "model.tie_word_embeddings",
    "train.total_batch_size",
    "train.overfit_batch",
    "run.seed",
)
# Changed freely from one start to the next: they do not touch what is learned.
_NO_MATTER = (
    "run.",
    "data.",
    "checkpoint.",
    "tracking.",
    "system.compile",
    "system.shard",
    "system.activation",
    "system.start_timeout",
    "system.timeout",
    "train.eval",
    "train.hellaswag",
    "train.sample",
    "train.micro",
    "model.size",
)


class RunDirectory:
    """`out_dir/name` of one run. Rank 0 alone makes one, and holds `lock` for as long as it writes."""

    def __init__(self, config: Config):
        self.path = Path(config.run.out_dir) / (config.run.name or "run")
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.events = self.path / "events.jsonl"
        self.lock = files.DirectoryLock(self.path)

    def starting_point(self, resume: str, say: Callable[[str], None]) -> checkpoint.Checkpoint | None:
        """The checkpoint that `run.resume` means; None for a run from the beginning.

        Raises:
            GPT2LabError: `never` and the run exists; a path that is no good checkpoint, or that is older than what
                this run already has; checkpoints that are all damaged.
        """
        existing = checkpoint.list_checkpoints(self.checkpoints)
        if resume == "never":
            if existing or self.metrics.exists():
                raise GPT2LabError(
                    f"{self.path} holds a run already and run.resume is never; "
                    "set run.resume auto to go on with it, or another run.name"
                )
            return None
        if resume == "auto" or (existing and self._began_from() == resume):
            return checkpoint.newest_valid(self.checkpoints, say)
        path = Path(resume)
        if (path / "checkpoints").is_dir():
            found = checkpoint.newest_valid(path / "checkpoints", say)
        else:
            found = checkpoint.read(path)
        if found is None:
            raise GPT2LabError(f"run.resume {resume}: that run has no checkpoint yet")
        if existing and existing[-1][0] > found.step:
            raise GPT2LabError(
                f"run.resume {resume} is at step {found.step}, but {self.path} has gone on to step {existing[-1][0]}; "
                "set another run.name to branch off"
            )
        return found

    def _began_from(self) -> str:
        """The `run.resume` this run was started with: the same command again goes on with the run itself."""
        try:
            return load([self.path / "config.yaml"]).run.resume
        except GPT2LabError:
            return ""

    def what_is_kept(self) -> str:
        """What an interruption leaves, in words: the last checkpoint, by name."""
        if present := checkpoint.list_checkpoints(self.checkpoints):
            return f"{present[-1][1]} is kept, and the same command goes on from there"
        return "nothing is kept yet: the first checkpoint had not been written (checkpoint.every)"

    def prepare(
        self, config: Config, start: checkpoint.Checkpoint | None, dist: DistContext, facts: dict[str, Any]
    ) -> None:
        """Write config.yaml and environment.json (with `facts`), and cut the records back to the step of the start."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(self.checkpoints)
        for record in (self.metrics, self.samples, self.events):
            if start is not None and start.path.parent.resolve() != self.checkpoints.resolve():
                self._adopt(record, start.path.parent.parent / record.name)
            # What a signal left to be recorded may have been since, by a start that was killed before it could save.
            last = -1 if start is None else start.step if record is self.events else start.recorded
            truncate_jsonl(record, last)
        with files.atomic_write(self.path / "config.yaml") as temporary:
            temporary.write_text(config.to_yaml(), encoding="utf-8")
        with files.atomic_write(self.path / "environment.json") as temporary:
            temporary.write_text(json.dumps(environment(dist) | facts, indent=2) + "\n", encoding="utf-8")

    def _adopt(self, record: Path, origin: Path) -> None:
        """Begin a record with that of the run whose checkpoint this one starts from, if it has one."""
        with files.atomic_write(record) as temporary:
            temporary.write_bytes(origin.read_bytes() if origin.is_file() else b"")


def fingerprint(config: Config, data: str) -> dict[str, Any]:
    """What a checkpoint remembers of its run: the data's digest and all settings."""
    return {"data": data, "settings": config.flat()}


def changes(start: checkpoint.Checkpoint, config: Config, data: str) -> dict[str, str]:
    """The settings that differ between a checkpoint and this start, which goes on with them: "0.1, before 0.2" by name.

    Raises:
        GPT2LabError: architecture, data, seed or total_batch_size differ.
    """
    was, now = start.state["fingerprint"]["settings"], config.flat()
    for name in _MUST_MATCH:
        if was.get(name) != now[name]:
            raise GPT2LabError(
                f"{start.path} was trained with {name} {was.get(name)}, this start says {now[name]}; "
                "set it back, or set another run.name to train anew"
            )
    if start.state["fingerprint"]["data"] != data:
        raise GPT2LabError(
            f"{start.path} was trained on other data than {config.data.dir or config.data.source} holds now; "
            "set data.dir back, or set another run.name to train anew"
        )
    return {
        name: f"{value}, before {was.get(name)}"
        + ("; the learning rate follows the new cosine from here" if name == _MAY_GROW else "")
        for name, value in now.items()
        if was.get(name) != value and not name.startswith(_NO_MATTER)
    }


def environment(dist: DistContext) -> dict[str, Any]:
    """Versions, hardware and commit, for whoever reads the figures later."""
    versions: dict[str, str | None] = {}
    for package in ("torch", "numpy", "safetensors", "tiktoken"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpt2lab": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "world_size": dist.world_size,
        "hardware": describe(dist.device),
        "command": " ".join(sys.argv),
    }


def commit() -> str | None:
    """The commit of the checkout the package runs from, with a mark if files differ from it; None outside one."""
    folder = Path(__file__).resolve().parent.parent
    try:
        ask = ["git", "-C", str(folder), "rev-parse", "--show-toplevel"]
        top = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
        if Path(top) != folder.parent:  # no checkout, or somebody else's that we are installed in
            return None
        ask = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
