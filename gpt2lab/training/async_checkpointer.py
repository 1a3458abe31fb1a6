"""Saves checkpoints while training continues.

    trainer ──save(step)──▶ Snapshot in CPU memory ──thread──▶ checkpoints/step_NNNNNNNN ─▶ prune ─▶ report.html

Training waits for the copy, and, if the write before it is not finished yet, for that.
"""

import concurrent.futures
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from gpt2lab import files, progress
from gpt2lab.config import CheckpointConfig
from gpt2lab.errors import GPT2LabError
from gpt2lab.training import checkpoint
from gpt2lab.training.checkpoint import Checkpoint
from gpt2lab.training.live_report import LiveReport
from gpt2lab.training.run_directory import RunDirectory
from gpt2lab.training.state import TrainState


class AsyncCheckpointer:
    """Takes snapshots of the state and writes them on a thread, one at a time. Every rank calls it; rank 0 writes.

    Args:
        config: when checkpoints are saved, and which are kept.
        directory: of the run.
        state: what is saved.
        fingerprint: data and settings of the run, for `state.json`.
        start: the checkpoint that the run resumes from.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        directory: RunDirectory,
        state: TrainState,
        fingerprint: Mapping[str, Any],
        start: Checkpoint | None = None,
    ):
        self._directory, self._config, self._state, self._fingerprint = directory, config, state, fingerprint
        self._dist, self.report = directory.dist, LiveReport(directory)
        self._saved = self.written = start.step if start and directory.holds(start) else 0  # steps
        self._buffers: dict[str, Tensor] = {}  # of one snapshot: the next is taken when this one is written
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing = self._finished = self._thread.submit(lambda: None)

    def __enter__(self) -> "AsyncCheckpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # waits for a write that has begun

    @property
    def failed(self) -> bool:
        """Whether the last write of this rank has failed; the next `save` or `wait` raises its error on all ranks."""
        return self._writing.done() and self._writing.exception() is not None

    def is_due(self, step: int) -> bool:
        """Return whether the settings ask for a checkpoint.

        Args:
            step: optimizer steps taken.
        """
        return self._config.every > 0 and step % self._config.every == 0

    def save(self, step: int, values: Mapping[str, float]) -> None:
        """Copy the state after a step, and start to write it.

        Args:
            step: optimizer steps taken.
            values: what was measured at the step, by metric key.

        Raises:
            GPT2LabError: the write before this one failed.
        """
        self.wait()
        self._saved = step
        details = {"fingerprint": self._fingerprint, "val_loss": values.get("val/loss")}
        if self._dist.is_main or self._state.sharded:
            buffers = self._buffers if self._dist.is_main else None
            snapshot = checkpoint.copy_state(step, self._state, details, buffers)
            if snapshot is not None:
                self._writing = self._thread.submit(self._write, snapshot)

    def save_if_new(self, step: int, values: Mapping[str, float]) -> None:
        """Save the state after a step, unless it is saved already, or is the initial one, which can be made again.

        Args:
            step: optimizer steps taken.
            values: what was measured at the step, by metric key.

        Raises:
            GPT2LabError: the write before this one failed.
        """
        if step != self._saved:
            self.save(step, values)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            GPT2LabError: it could not be written.
        """
        # A write may take longer than the timeout of a collective, so the ranks meet every second.
        while self._dist.all_reduce_max(len(concurrent.futures.wait([self._writing], timeout=1.0).not_done)):
            pass
        written, self._writing = self._writing, self._finished  # an error is raised once
        self._dist.on_main(written.result)

    def _write(self, snapshot: checkpoint.Snapshot) -> None:
        keep, folder = self._config, self._directory.checkpoints
        try:
            files.sync(self._directory.metrics)  # the records are on disk before the checkpoint that follows them
            with progress.Phase(f"writing checkpoint {snapshot.step:,}"):
                checkpoint.write(folder, snapshot)
            self.written = snapshot.step
            checkpoint.prune(folder, keep.keep_last, keep.keep_every, keep.keep_best)
        except OSError as error:
            raise GPT2LabError(f"{folder}: cannot keep a checkpoint: {error}; run the same command again") from error
        self.report.refresh()
