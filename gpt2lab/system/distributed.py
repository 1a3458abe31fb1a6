"""One process or many: a DistContext is made once, handed around, and hides which it is.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK ─▶ start() ─▶ DistContext ─▶ loader slice, gradient and loss means
                                                    └─▶ Heartbeat: a process that is lost is named, and all leave

Without torchrun every method does the obvious thing for a world of one.
"""

import contextlib
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # exported, but not by name
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device as devices
from gpt2lab.system.heartbeat import Heartbeat

T = TypeVar("T")

START_TIMEOUT, TIMEOUT = 300.0, 600.0  # seconds, unless the caller has settings of its own
SILENCE = 60.0  # seconds without a sign of life that count as lost, if the timeout is not shorter


@dataclass(frozen=True)
class DistContext:
    """This process's place among the ones that train together, and its device."""

    rank: int
    world_size: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None  # for small numbers that never were on a card; None: the default one
    heartbeat: Heartbeat | None = None

    @property
    def is_main(self) -> bool:
        """Rank 0 writes and speaks for all."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it trains: averaging gradients across ranks, or itself in a world of one."""
        if self.world_size == 1:
            return model
        cards = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=cards, gradient_as_bucket_view=True)

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Deal the parameters out to the ranks (FSDP2), in place: a rank holds 1 / world_size of each.

        Parameters come together for the time that their block, or for the rest the model, computes. Gradients are
        averaged over ranks as they are made. Parameters become DTensors on the device and keep their names.
        """
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def gradient_sync(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around forward and backward of a micro-step: only the `last` one sends gradients across ranks.

        Sharded parameters send them every time: whole gradients, kept until the last, might not fit a card.
        """
        plain = getattr(model, "_orig_mod", model)  # torch.compile keeps what it wraps under this name
        if isinstance(plain, DistributedDataParallel) and not last:
            return plain.no_sync()
        return contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over ranks; the same on every rank, on this rank's device if there are several."""
        if self.world_size > 1:
            value = value.to(self.device)
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks; the same on every rank."""
        return self.sum(value) / self.world_size

    def all_reduce_max(self, value: int) -> int:
        """The largest of the ranks' numbers, on every rank; does not wait for a card's queue."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.host_group)
        return int(tensor)

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and give its result, or its error as a GPT2LabError, to every rank."""
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except (GPT2LabError, OSError) as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome, device=self.device if self.device.type == "cuda" else None)
        if outcome[1] is not None:
            raise GPT2LabError(outcome[1])
        return outcome[0]  # type: ignore[no-any-return]


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor itself, or all of a sharded one: then every rank must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, which is whole on every rank, placed as `parameter` is: this rank's shard if that is sharded."""
    if not isinstance(parameter, DTensor):
        return tensor
    here = tensor.to(parameter.device)
    return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextlib.contextmanager
def start(device_name: str, *, start_timeout: float = START_TIMEOUT, timeout: float = TIMEOUT) -> Iterator[DistContext]:
    """Join the world that torchrun's environment variables describe, or be alone; leave it on the way out.

    NCCL between CUDA devices, gloo otherwise.

    Args:
        start_timeout: seconds within which all processes must be there.
        timeout: seconds after which a collective gives up. A process that shows no sign of life for as long, or for
            `SILENCE` if that is shorter, is named, and this one exits with the status of LostRankError.

    Raises:
        GPT2LabError: the environment is incomplete, or processes are missing (which).
    """
    rank, world_size, local_rank = (_number(name, one) for name, one in _PLACES)
    if rank >= world_size:
        raise GPT2LabError(f"RANK is {rank}, but WORLD_SIZE is {world_size}: ranks count from 0; start with torchrun")
    device = devices.choose(device_name, local_rank)
    if world_size == 1:
        yield DistContext(rank=0, world_size=1, device=device)
        return
    corner = _meet(rank, world_size, start_timeout)
    patience = timedelta(seconds=timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    join = PrefixStore(f"{corner}/group", _connect(start_timeout))
    dist.init_process_group(backend, store=join, rank=rank, world_size=world_size, timeout=patience)
    host_group = dist.new_group(backend="gloo", timeout=patience) if backend == "nccl" else None
    own_connection, keeper = PrefixStore(corner, _connect(start_timeout)), None if _agent_hosts() else 0
    pulse = Heartbeat(own_connection, rank, world_size, min(timeout, SILENCE), keeper)
    try:
        with pulse.running():
            yield DistContext(rank, world_size, device, host_group, pulse)
    finally:
        # Gloo's threads take the GIL to let go of their last tensors; the group's destructor waits for them and holds
        # it (pytorch issue 56297). So they are given the time before.
        time.sleep(0.1)
        dist.destroy_process_group()


_PLACES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise GPT2LabError(f"{name} is {text!r}; it must be a number, as torchrun sets it")
    return int(text)


def _agent_hosts() -> bool:
    """Whether torchrun's agent keeps the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connect(timeout: float, *, host_it: bool = False) -> Store:
    """A connection to the store at MASTER_ADDR:MASTER_PORT."""
    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 0)
    if not address or not 0 < port < 2**16:
        raise GPT2LabError("WORLD_SIZE is set, but not MASTER_ADDR and a MASTER_PORT below 65536; start with torchrun")
    try:
        if not host_it:
            _wait_for(address, port, timeout)
        store = TCPStore(address, port, is_master=host_it, timeout=timedelta(seconds=timeout), wait_for_workers=False)
    except (RuntimeError, OSError, UnicodeError) as error:  # UnicodeError: no name of a machine can be like that
        raise GPT2LabError(
            f"cannot reach the first process at {address}:{port} within {timeout:g} s (system.start_timeout): "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return PrefixStore("gpt2lab", store)


def _wait_for(address: str, port: int, timeout: float) -> None:
    """Return when somebody listens there. The store would wait as well, but prints a page about every failure.

    Raises:
        OSError: nobody does within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, port), timeout=timeout).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _meet(rank: int, world_size: int, timeout: float) -> str:
    """Wait until all processes are there; returns a corner of the store that only these very processes know.

    torchrun starts processes again after a failure, with the same store, and its counts of restarts differ between
    nodes. So every process announces a name of its own, drawn anew; rank 0 publishes the list, again whenever a name
    changes; and once each process of a list has found itself in it, that list is the world.

    Raises:
        GPT2LabError: processes are missing (which).
    """
    global _hosted
    store = _connect(timeout, host_it=rank == 0 and not _agent_hosts())
    _hosted = store  # a store that rank 0 hosts lives as long as this object
    mine, ranks = uuid.uuid4().hex, range(world_size)
    store.set(f"joined/{rank}", mine)
    deadline = time.monotonic() + timeout
    while True:
        missing = [other for other in ranks if not store.check([f"joined/{other}"])]
        if rank == 0 and not missing:
            store.set("world", " ".join(name.decode() for name in store.multi_get([f"joined/{o}" for o in ranks])))
        world = store.get("world").decode().split() if store.check(["world"]) else []
        if len(world) == world_size and world[rank] == mine:
            corner = hashlib.sha256(" ".join(world).encode()).hexdigest()[:16]
            store.set(f"{corner}/here/{rank}", "")
            missing = [other for other in ranks if not store.check([f"{corner}/here/{other}"])]
            if not missing:
                return corner
        if time.monotonic() > deadline:
            missing = missing or [0]  # all have announced themselves, but rank 0 did not publish this one
            names = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            raise GPT2LabError(
                f"rank {names} of {world_size} did not start within {timeout:g} s (system.start_timeout); "
                "look at their machines, then start all of them again"
            )
        time.sleep(0.05)


_hosted: Store | None = None
