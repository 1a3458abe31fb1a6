"""Who is alive: every process says so now and then, and each watches all the others.

    rank r ──"beat/r" = a counter──▶ the store that torchrun (or rank 0) keeps ──▶ every other rank

Collectives wait for a process that is stopped, or gone without closing its connections, until they time out, and then
do not say for whom. So a process that has fallen silent is named, ended if it is on this machine (a stopped one would
hold its memory for ever), and everybody leaves. A process whose parent has died, torchrun's agent, asks itself to stop.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from torch.distributed import Store  # type: ignore[attr-defined]  # exported, but not by name

LOST = 3  # exit status of a process that leaves because another one is gone


class Heartbeat:
    """This process's pulse, and what it hears of the others, on a thread of its own.

    Args:
        store: a connection that nothing else uses: a call that waits would hold up the pulse.
        patience: seconds of silence after which a process counts as lost.
    """

    def __init__(self, store: Store, rank: int, world_size: int, patience: float):
        self._store, self._rank, self._patience = store, rank, patience
        self._others = [other for other in range(world_size) if other != rank]
        self.interval = min(1.0, patience / 4)
        self._who = f"pid {os.getpid()} on {socket.gethostname()}"
        self._parent = os.getppid()
        self._heard: dict[int, tuple[bytes, float]] = {}  # rank -> its last beat, and when that was new here
        self._reachable = 0.0  # when the store last answered
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["Heartbeat"]:
        """Beat and watch inside the `with`."""
        self._thread.start()
        try:
            yield self
        finally:
            self._leaving.set()
            self._thread.join()
            with contextlib.suppress(Exception):  # the store may be gone already
                self._store.set(f"beat/{self._rank}", "left")

    def silent(self) -> list[str]:
        """The processes that are not beating, in words; listens for a few intervals before it answers."""
        time.sleep(1.5 * self.interval)  # by now everybody's last beat is known, or they never had one
        before, began = dict(self._heard), time.monotonic()
        time.sleep(2.0 * self.interval)
        if self._reachable < began:  # without the store nobody is heard, and rank 0 is where it may have been
            return [self._name(0)]
        return [self._name(other) for other in self._others if before.get(other) == self._heard.get(other)]

    def _run(self) -> None:
        count, self._reachable = 0, time.monotonic()
        while not self._leaving.wait(self.interval if count else 0):
            if os.getppid() != self._parent:  # torchrun's agent is gone: nobody would end us
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", f"{count} {self._who}")
                known = [o for o in self._others if o in self._heard or self._store.check([f"beat/{o}"])]
                beats = dict(zip(known, self._store.multi_get([f"beat/{k}" for k in known]), strict=True))
                self._reachable = time.monotonic()
            except Exception as error:  # whatever the connection may raise; rank 0 may just be leaving
                if time.monotonic() - self._reachable > self._patience:
                    self._leave(f"rank 0's store cannot be reached any more: {error}")
                continue
            for other, beat in beats.items():
                if self._heard.get(other, (b"", 0.0))[0] != beat:
                    self._heard[other] = (beat, time.monotonic())
            for other, (beat, heard) in self._heard.items():
                silence = time.monotonic() - heard
                if silence > self._patience and beat != b"left":
                    self._end(beat)
                    self._leave(f"{self._name(other)} has been silent for {silence:.0f} s (system.timeout)")

    def _name(self, rank: int) -> str:
        beat, _ = self._heard.get(rank, (b"", 0.0))
        return f"rank {rank} ({beat.decode().partition(' ')[2] or 'gone'})"

    def _end(self, beat: bytes) -> None:
        """Kill a silent process of this machine: stopped, it would not even notice torchrun's SIGTERM."""
        _, _, pid, _, host = beat.decode().split(" ")  # "12 pid 345 on somewhere"
        if host == socket.gethostname():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)

    def _leave(self, why: str) -> None:
        print(f"gpt2lab: [rank {self._rank}] {why}; leaving, the last checkpoint is kept", file=sys.stderr, flush=True)
        os._exit(LOST)
