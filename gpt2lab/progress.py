"""Progress of phases that may take long: a bar with the time left on a terminal, else a log message now and then.

    with progress.Phase("validating", total=len(batches)) as phase:
        for batch in batches:
            ...
            phase.advance()

Phases may overlap, also on several threads. Their bars share one display, because a terminal can have only one. It is
on the stream of the log messages, disappears when nothing is under way, and does not show phases of less than a second.
A process whose messages are not shown (another rank than 0) shows no progress either.
"""

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from gpt2lab import logs
from gpt2lab.formatting import format_duration, format_time_left

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

SHOW_AFTER = 0.8  # seconds; shorter phases would only flicker
LOG_EVERY = 30.0  # seconds between messages where there is no terminal
ANNOUNCE_AFTER = 2.0  # seconds until the first message of a phase that is announced
_TICK = 0.25  # seconds between two drawings of the bars
_BAR_WIDTH = 24
_MIN_BAR_WIDTH = 4


class Phase:
    """A phase that is under way, until `close` or the end of its `with` block.

    Args:
        description: what is done, as in `validating`.
        total: the amount of work, in any unit; None if it is unknown: only the time since the beginning is shown.
        completed: work done before, in an earlier process.
        skip_first: estimate the time left without the first update, which takes longer than the others.
        log: whether messages are logged where there is no terminal.
        announce: where there is no terminal, log the description after `ANNOUNCE_AFTER`. For what a user waits for
            before a command prints anything else.
    """

    def __init__(
        self,
        description: str,
        total: float | None = None,
        *,
        completed: float = 0,
        skip_first: bool = False,
        log: bool = True,
        announce: bool = False,
    ):
        self.description, self.total, self.completed, self.note = description, total, completed, ""
        self.began = self.updated = self.logged = time.monotonic()
        self.log, self.announce = log, announce
        self.shown = False  # a bar was drawn
        self._baseline = None if skip_first else (self.began, completed)
        _display.add(self)

    def __enter__(self) -> "Phase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, completed: float, note: str = "") -> None:
        """Set how much is done.

        Args:
            completed: the work done, of `total`.
            note: something more to show, such as a number of tokens.
        """
        self.completed, self.note, self.updated = completed, note, time.monotonic()
        if self._baseline is None:
            self._baseline = self.updated, completed

    def advance(self, amount: float = 1) -> None:
        """Add to what is done.

        Args:
            amount: of `total`.
        """
        self.update(self.completed + amount, self.note)

    def close(self) -> None:
        """End the phase; its bar disappears."""
        _display.remove(self)

    def seconds_left(self) -> float | None:
        """The estimated seconds to the end; None if they cannot be estimated yet."""
        if self.total is None or self._baseline is None:
            return None
        began, before = self._baseline
        if self.completed <= before:
            return None
        whole = (self.updated - began) * (self.total - self.completed) / (self.completed - before)
        return max(0.0, whole - (time.monotonic() - self.updated))

    def describe(self) -> str:
        """Return share, note and time: `24%, 1,000 tokens, 3 min 5 s left`."""
        parts = [f"{self.completed / self.total:.0%}"] if self.total else []
        parts += [self.note] if self.note else []
        if (left := self.seconds_left()) is not None:
            parts.append(f"{format_time_left(left)} left")
        else:
            parts.append(f"{format_duration(time.monotonic() - self.began)} so far")
        return ", ".join(parts)


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Iterate over items, as one phase.

    Args:
        items: the work; each takes about the same time.
        description: of the phase.

    Yields:
        The items.
    """
    with Phase(description, len(items)) as phase:
        for item in items:
            yield item
            phase.advance()


def show_as(description: str, *, announce: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function whose whole call is one phase of unknown length.

    Args:
        description: of the phase.
        announce: see `Phase`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def shown(*args: P.args, **kwargs: P.kwargs) -> R:
            with Phase(description, announce=announce):
                return function(*args, **kwargs)

        return shown

    return decorate


class _Display:
    """Shows the phases that are under way: a thread draws or logs them, so that a phase needs no updates."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._phases: list[Phase] = []
        self._live: Any = None  # rich's, while bars are on the terminal
        self._thread: threading.Thread | None = None

    def add(self, phase: Phase) -> None:
        """Show a phase from now on."""
        if not logger.isEnabledFor(logging.INFO):
            return
        with self._lock:
            self._phases.append(phase)
            if self._thread is None or not self._thread.is_alive():  # a forked process has no thread
                self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
                self._thread.start()

    def remove(self, phase: Phase) -> None:
        """Stop showing a phase."""
        with self._lock:
            if phase in self._phases:
                self._phases.remove(phase)
                if phase.shown and self._live is not None:
                    self._draw()

    def restore_terminal(self) -> None:
        """Show the cursor again before `os._exit`. Takes no lock: the thread that holds it may hang."""
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._live.console.file.fileno(), b"\r\x1b[2K\x1b[?25h")

    def _run(self) -> None:
        """Draw or log until there is nothing under way. Short phases in a row share a thread."""
        while True:
            time.sleep(min(_TICK, SHOW_AFTER, LOG_EVERY))
            with self._lock:
                if not self._phases:
                    self._thread = None
                    return
                with contextlib.suppress(OSError):  # a closed pipe: whoever writes next finds out
                    self._draw() if _has_terminal() else self._log()

    def _log(self) -> None:
        now = time.monotonic()
        for phase in self._phases:
            if phase.announce and now - phase.began >= ANNOUNCE_AFTER:
                phase.announce = False
                logger.info("%s", phase.description)
            if phase.log and now - phase.logged >= LOG_EVERY:
                phase.logged = now
                logger.info("%s: %s", phase.description, phase.describe())

    def _draw(self) -> None:
        """Draw the bars, and stop drawing when there are none."""
        now = time.monotonic()
        phases = [phase for phase in self._phases if now - phase.began >= SHOW_AFTER]
        if not phases:
            if self._live is not None:
                self._live.stop()
                self._live = None
            return
        for phase in phases:
            phase.shown = True
        if self._live is None:
            self._live = _start_live()
        self._live.update(_build_table(phases, self._live.console.width), refresh=True)


def _build_table(phases: Sequence[Phase], width: int) -> Any:
    """A line for each phase: description, bar, share and time.

    Args:
        phases: that are shown.
        width: columns of the terminal. The bars become shorter, or go, where the text needs the space.
    """
    from rich.cells import cell_len
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    texts = [(phase.description, phase.describe()) for phase in phases]
    room = width - 3 - sum(max(map(cell_len, column)) for column in zip(*texts, strict=True))
    table = Table.grid(padding=(0, 1, 0, 0))
    for phase, (description, state) in zip(phases, texts, strict=True):
        row: list[Any] = [Text(description, no_wrap=True, overflow="ellipsis"), Text(state, no_wrap=True)]
        if room >= _MIN_BAR_WIDTH:
            bar_width = min(_BAR_WIDTH, room)
            row.insert(1, ProgressBar(phase.total or 1, phase.completed, width=bar_width, pulse=not phase.total))
        table.add_row(*row)
    return table


def _has_terminal() -> bool:
    stream = logs.get_stream()
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _start_live() -> Any:
    """A display of rich on the stream of the log messages; what other code prints there appears above it."""
    import sys

    from rich.console import Console
    from rich.live import Live

    # A stream that is not a terminal must still receive what is printed to it.
    live = Live(
        console=Console(file=logs.get_stream()),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
    live.start()
    return live


_display = _Display()
restore_terminal = _display.restore_terminal
