"""Requests to stop a run: the first signal is kept for the trainer, which stops after its step; a second one exits.

    SIGTERM  SIGINT  SIGUSR1  SIGUSR2 ─▶ a byte through a socket ─▶ a thread that reads it ─▶ `received`

A thread reads, since the main thread may be in a collective that no Python signal handler interrupts.
"""

import logging
import os
import signal
import socket
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# Schedulers signal every process of a job, and torchrun's agent forwards the signal to its workers: one request.
_REPEAT_SECONDS = 5.0

logger = logging.getLogger(__name__)


class StopSignals:
    """In its `with` block the four signals do not end the process; `received` is the first of them (0: none yet).

    In a thread other than the main one it does nothing, since only the main thread may change signal handlers.
    """

    def __init__(self) -> None:
        self.received = 0
        self._agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> "StopSignals":
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reader, self._writer = socket.socketpair()
            self._reader.settimeout(None if self._agent is None else 1.0)
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._previous_handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
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
            if number not in SIGNALS:
                continue  # another signal that has a Python handler
            if not self.received:
                self.received, received_at = number, time.monotonic()
                name = signal.Signals(number).name
                logger.info("%s: stopping after this step; a second signal exits at once, without saving", name)
            elif self._agent is None or time.monotonic() - received_at > _REPEAT_SECONDS:
                os._exit(128 + number)

    def _next_signal(self) -> int:
        """The number of the next signal; SIGTERM if torchrun's agent is gone, since nothing else would stop us."""
        while True:
            try:
                return int.from_bytes(self._reader.recv(1))
            except TimeoutError:
                if os.getppid() != self._agent and not self.received:
                    return signal.SIGTERM
