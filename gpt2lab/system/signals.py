"""Requests to stop: the first signal is noted, for the trainer to see after its step; a second one ends all at once.

    SIGTERM  SIGINT  SIGUSR1  SIGUSR2 ─▶ a byte through a pipe ─▶ listening thread ─▶ `received`

A thread listens, since the main one may be deep in a collective that no Python handler interrupts.
"""

import os
import signal
import socket
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# A Ctrl-C reaches every process of the terminal, and torchrun hands it on to its workers as well: that is one request.
_ECHO_SECONDS = 5.0


class StopSignals:
    """While entered, the four signals do not end the process but are noted in `received` (0: none yet).

    Entered outside the main thread it notes nothing: only the main thread may change what signals do.
    """

    def __init__(self, speak: bool = True):
        self.received = 0
        self._speak = speak
        self._echo = _ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def __enter__(self) -> "StopSignals":
        self._entered = threading.current_thread() is threading.main_thread()
        if self._entered:
            self._inbox, self._outbox = socket.socketpair()
            self._outbox.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._entered:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._outbox.close()
            self._thread.join()
            self._inbox.close()

    def _listen(self) -> None:
        first_at = 0.0
        while number := self._inbox.recv(1):
            if number[0] not in SIGNALS:
                continue  # another signal that somebody handles in Python
            if not self.received:
                self.received, first_at = number[0], time.monotonic()
                if self._speak:
                    name = signal.Signals(self.received).name
                    print(f"{name}: stopping after this step; once more to leave at once, unsaved", flush=True)
            elif time.monotonic() - first_at > self._echo:
                os._exit(128 + number[0])
