"""The directory of a run: its lock, the checkpoint to resume from, and its records.

runs/NAME/  config.yaml  environment.json  metrics.jsonl  samples.jsonl  events.jsonl  report.html  checkpoints/
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from gpt2lab import files, progress
from gpt2lab.config import Config, RunConfig, load_run
from gpt2lab.errors import GPT2LabError
from gpt2lab.model import flops, huggingface, names, resolve
from gpt2lab.system.distributed import DistContext
from gpt2lab.tracking import records
from gpt2lab.tracking.metrics import JsonLines, describe_missing, set_aside_jsonl, truncate_jsonl
from gpt2lab.training import checkpoint, environment
from gpt2lab.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

ORPHANED = "records of an earlier start but no checkpoint: training starts again at step 0"
_RECORD_NOTE = "# The settings of this run, written at each start. Resuming the run does not read this file.\n"


class RunDirectory:
    """The files of one run. Every rank has an instance; only rank 0 accesses the files.

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
        self._config = self.path / "config.yaml"

    @contextlib.contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the lock of the directory.

        Raises:
            GPT2LabError: another process uses the directory, or it cannot be written to.
        """
        with contextlib.ExitStack() as stack:
            lock = files.DirectoryLock(self.path)
            self.dist.on_main(lambda: bool(stack.enter_context(lock)))
            yield

    @progress.show_as("reading the checkpoint", announce=True)
    def find_checkpoint(self) -> Checkpoint | None:
        """Find the checkpoint that `run.resume` names. Only rank 0 calls it.

        Returns:
            The checkpoint; None to train from the beginning.

        Raises:
            GPT2LabError: the directory is a sweep or holds runs; `never` and the run exists; a path without an intact
                checkpoint, or with one older than those of this run; all checkpoints are damaged.
        """
        self._require_no_runs()
        resume, existing = self._resume, resolve.list_checkpoints(self.checkpoints)
        if resume == "never":
            if existing or self.metrics.exists():
                raise GPT2LabError(
                    f"{self.path} holds a run already and run.resume is never; "
                    "set run.resume auto to resume it, or another run.name"
                )
            return None
        if resume == "auto" or (existing and self._started_from() == resume):
            return resolve.newest_valid(self.checkpoints, checkpoint.read)
        start = _read_start(resume)
        if existing and existing[-1][0] > start.step:
            raise GPT2LabError(
                f"run.resume {resume} is at step {start.step}, but {self.path} has gone on to step {existing[-1][0]}; "
                "set another run.name to branch off"
            )
        return start

    def _require_no_runs(self) -> None:
        """Refuse a directory that holds other runs: a run in it would replace the page of the sweep."""
        if (self.path / "config.yaml").exists():
            return
        if (self.path / records.SWEEP).exists():
            raise GPT2LabError(f"{self.path} is a sweep, not a run; give another --run.name")
        if inside := next(self.path.glob("*/config.yaml"), None):
            raise GPT2LabError(f"{self.path} holds runs, such as {inside.parent.name}; give another --run.name")

    def _started_from(self) -> str:
        """The `run.resume` of the first start: the same command again resumes the run itself."""
        with contextlib.suppress(GPT2LabError):
            return load_run(self.path).run.resume
        return ""

    def resume_hint(self) -> str:
        """Return which checkpoint an interrupted run can be resumed from, as the end of a message."""
        try:
            existing = resolve.list_checkpoints(self.checkpoints)
        except GPT2LabError as error:
            return str(error)
        if existing:
            return f"{existing[-1][1]} is kept, and the same command resumes from it"
        return "there is no checkpoint yet, and the same command starts from the beginning"

    def has_records(self) -> bool:
        """Return whether there are metrics."""
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    def holds(self, start: Checkpoint) -> bool:
        """Return whether a checkpoint is one of this run, not of another one that it continues.

        Args:
            start: the checkpoint.
        """
        return start.path.parent.resolve() == self.checkpoints.resolve()

    def is_finished(self, start: Checkpoint, max_steps: int) -> bool:
        """Return whether this run has nothing left to train.

        Args:
            start: the checkpoint to start from, of this run or of another one.
            max_steps: number of steps to train.

        Raises:
            GPT2LabError: the checkpoint is beyond `max_steps`, or is another run's and has nothing left to train.
        """
        if start.step > max_steps:
            place, again = str(self.path), "another --run.name"
            if not self.holds(start):
                place, again = f"run.resume: {start.path}", f"{again} without --run.resume"
            raise GPT2LabError(
                f"{place} is at step {start.step}, beyond train.max_steps {max_steps}; raise --train.max_steps to "
                f"train longer; to start again, give {again}"
            )
        if start.recorded < max_steps:
            return False
        if not self.holds(start):
            raise GPT2LabError(
                f"run.resume: {start.path} is at step {start.step} of train.max_steps {max_steps}, so nothing is left "
                "to train; raise --train.max_steps"
            )
        return True

    def prepare(
        self,
        config: Config,
        start: Checkpoint | None,
        changed: Mapping[str, str],
        facts: Mapping[str, Any],
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Write config.yaml and environment.json, truncate the records to the checkpoint, and log what has changed.

        Args:
            config: all settings.
            start: the checkpoint to start from, of this run or of another one; None: from the beginning.
            changed: settings that differ from the checkpoint's, by dotted name.
            facts: more keys of environment.json.
            origin: the weights that a new run starts from, for events.jsonl; None: random ones.
        """
        self.dist.on_main(lambda: self._write_settings(config, start, facts))
        if origin is not None:
            self.record_event(0, "initialized", origin)
        if start is not None:
            for name, change in changed.items():
                logger.info(f"{name} {change}, from step {start.step} on (a new --run.name starts again)")
            logger.info("resuming after step %d", start.step)
            place = {"checkpoint": str(start.path), "world_size": self.dist.world_size}
            self.record_event(start.step, "resumed", {**place, **changed})

    def _write_settings(self, config: Config, start: Checkpoint | None, facts: Mapping[str, Any]) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if start is not None and self.holds(start):
            self._set_aside_after(start.step)
        records = (self.metrics, self.samples, self.events)
        if start is None and self.has_records():
            aside = [set_aside_jsonl(record).name for record in records if record.is_file()]
            logger.warning(f"{self.path} has {ORPHANED}, and these records are moved to {', '.join(aside)}")
        for record in records:
            if start is not None and not self.holds(start):
                original = start.path.parent.parent / record.name
                record.write_bytes(original.read_bytes() if original.is_file() else b"")
            # A step that was saved before its evaluation has no line yet, or one of a start that was killed since.
            last_step = -1 if start is None else start.step if record is self.events else start.recorded
            steps = truncate_jsonl(record, last_step)
            if record is self.metrics and (missing := describe_missing(record, steps, last_step)):
                logger.warning(missing)
        self._write_config(config)
        with files.atomic_write(self.path / "environment.json") as temporary:
            values = environment.collect(self.dist) | {"parameters": flops.parameters(config.model), **facts}
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def restore_config(self, config: Config) -> None:
        """Write config.yaml of a finished run again if it is missing or damaged.

        Args:
            config: all settings.
        """

        def restore() -> None:
            try:
                load_run(self.path)
            except GPT2LabError:
                self._write_config(config)
                logger.warning("%s was missing or damaged: it now has the settings of this start", self._config)

        self.dist.on_main(restore)

    def _write_config(self, config: Config) -> None:
        with files.atomic_write(self._config) as temporary:
            temporary.write_text(_RECORD_NOTE + config.to_yaml(), encoding="utf-8")

    def _set_aside_after(self, step: int) -> None:
        """Rename the checkpoints after the newest intact one: they would count among those that are kept."""
        for later, path in resolve.list_checkpoints(self.checkpoints):
            if later > step:
                aside = path.with_name(f"damaged_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
                path.rename(aside)
                logger.warning("%s is damaged and set aside; remove it to free its space", aside)

    def record_event(self, step: int, event: str, details: Mapping[str, Any]) -> None:
        """Append a line to events.jsonl.

        Args:
            step: the optimizer step, counted from 1.
            event: initialized, resumed, skipped or out of memory.
            details: more keys of the line, as JSON.
        """
        if self.dist.is_main:
            with contextlib.closing(JsonLines(self.events)) as file:
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                file.write({"step": step, "time": now, "event": event, **details})


def _read_start(resume: str) -> Checkpoint:
    """Read the checkpoint that `run.resume` names: its folder, or a run, whose newest one is taken."""
    path = Path(resume)
    if os.path.lexists(path / "checkpoints"):
        start = resolve.newest_valid(path / "checkpoints", checkpoint.read)
        if start is None:
            raise GPT2LabError(f"run.resume {resume}: that run has no checkpoint yet")
        return start
    names.require_start(resume)
    if (path / huggingface.CONFIG).is_file() and not any((path / name).exists() for name in checkpoint.STATE_FILES):
        raise GPT2LabError(
            f"run.resume {resume} is a model without the state of a training run (an export, or a model of another "
            f"project). {names.WEIGHTS_ONLY.format(resume)}"
        )
    return checkpoint.read(path)
