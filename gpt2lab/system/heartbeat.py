"""Detection of lost ranks: each rank counts in the store, and watches whether the others do.

    rank r ──"r" = a counter──▶ the store of torchrun, or of rank 0 ──▶ every other rank

A collective waits for a process that is stopped, or whose machine is gone, until it times out, and does not name it
then. torchrun notices processes that end, but not ones that are stopped. `monitored_barrier` names ranks, but needs
gloo and the main thread, which may be waiting in a collective.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator

from gpt2lab import progress
from gpt2lab.errors import LostRankError, RunStoppedError
from gpt2lab.system.rendezvous import Generation

_FINISHED, _FAILED = b"finished", b"failed"  # last values, in place of a counter
_EXIT_SECONDS = 10.0  # for this rank to notice by itself, in a collective, that another one has failed
_CONTINUE = "the same command continues from the last checkpoint"
_HANGS = (
    "timed out waiting for another rank: all are alive, so one of them hangs, or takes longer than "
    f"system.timeout; {_CONTINUE}"
)


class Heartbeat:
    """Counts for this rank and watches the others, on two threads: a call to a store that is stopped never returns.

    Args:
        generation: the processes of all ranks.
        rank: of this process.
        timeout: seconds without a new count after which a rank is lost.
        patience: seconds that the main thread may spend inside `deadline`.
    """

    def __init__(self, generation: Generation, rank: int, timeout: float, patience: float = math.inf):
        self._generation, self._rank, self._timeout = generation, rank, timeout
        self._patience, self._waiting_since = patience, math.inf
        self._interval = min(1.0, timeout / 4)
        self._store = generation.connect("beat", timeout)
        self._stop = threading.Event()
        self._last_value = _FAILED

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count and watch inside the `with` block.

        Raises:
            LostRankError: in place of a RuntimeError that another rank caused.
        """
        self._reset_clocks()
        threads = [threading.Thread(target=f, name="heartbeat", daemon=True) for f in (self._exchange, self._watch)]
        for thread in threads:
            thread.start()
        try:
            yield
            self._last_value = _FINISHED
        except RunStoppedError:
            self._last_value = _FINISHED
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
            LostRankError: names the ranks that no longer count, or tells that one of them hangs.
        """
        time.sleep(4 * self._interval)
        if lost := self._silent_ranks(2.5 * self._interval):
            raise LostRankError(f"lost {self._names(lost)}; {_CONTINUE}") from error
        if "timed out" in str(error).lower():
            raise LostRankError(_HANGS) from error

    @contextlib.contextmanager
    def deadline(self) -> Iterator[None]:
        """Inside, the main thread waits for its GPU, which may wait for another rank's.

        If that takes too long, this process exits with the status of LostRankError. Without this, the thread would wait
        until NCCL's watchdog aborts the process, which prints no message of ours.
        """
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = math.inf

    def _reset_clocks(self) -> None:
        """Wait anew for the store and for every rank."""
        self._store_answered = now = time.monotonic()
        self._waiting_since = max(self._waiting_since, now)
        ranks = range(len(self._generation.processes))
        self._counts = {rank: (b"", now) for rank in ranks if rank != self._rank}

    def _exchange(self) -> None:
        """Write this rank's counter and read the others'; `_watch` sees when the store no longer answers."""
        count = 0
        while not self._stop.wait(self._interval):
            count += 1
            with contextlib.suppress(Exception):
                self._store.set(str(self._rank), str(count))
                values = self._store.multi_get([str(rank) for rank in self._counts])
                now = time.monotonic()
                for rank, value in zip(self._counts, values, strict=True):
                    if self._counts[rank][0] != value:
                        self._counts[rank] = (value, now)
                self._store_answered = now
        with contextlib.suppress(Exception):
            self._store.set(str(self._rank), self._last_value.decode())

    def _watch(self) -> None:
        """End this process when a rank, or the store, is silent for too long."""
        previous = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            if now - previous > 4 * self._interval:  # this process was stopped or slow, and perhaps so were the others
                self._reset_clocks()
            previous = now
            if lost := self._silent_ranks(self._timeout):
                for rank in lost:
                    # One that wrote its last value is exiting.
                    if rank is not None and self._counts[rank][0] not in (_FINISHED, _FAILED):
                        self._generation.processes[rank].kill_if_local()
                failed = all(rank is not None and self._counts[rank][0] == _FAILED for rank in lost)
                reason = "failed" if failed else f"silent for {self._timeout:g} s"
                self._exit(f"{self._names(lost)} {reason}; {_CONTINUE}")
            if now - self._waiting_since > self._patience:
                self._exit(_HANGS)

    def _exit(self, message: str) -> None:
        progress.restore_terminal()
        with contextlib.suppress(OSError):
            # In one piece, since all ranks write, and without a stream's lock.
            os.write(2, f"gpt2lab: [rank {self._rank}] {message}\n".encode())
        os._exit(LostRankError.status)

    def _silent_ranks(self, seconds: float) -> list[int | None]:
        """The ranks without a new count for so many seconds; if the store does not answer, the rank that hosts it."""
        host = self._generation.store_rank
        if host != self._rank and time.monotonic() - self._store_answered > seconds:
            return [host]
        return [
            rank
            for rank, (count, changed) in self._counts.items()
            if count != _FINISHED
            and self._store_answered - changed > (min(_EXIT_SECONDS, seconds) if count == _FAILED else seconds)
        ]

    def _names(self, ranks: list[int | None]) -> str:
        processes = self._generation.processes
        return ", ".join("torchrun's agent" if rank is None else f"rank {rank} ({processes[rank]})" for rank in ranks)
