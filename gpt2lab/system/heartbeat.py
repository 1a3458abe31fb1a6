"""Who is alive: every process says so now and then, and each watches all the others.

    rank r ──"beat/r" = a counter──▶ the store that torchrun (or rank 0) keeps ──▶ every other rank

Collectives wait for a process that is stopped, or gone without closing its connections, until they time out, and then
do not say for whom. So a process that has fallen silent is named, ended if it is on this machine (a stopped one would
hold its memory for ever), and everybody leaves.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store  # type: ignore[attr-defined]  # exported, but not by name

from gpt2lab.errors import LostRankError, RunStoppedError

_LEFT, _FAILED = "left", "failed"
_GRACE = 10.0  # seconds after another's failure in which this process may come to the same conclusion by itself


class Heartbeat:
    """This process's pulse, and what it hears of the others, on a thread of its own.

    Args:
        store: a connection that nothing else uses: a call that waits would hold up the pulse.
        patience: seconds of silence after which a process counts as lost.
        keeper: the rank that keeps the store; None: torchrun's agent does.
    """

    def __init__(self, store: Store, rank: int, world_size: int, patience: float, keeper: int | None):
        self._store, self._rank, self._patience, self._keeper = store, rank, patience, keeper
        self._others = [other for other in range(world_size) if other != rank]
        self._interval = min(1.0, patience / 4)
        self._who = f"{os.getpid()} {socket.gethostname()} {_identity(os.getpid())}"
        self._heard: dict[int, tuple[bytes, float]] = {}  # rank -> its last beat, and when that was new here
        self._reachable = 0.0  # when the store last answered
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._watch = threading.Thread(target=self._watch_store, name="heartbeat's watch", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["Heartbeat"]:
        """Beat and watch inside the `with`.

        Raises:
            LostRankError: in place of a RuntimeError, if that came of another process's end.
        """
        last = _LEFT
        self._reachable = time.monotonic()
        self._heard = dict.fromkeys(self._others, (b"", self._reachable))
        if self._keeper != self._rank:
            self._watch.start()
        self._introduce()
        self._thread.start()
        try:
            yield self
        except RunStoppedError:
            raise
        except RuntimeError as error:  # torch.distributed has no type of its own for a connection that breaks
            last = _FAILED
            self.explain(error)
            raise
        except BaseException:
            last = _FAILED
            raise
        finally:
            self._leaving.set()
            if self._watch.is_alive():
                self._watch.join()
            self._thread.join(2 * self._interval)
            with contextlib.suppress(Exception):  # the store may be gone already
                if not self._thread.is_alive():  # else it waits for the store, and so would this
                    self._store.set(f"beat/{self._rank}", last)

    def explain(self, error: RuntimeError) -> None:
        """Say whose end a collective's error came of; nothing if everybody is alive and it came of something else.

        Raises:
            LostRankError: names the processes that are silent; or says that one hangs, which nobody can tell from outside.
        """
        if lost := self._silent():
            raise LostRankError(f"lost {', '.join(lost)}; the same command goes on from the last checkpoint") from error
        if "timed out" in str(error).lower():
            raise LostRankError(
                "waited in vain for another process: all are alive, so one of them hangs, or takes longer than "
                "system.timeout; the same command goes on from the last checkpoint"
            ) from error

    def _silent(self) -> list[str]:
        """The processes that are not beating, in words; listens for a few intervals before it answers."""
        time.sleep(1.5 * self._interval)  # by now everybody's last beat is known, or they never had one
        before, began = dict(self._heard), time.monotonic()
        time.sleep(2.0 * self._interval)
        if self._reachable < began:  # without the store nobody is heard
            return [] if self._keeper == self._rank else [self._keeper_name()]
        return [_name(other, beat) for other, (beat, _) in self._heard.items() if before[other][0] == beat]

    def _introduce(self) -> None:
        """Exchange the first beats, so that whoever is lost, however soon, can be named."""
        keys = [f"beat/{other}" for other in self._others]
        with contextlib.suppress(RuntimeError):  # somebody is gone already: that will be noticed
            self._store.set(f"beat/{self._rank}", f"0 {self._who}")
            self._store.wait(keys, timedelta(seconds=self._patience / 2))
            beats = zip(self._others, self._store.multi_get(keys), strict=True)
            self._reachable = time.monotonic()
            self._heard = {other: (beat, self._reachable) for other, beat in beats}

    def _run(self) -> None:
        count, turn = 0, time.monotonic()
        while not self._leaving.wait(self._interval):
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", f"{count} {self._who}")
                known = [o for o, (beat, _) in self._heard.items() if beat or self._store.check([f"beat/{o}"])]
                beats = dict(zip(known, self._store.multi_get([f"beat/{k}" for k in known]), strict=True))
                self._reachable = time.monotonic()
            except Exception:  # whatever the connection may raise; the store's keeper may just be leaving
                continue
            now = time.monotonic()
            if now - turn > 4 * self._interval:  # this process itself stood still: the others may have, too
                self._heard = {other: (beat, now) for other, (beat, _) in self._heard.items()}
            turn = now
            for other, beat in beats.items():
                if self._heard[other][0] != beat:
                    self._heard[other] = (beat, now)
            for other, (beat, heard) in self._heard.items():
                if beat == _FAILED.encode() and now - heard > min(_GRACE, self._patience):
                    self._leave(f"rank {other} has failed, for what it says itself")
                if beat not in (_LEFT.encode(), _FAILED.encode()) and now - heard > self._patience:
                    _end(beat)
                    self._leave(f"{_name(other, beat)} has been silent for {now - heard:.0f} s")

    def _watch_store(self) -> None:
        """Leave when the store is silent: a call to a keeper that is stopped does not come back, nor time out."""
        turn = since = time.monotonic()
        while not self._leaving.wait(self._interval):
            now = time.monotonic()
            if now - turn > 4 * self._interval:  # this process itself stood still
                since = now
            turn = now
            silence = now - max(self._reachable, since)
            if silence > self._patience:
                if self._keeper is not None:
                    _end(self._heard[self._keeper][0])
                self._leave(f"{self._keeper_name()}, which keeps the store, has been silent for {silence:.0f} s")

    def _keeper_name(self) -> str:
        return "torchrun's agent" if self._keeper is None else _name(self._keeper, self._heard[self._keeper][0])

    def _leave(self, why: str) -> None:
        print(
            f"gpt2lab: [rank {self._rank}] {why}; leaving, the same command goes on from the last checkpoint\n",
            end="",  # in one piece, as in cli
            file=sys.stderr,
            flush=True,
        )
        os._exit(LostRankError.status)


def _name(rank: int, beat: bytes) -> str:
    _, pid, host, _ = beat.decode().split(" ") if beat.count(b" ") == 3 else ("",) * 4
    return f"rank {rank} (pid {pid} on {host})" if pid else f"rank {rank} (gone)"


def _end(beat: bytes) -> None:
    """Kill a silent process of this machine: stopped, it would not even notice torchrun's SIGTERM."""
    if beat.count(b" ") == 3:
        _, pid, _, identity = beat.decode().split(" ")
        if identity and identity == _identity(int(pid)):
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


def _identity(pid: int) -> str:
    """What no other process has: the machine's boot, its namespace of pids, and when the process began; "" unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{began}"
    except (OSError, IndexError):
        return ""
