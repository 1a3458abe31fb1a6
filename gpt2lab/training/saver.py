"""Saving while training goes on: a snapshot between two steps, then a thread writes, tidies up and draws the report.

    trainer ──save(step)──▶ Snapshot ──thread──▶ checkpoints/step_NNNNNNNN ─▶ prune ─▶ report.html, now and then

Training waits for a copy in memory only, or, if it comes back before a write is done, for that.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gpt2lab import files
from gpt2lab.config import CheckpointConfig
from gpt2lab.errors import GPT2LabError
from gpt2lab.model.gpt2 import GPT2
from gpt2lab.system.distributed import DistContext
from gpt2lab.tracking import report
from gpt2lab.training import checkpoint
from gpt2lab.training.run_directory import RunDirectory

_REPORT_SECONDS = 60.0  # between two reports of a run that goes on


class Saver:
    """What is saved, where, and which of it stays. Every rank has one and calls it; rank 0 writes.

    Args:
        sharded: every rank holds a part of the model, and is needed for a snapshot.
        fingerprint: of the run, for state.json.
        say: hears of reports that could not be drawn.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: CheckpointConfig,
        model: GPT2,
        optimizer: torch.optim.Optimizer,
        dist: DistContext,
        *,
        sharded: bool,
        fingerprint: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        self._directory, self._config, self._model, self._optimizer = directory, config, model, optimizer
        self._dist, self._sharded, self._fingerprint, self._say = dist, sharded, fingerprint, say
        self._snapshots, self._writer = checkpoint.Snapshots(), checkpoint.Writer(self._keep)
        self._reported = time.monotonic()
        self._drawing: subprocess.Popen[bytes] | None = None

    @property
    def failed(self) -> bool:
        """Whether a write has failed on this rank; the next `save` or `wait` raises it on all of them."""
        return self._writer.failed

    def save(self, step: int, values: Mapping[str, float], progress: Mapping[str, Any]) -> None:
        """Take a snapshot after a step and have it written.

        Args:
            values: what the step measured, by metric key.
            progress: the trainer's own state, as JSON.

        Raises:
            GPT2LabError: the write before this one failed.
        """
        self.wait()
        state = {"fingerprint": self._fingerprint, "val_loss": values.get("val/loss"), **progress}
        if self._dist.is_main or self._sharded:
            snapshot = self._snapshots.take(step, self._model, self._optimizer, state, keep=self._dist.is_main)
            if snapshot is not None:
                self._writer.submit(snapshot)

    def wait(self) -> None:
        """Return when everything is on the disk.

        Raises:
            GPT2LabError: it could not be written.
        """
        # A disk may take longer than a collective waits, so ranks meet again every second.
        while self._dist.all_reduce_max(int(self._writer.busy(1.0))):
            pass
        self._dist.on_main(self._writer.wait)

    def close(self) -> None:
        """Let a write that has begun come to its end, whatever it comes to."""
        self._writer.close()

    def report(self) -> None:
        """Draw the report, here and now; for when training is over."""
        if self._dist.is_main:
            if self._drawing is not None:
                self._drawing.wait()
            try:
                report.write(self._directory.path)
            except Exception as error:  # whatever a plot may stumble over, the run is done all the same
                self._say(f"warning: no report this time: {error}")

    def _keep(self, snapshot: checkpoint.Snapshot) -> None:
        """On the thread: write the checkpoint, and remove those that need not stay."""
        keep, folder = self._config, self._directory.checkpoints
        try:
            files.sync(self._directory.metrics)  # a step's record is on disk before the checkpoint that follows it
            checkpoint.write(folder, snapshot)
            checkpoint.prune(folder, snapshot.step, keep.keep_last, keep.keep_every, keep.keep_best)
        except OSError as error:
            raise GPT2LabError(f"{folder}: cannot keep a checkpoint: {error}; mend the disk, and run again") from error
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._report_beside()
            self._reported = time.monotonic()

    def _report_beside(self) -> None:
        """Draw the report in a process of its own.

        Drawing is a second or more of Python's work. On a thread it would take turns with the trainer for Python's
        lock, and hold up every operation that the trainer starts.
        """
        if self._drawing is not None and (status := self._drawing.poll()) != 0:
            if status is None:
                return  # it is still at the last one
            self._say(f"warning: the last report could not be drawn; try gpt2lab report {self._directory.path}")
        ask = [sys.executable, "-m", "gpt2lab", "report", str(self._directory.path)]
        nowhere = subprocess.DEVNULL
        try:  # in a session of its own: a Ctrl-C here is not meant for it
            self._drawing = subprocess.Popen(ask, stdout=nowhere, stderr=nowhere, start_new_session=True)
        except OSError as error:
            self._say(f"warning: no report this time: {error}")
