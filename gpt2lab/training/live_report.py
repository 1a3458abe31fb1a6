"""The report of a run, drawn again from time to time while it trains."""

import logging
import subprocess
import sys
import time

from gpt2lab import packages, progress
from gpt2lab.tracking import report
from gpt2lab.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 60.0


class LiveReport:
    """Keeps `report.html` up to date. A report that fails is only a warning.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: RunDirectory):
        self._run, self._is_main, self._drawn_at = directory.path, directory.dist.is_main, time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None

    def refresh(self) -> None:
        """Draw the report in a process of its own, at most every `REFRESH_SECONDS`.

        Drawing is a second or more of Python's work. On a thread it would hold the GIL, and slow the trainer down.
        """
        if time.monotonic() - self._drawn_at < REFRESH_SECONDS:
            return
        self._drawn_at = time.monotonic()
        if self._process is not None and (status := self._process.poll()) != 0:
            if status is None:
                return  # the last one is not finished
            logger.warning("the last report could not be drawn; try gpt2lab report %s", self._run)
        command = [sys.executable, "-m", "gpt2lab", "report", str(self._run)]
        try:  # in a session of its own, so that Ctrl-C does not reach it
            self._process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            logger.warning("no report this time: %s", error)

    @progress.show_as("drawing the report")
    def finish(self) -> None:
        """Draw the report of the finished run in this process."""
        if not self._is_main:
            return
        if self._process is not None:
            self._process.wait()
        try:
            packages.require("matplotlib", "the report", None)
            report.write(self._run)
        except Exception as error:  # a plot may fail in any way, but the run is complete
            logger.warning("no report this time: %s", error)
