"""How the ranks of a run find each other: through the store at MASTER_ADDR:MASTER_PORT.

each rank ──"joined/r" = its process──▶ store ──"world" = the list of rank 0──▶ each rank checks that it is listed
"""

import contextlib
import hashlib
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # not in __all__

from gpt2lab.errors import GPT2LabError

_server: Store | None = None  # that rank 0 hosts, unless torchrun's agent does; lives as long as the process


class RankProcess(NamedTuple):
    """Identity of the process of a rank; a process that replaces it has another one.

    Args:
        pid: process id.
        host: name of its machine.
        start_time: of the process, in the kernel's clock ticks since boot; `-` where it is not known.
    """

    pid: int
    host: str
    start_time: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def kill_if_local(self) -> None:
        """Kill it if it runs on this machine: a stopped process ignores SIGTERM and would keep its memory."""
        if self.start_time != "-" and (self.host, self.start_time) == (socket.gethostname(), _start_time(self.pid)):
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"


class Generation(NamedTuple):
    """The processes that train together, until one of them is restarted.

    Args:
        name: prefix of their keys in the store.
        processes: of each rank.
        store_rank: the rank whose process hosts the store; None: torchrun's agent.
    """

    name: str
    processes: list[RankProcess]
    store_rank: int | None

    def connect(self, name: str, timeout: float) -> Store:
        """A new connection to the store, for the keys below `name` of this generation."""
        return PrefixStore(f"{self.name}/{name}", _connect(timeout))


def rendezvous(rank: int, world_size: int, timeout: float) -> Generation:
    """Wait until all ranks have started.

    torchrun restarts processes with the same store, and its counts of restarts differ between nodes. So each process
    writes an identity that is new after a restart, rank 0 publishes the list of identities, again whenever one changes,
    and the generation is complete when every process of a list has found itself in it.

    Args:
        rank: of this process.
        world_size: number of ranks.
        timeout: seconds.

    Raises:
        GPT2LabError: the store cannot be reached, or ranks are missing; names them.
    """
    global _server
    agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts_store = rank == 0 and not agent_store
    store = _connect(timeout, host_it=hosts_store)
    if hosts_store:
        _server = store
    process = RankProcess(os.getpid(), socket.gethostname(), _start_time(os.getpid()))
    joined = [f"joined/{other}" for other in range(world_size)]
    store.set(joined[rank], " ".join(map(str, process)))
    deadline = time.monotonic() + timeout
    while True:
        missing = [other for other, key in enumerate(joined) if not store.check([key])]
        if rank == 0 and not missing:
            store.set("world", "\n".join(value.decode() for value in store.multi_get(joined)))
        world = store.get("world").decode() if store.check(["world"]) else ""
        processes = [RankProcess(int(pid), *rest) for pid, *rest in map(str.split, world.splitlines())]
        if len(processes) == world_size and processes[rank] == process:
            name = hashlib.sha256(world.encode()).hexdigest()[:16]
            store.set(f"{name}/beat/{rank}", "0")
            missing = [other for other in range(world_size) if not store.check([f"{name}/beat/{other}"])]
            if not missing:
                return Generation(name, processes, None if agent_store else 0)
        if time.monotonic() > deadline:
            missing = missing or [0]  # all have joined, but rank 0 did not publish this process
            names = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            raise GPT2LabError(
                f"rank {names} of {world_size} did not start within {timeout:g} s (system.start_timeout); "
                "look at their machines, then start all of them again"
            )
        time.sleep(0.05)


def _connect(timeout: float, *, host_it: bool = False) -> Store:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise GPT2LabError("WORLD_SIZE is set, but not MASTER_ADDR and a MASTER_PORT below 65536; start with torchrun")
    wait = timedelta(seconds=timeout)
    try:
        if not host_it:
            _wait_for(address, int(port), timeout)
        store = TCPStore(address, int(port), is_master=host_it, timeout=wait, wait_for_workers=False)
    except (RuntimeError, OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
        raise GPT2LabError(
            f"cannot reach the first process at {address}:{port} within {timeout:g} s (system.start_timeout): "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return PrefixStore("gpt2lab", store)


def _wait_for(address: str, port: int, timeout: float) -> None:
    """Wait until a connection succeeds. The store would wait as well, but prints a stack trace for every failure."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, port), timeout=timeout).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
