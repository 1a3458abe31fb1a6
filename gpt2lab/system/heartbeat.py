"""Detection of lost ranks: each rank counts in the store, and watches whether the others do.

    rank r ──"r" = a counter──▶ the store of torchrun, or of rank 0 ──▶ every other rank

A collective waits for a process that is stopped, or whose machine is gone, until it times out, and does not name it
then. torchrun notices processes that end, but not ones that are stopped; `monitored_barrier` names ranks, but needs
gloo, a free main thread and a collective of its own.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch.distributed import Store  # type: ignore[attr-defined]  # exported, but not in __all__

from gpt2lab.errors import LostRank, Stopped

_FINISHED = b"finished"  # in place of a counter


class RankProcess(NamedTuple):
    """Identity of the process of a rank; no other process has the same, also after a restart.

    Args:
        token: random.
        pid: process id.
        host: name of its machine.
        start_time: of the process, in the kernel's clock ticks since boot; `-` where it is not known.
    """

    token: str
    pid: str
    host: str
    start_time: str

    @classmethod
    def current(cls) -> "RankProcess":
        """The identity of this process."""
        return cls(uuid.uuid4().hex, str(os.getpid()), socket.gethostname(), _start_time(str(os.getpid())))

    def kill_if_local(self) -> None:
        """Kill it if it runs on this machine: a stopped process ignores SIGTERM and would keep its memory."""
        if self.start_time != "-" and self.host == socket.gethostname() and self.start_time == _start_time(self.pid):
            with contextlib.suppress(OSError):
                os.kill(int(self.pid), signal.SIGKILL)


class Heartbeat:
    """Counts for this rank and watches the others, on two threads: a call to a store that is stopped never returns.

    Args:
        store: a connection that nothing else uses, since other calls would block it; has a key for each rank, `0`, `1`, ...
        rank: of this process.
        processes: of all ranks.
        store_rank: the rank whose process hosts the store; None: torchrun's agent.
        timeout: seconds without a new count after which a rank is lost.
    """

    def __init__(
        self, store: Store, rank: int, processes: Sequence[RankProcess], store_rank: int | None, timeout: float
    ):
        self._store, self._rank, self._processes, self._store_rank = store, rank, processes, store_rank
        self._timeout, self._interval = timeout, min(1.0, timeout / 4)
        self._stop = threading.Event()
        self._finished = False
        self._reset_clocks()

    @contextlib.contextmanager
    def running(self) -> Iterator["Heartbeat"]:
        """Count and watch inside the `with` block.

        Raises:
            LostRank: in place of a RuntimeError that another rank caused.
        """
        self._reset_clocks()
        threads = [threading.Thread(target=f, name="heartbeat", daemon=True) for f in (self._exchange, self._watch)]
        for thread in threads:
            thread.start()
        try:
            yield self
            self._finished = True
        except Stopped:
            self._finished = True
            raise
        except RuntimeError as error:  # torch.distributed has no error of its own for a broken connection
            self.explain(error)
            raise
        finally:
            self._stop.set()
            threads[0].join(2 * self._interval)

    def explain(self, error: RuntimeError) -> None:
        """Find out whether a collective failed because of another rank; if not, do nothing.

        Raises:
            LostRank: names the ranks that no longer count, or says that one of them hangs.
        """
        time.sleep(4 * self._interval)
        if lost := self._silent_ranks(2.5 * self._interval):
            raise LostRank(f"lost {', '.join(lost)}; the same command continues from the last checkpoint") from error
        if "timed out" in str(error).lower():
            raise LostRank(
                "timed out waiting for another rank: all are alive, so one of them hangs, or takes longer than "
                "system.timeout; the same command continues from the last checkpoint"
            ) from error

    def _reset_clocks(self) -> None:
        """Begin to wait anew for the store and for every rank."""
        now = time.monotonic()
        self._store_answered = now
        self._counts = {rank: (b"", now) for rank in range(len(self._processes)) if rank != self._rank}

    def _exchange(self) -> None:
        """Write this rank's counter and read the others'."""
        count, keys = 0, [str(rank) for rank in self._counts]
        while not self._stop.wait(self._interval):
            count += 1
            with contextlib.suppress(Exception):  # the store may be gone; `_watch` sees that it does not answer
                self._store.set(str(self._rank), str(count))
                values = self._store.multi_get(keys)
                self._store_answered = now = time.monotonic()
                for rank, value in zip(self._counts, values, strict=True):
                    if self._counts[rank][0] != value:
                        self._counts[rank] = (value, now)
        if self._finished:
            with contextlib.suppress(Exception):
                self._store.set(str(self._rank), _FINISHED.decode())

    def _watch(self) -> None:
        """End this process when a rank, or the store, is silent for too long."""
        previous = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            if now - previous > 4 * self._interval:  # this process was stopped or slow, and perhaps so were the others
                self._reset_clocks()
            previous = now
            if lost := self._silent_ranks(self._timeout, kill=True):
                text = f"gpt2lab: [rank {self._rank}] {', '.join(lost)} silent for {self._timeout:g} s; exiting, "
                # One write, since other ranks print at the same time.
                print(
                    f"{text}the same command continues from the last checkpoint\n", end="", file=sys.stderr, flush=True
                )
                os._exit(LostRank.status)

    def _silent_ranks(self, seconds: float, *, kill: bool = False) -> list[str]:
        """Names of the ranks without a new count for so many seconds; if the store is silent, of its host alone."""
        if self._store_rank != self._rank and time.monotonic() - self._store_answered > seconds:
            if self._store_rank is None:
                return ["torchrun's agent, which hosts the store,"]
            silent = [self._store_rank]
        else:
            silent = [
                rank
                for rank, (count, changed) in self._counts.items()
                if count != _FINISHED and self._store_answered - changed > seconds
            ]
        for rank in silent if kill else ():
            self._processes[rank].kill_if_local()
        return [f"rank {n} (pid {self._processes[n].pid} on {self._processes[n].host})" for n in silent]


def _start_time(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"
