"""The directory of a run: its lock, the checkpoint to resume from, and its records.

runs/NAME/  config.yaml  environment.json  metrics.jsonl  samples.jsonl  events.jsonl  report.html  checkpoints/
"""

import contextlib
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpt2lab import __version__, files
from gpt2lab.config import RENAMED_SETTINGS, Config, RunConfig, load
from gpt2lab.errors import GPT2LabError
from gpt2lab.system.device import describe
from gpt2lab.system.distributed import DistContext
from gpt2lab.tracking.metrics import JsonLines, truncate_jsonl
from gpt2lab.training import checkpoint
from gpt2lab.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

RESUME_MUTABLE = "train.max_steps"  # may change, and changes the learning rate of the steps to come
# Must be those of the checkpoint: with another value a run would train something else.
RESUME_FROZEN = (
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
# May change without a message: they do not affect what is learned.
RESUME_IGNORED = (
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
    """The files of one run. Every rank has one; rank 0 reads and writes.

    Args:
        run: its name, where it is, and the checkpoint to resume from.
        dist: the ranks.
    """

    def __init__(self, run: RunConfig, dist: DistContext):
        self._resume, self.dist = run.resume, dist
        self.path = Path(run.out_dir) / (run.name or "run")
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.events = self.path / "events.jsonl"

    @contextlib.contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the lock of the directory.

        Raises:
            GPT2LabError: another process uses the directory, or it cannot be written to.
        """
        lock = files.DirectoryLock(self.path)

        def acquire() -> None:
            lock.__enter__()

        self.dist.on_main(acquire)
        try:
            yield
        finally:
            lock.__exit__()

    def find_checkpoint(self) -> Checkpoint | None:
        """Find the checkpoint that `run.resume` names.

        Returns:
            The checkpoint; None to train from the beginning.

        Raises:
            GPT2LabError: `never` and the run exists; a path without an intact checkpoint, or with one older than
                those of this run; all checkpoints are damaged.
        """
        return self.dist.on_main(self._find_checkpoint)

    def _find_checkpoint(self) -> Checkpoint | None:
        resume, existing = self._resume, checkpoint.list_checkpoints(self.checkpoints)
        if resume == "never":
            if existing or self.metrics.exists():
                raise GPT2LabError(
                    f"{self.path} holds a run already and run.resume is never; "
                    "set run.resume auto to resume it, or another run.name"
                )
            return None
        if resume == "auto" or (existing and self._started_from() == resume):
            return checkpoint.newest_valid(self.checkpoints)
        path = Path(resume)
        if (path / "checkpoints").is_dir():
            start = checkpoint.newest_valid(path / "checkpoints")
        else:
            start = checkpoint.read(path)
        if start is None:
            raise GPT2LabError(f"run.resume {resume}: that run has no checkpoint yet")
        if existing and existing[-1][0] > start.step:
            raise GPT2LabError(
                f"run.resume {resume} is at step {start.step}, but {self.path} has gone on to step {existing[-1][0]}; "
                "set another run.name to branch off"
            )
        return start

    def _started_from(self) -> str:
        """The `run.resume` of the first start: the same command again resumes the run itself."""
        try:
            return load([self.path / "config.yaml"]).run.resume
        except GPT2LabError:
            return ""

    def resume_hint(self) -> str:
        """Return which checkpoint an interrupted run can be resumed from, as the end of a message."""
        if existing := checkpoint.list_checkpoints(self.checkpoints):
            return f"{existing[-1][1]} is kept, and the same command resumes from it"
        return "nothing is kept yet: the first checkpoint had not been written (checkpoint.every)"

    def prepare(
        self, config: Config, start: Checkpoint | None, changed: Mapping[str, str], facts: Mapping[str, Any]
    ) -> None:
        """Write config.yaml and environment.json, truncate the records to the checkpoint, and log what has changed.

        Args:
            config: all settings.
            start: the checkpoint to start from, of this run or of another one; None: from the beginning.
            changed: settings that differ from the checkpoint's, by dotted name.
            facts: more keys of environment.json.
        """
        self.dist.on_main(lambda: self._write_settings(config, start, facts))
        if start is not None:
            for name, change in changed.items():
                logger.info(f"note: from step {start.step} on {name} is {change} (another --run.name starts again)")
            logger.info("resuming after step %d", start.step)
            origin = {"checkpoint": str(start.path), "world_size": self.dist.world_size}
            self.record_event(start.step, "resumed", {**origin, **changed})

    def _write_settings(self, config: Config, start: Checkpoint | None, facts: Mapping[str, Any]) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(self.checkpoints)
        for record in (self.metrics, self.samples, self.events):
            if start is not None and start.path.parent.resolve() != self.checkpoints.resolve():
                _copy_record(start.path.parent.parent / record.name, record)
            # A step that was saved before its evaluation has no line yet, or one of a start that was killed since.
            last_step = -1 if start is None else start.step if record is self.events else start.recorded
            truncate_jsonl(record, last_step)
        with files.atomic_write(self.path / "config.yaml") as temporary:
            temporary.write_text(config.to_yaml(), encoding="utf-8")
        with files.atomic_write(self.path / "environment.json") as temporary:
            environment = _environment(self.dist) | {**facts}
            temporary.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")

    def record_event(self, step: int, event: str, details: Mapping[str, Any]) -> None:
        """Append a line to events.jsonl.

        Args:
            step: the optimizer step, counted from 1.
            event: resumed, skipped or out of memory.
            details: more keys of the line, as JSON.
        """
        if self.dist.is_main:
            file = JsonLines(self.events)
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            file.write({"step": step, "time": now, "event": event, **details})
            file.close()


def _copy_record(source: Path, target: Path) -> None:
    """Copy a record of another run; without one, begin an empty one."""
    with files.atomic_write(target) as temporary:
        temporary.write_bytes(source.read_bytes() if source.is_file() else b"")


def fingerprint(config: Config, data_digest: str) -> dict[str, Any]:
    """Return what a checkpoint records of its run.

    Args:
        config: all settings.
        data_digest: of both splits.

    Returns:
        The keys `data` and `settings`, as JSON.
    """
    return {"data": data_digest, "settings": config.flat()}


def changed_settings(start: Checkpoint, config: Config, data_digest: str) -> dict[str, str]:
    """Compare the settings with those of the checkpoint that the run resumes from.

    Args:
        start: the checkpoint.
        config: the settings now.
        data_digest: of both splits now.

    Returns:
        The settings that changed and matter for the result, by dotted name: "0.1, before 0.2".

    Raises:
        GPT2LabError: one of RESUME_FROZEN changed, or the data.
    """
    saved = {RENAMED_SETTINGS.get(name, name): value for name, value in start.state["fingerprint"]["settings"].items()}
    current = config.flat()
    for name in RESUME_FROZEN:
        if saved.get(name) != current[name]:
            raise GPT2LabError(
                f"{start.path} was trained with {name} {saved.get(name)}, this start says {current[name]}; "
                "set it back, or set another run.name to start again"
            )
    if start.state["fingerprint"]["data"] != data_digest:
        raise GPT2LabError(
            f"{start.path} was trained on other data than {config.data.dir or config.data.source} holds now; "
            "set data.dir back, or set another run.name to start again"
        )
    changed = {
        name: f"{value}, before {saved.get(name)}"
        for name, value in current.items()
        if value != saved.get(name) and not name.startswith(RESUME_IGNORED)
    }
    if RESUME_MUTABLE in changed:
        changed[RESUME_MUTABLE] += "; the learning rate follows the new cosine from here"
    return changed


def _environment(dist: DistContext) -> dict[str, Any]:
    """Versions, hardware, commit and command."""
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
    """Return the commit of the checkout the package runs from, with `-dirty` if files differ; None outside one."""
    package = Path(__file__).resolve().parent.parent
    try:
        if Path(_git(package, "rev-parse", "--show-toplevel")) != package.parent:
            return None  # installed into the checkout of another project
        return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
