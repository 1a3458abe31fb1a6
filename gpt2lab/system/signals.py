"""Requests to stop a run: the first signal is kept for the trainer, which stops and saves; a second one exits.

    SIGTERM  SIGINT  SIGHUP  SIGUSR1  SIGUSR2 ─▶ a byte through a socket ─▶ a thread that reads it ─▶ `received`

A thread reads, since the main thread may be in a collective that no Python signal handler interrupts. The trainer asks
between micro-steps, and between the forward passes of an evaluation, together with the other ranks (`check_stop`).
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from gpt2lab import progress

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SWEEP_VARIABLE = "GPT2LAB_SWEEP"  # in the environment of a run that a sweep has started: the sweep's process id
# Schedulers signal every process of a job, and so does a terminal; torchrun's agent and a sweep forward the signal to
# their processes: one request.
_REPEAT_SECONDS = 5.0

logger = logging.getLogger(__name__)


def list_stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop a run; without SIGHUP, which a closed terminal sends, if it is ignored, as by nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in _SIGNALS if not (ignored and number is signal.SIGHUP))


class CheckStop(Protocol):
    """Raises StopRequestedError if a stop was requested."""

    def __call__(self, *, together: bool = True) -> None:
        """Check.

        Args:
            together: ask all ranks, a collective, and raise on all of them; False: ask and raise on this rank alone.
        """


class StopRequestedError(Exception):
    """The work under way is to be abandoned, because a rank was asked to stop."""

    def __init__(self, reason: int):
        super().__init__(reason)
        self.reason = reason  # the number of the signal


class StopSignals:
    """In its `with` block the stop signals do not end the process; `received` is the first of them (0: none yet).

    In a thread other than the main one it does nothing, since only the main thread may change signal handlers.
    `describe_loss` can be set: it tells what a second signal loses, as the end of a message; and `has_progress`: it
    tells whether there is something to save.
    """

    def __init__(self) -> None:
        self.received = 0
        self.describe_loss: Callable[[], str] | None = None
        self.has_progress: Callable[[], bool] = lambda: False
        sweep = os.environ.get(SWEEP_VARIABLE, "")
        is_worker = "TORCHELASTIC_RUN_ID" in os.environ
        self._agent = int(sweep) if sweep.isdecimal() else os.getppid() if is_worker else None

    def __enter__(self) -> "StopSignals":
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = socket.socketpair()
            self._reader.settimeout(None if self._agent is None else 1.0)
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._previous_handlers = {number: signal.signal(number, lambda *_: None) for number in list_stop_signals()}
            self._thread = threading.Thread(target=self._read, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.set_wakeup_fd(self._previous_fd)
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)
            self._writer.close()
            self._thread.join()
            self._reader.close()

    def _read(self) -> None:
        received_at = 0.0
        while number := self._next_signal():
            if number not in self._previous_handlers:
                continue  # another signal that has a Python handler
            if not self.received:
                self.received, received_at = number, time.monotonic()
                name = signal.Signals(number).name
                if self.has_progress():
                    logger.info("%s: stopping and saving; a second signal exits at once, without saving", name)
                else:
                    logger.info("%s: stopping; a second signal exits at once", name)
            elif self._agent is None or time.monotonic() - received_at > _REPEAT_SECONDS:
                self._exit(number)

    def _exit(self, number: int) -> None:
        """End the process without saving. Takes no lock of a stream: the main thread may hang while it holds one."""
        loss = f"; {self.describe_loss()}" if self.describe_loss is not None else ""
        progress.restore_terminal()
        if os.environ.get("RANK", "0") == "0":
            text = f"gpt2lab: {signal.Signals(number).name} again: stopped at once{loss}\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
        os._exit(128 + number)

    def _next_signal(self) -> int:
        """The number of the next signal; SIGTERM if the agent is gone, since nothing else would stop us."""
        while True:
            try:
                return int.from_bytes(self._reader.recv(1))
            except TimeoutError:
                if os.getppid() != self._agent and not self.received:
                    return signal.SIGTERM
