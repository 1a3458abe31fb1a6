"""Collectives of the ranks that train together; with a single process every method does without communication.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK ─▶ start() ─▶ DistContext ─▶ slice of the batch, means over ranks
                                                └─▶ Heartbeat: names a lost rank and ends the others
"""

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]  # not in __all__
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import GPT2LabError, RunStoppedError, describe
from gpt2lab.system import device as devices
from gpt2lab.system.heartbeat import Heartbeat
from gpt2lab.system.rendezvous import rendezvous

T = TypeVar("T")

START_TIMEOUT, TIMEOUT = 300.0, 600.0  # seconds; defaults for callers without settings
_WATCHDOG_SECONDS = 60.0  # of NCCL, after `system.timeout`
_ERROR_OF_RANK_0 = "error of rank 0"  # key in the store
_ERROR_SECONDS = 2.0  # for rank 0 to have the same error
SILENCE = 60.0  # seconds without a sign of life after which a rank is lost, unless the timeout is shorter


@dataclass(frozen=True)
class DistContext:
    """The rank of this process, its device, and the collectives.

    Args:
        rank: of this process, from 0.
        world_size: number of ranks.
        device: where this rank computes.
        heartbeat: detects lost ranks; None with a single process.
    """

    rank: int
    world_size: int
    device: torch.device
    heartbeat: Heartbeat | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and messages."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model so that its gradients are averaged over ranks; a single process returns it as it is."""
        if self.world_size == 1:
            return model
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Shard the parameters over the ranks in place (FSDP2): each rank holds 1 / world_size of every parameter.

        The parameters of a block, or for the rest those of the model, are gathered while it computes. Gradients are
        averaged over ranks in each backward pass. Parameters become DTensors on the device and keep their names.

        Args:
            model: to be sharded.
            blocks: its submodules that are gathered as a unit.
        """
        from torch.distributed.fsdp import fully_shard  # with sympy, 0.7 s

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def gradient_sync(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Context of forward and backward of a micro-step: DDP averages gradients over ranks in the last one only.

        Sharded models average in every micro-step: full gradients, kept until the last, might not fit in GPU memory.

        Args:
            model: as returned by `wrap`, perhaps compiled.
            last: whether this is the last micro-step of the step.
        """
        module = getattr(model, "_orig_mod", model)  # torch.compile keeps the original module under this name
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        return contextlib.nullcontext()

    def deadline(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the host waits for the device, and this process exits if that exceeds `system.timeout`."""
        return contextlib.nullcontext() if self.heartbeat is None else self.heartbeat.deadline()

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over ranks, on every rank; moved to this rank's device if there are several."""
        if self.world_size > 1:
            value = value.to(self.device)
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks, on every rank."""
        return self.sum(value) / self.world_size

    def all_gather(self, value: Tensor) -> Tensor:
        """The ranks' tensors of one shape, one after another along the first dimension, on every rank."""
        gathered = value.new_empty(self.world_size * len(value), *value.shape[1:])
        dist.all_gather_into_tensor(gathered, value.contiguous())
        return gathered

    def all_reduce_max(self, value: int) -> int:
        """The largest of the ranks' numbers, on every rank; does not wait for work queued on a GPU."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result on every rank.

        Raises:
            GPT2LabError: `work` raised one, or an OSError; on every rank.
        """
        if self.world_size == 1:
            return work()
        result_and_error: list[Any] = [None, None]
        if self.is_main:
            try:
                result_and_error[0] = work()
            except (GPT2LabError, OSError) as error:
                result_and_error[1] = describe(error)
        dist.broadcast_object_list(result_and_error, device=torch.device("cpu"))
        result, message = result_and_error
        if message is not None:
            raise GPT2LabError(message)
        return result  # type: ignore[no-any-return]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor. Its class is not imported for this: that takes 0.7 s."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, a collective that every rank must call; other tensors are returned as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor that every rank has in full, placed as a parameter is; the tensor if that is not.

    Args:
        parameter: sharded or not.
        tensor: of the same shape.
    """
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]


@contextlib.contextmanager
def start(device_name: str, *, start_timeout: float = START_TIMEOUT, timeout: float = TIMEOUT) -> Iterator[DistContext]:
    """Join the ranks that torchrun's environment variables describe, and leave them at the end of the `with` block.

    NCCL for tensors on CUDA devices, gloo for others. Without the variables it is a single process.

    Args:
        device_name: `system.device`: auto, cpu, cuda or mps.
        start_timeout: seconds within which all ranks must have started.
        timeout: seconds after which a collective fails. A rank that shows no sign of life for as long, or for `SILENCE`
            if that is shorter, is lost: it is named, and this process exits with the status of LostRankError.

    Raises:
        GPT2LabError: the environment is incomplete, or ranks are missing; names them.
    """
    rank, world_size, local_rank = read_ranks()
    device = devices.choose(device_name, local_rank)
    if device.type == "cpu":
        devices.keep_freed_memory()
    if world_size == 1:
        yield DistContext(rank=0, world_size=1, device=device)
        return
    generation = rendezvous(rank, world_size, start_timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, wait = generation.connect("group", start_timeout), timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
    if device.type == "cuda":
        _allow_for_deadline(device, timeout)
    heartbeat = Heartbeat(generation, rank, min(timeout, SILENCE), timeout)
    try:
        with heartbeat.running():
            try:
                yield DistContext(rank, world_size, device, heartbeat)
            except GPT2LabError as error:
                error.same_on_rank_0 = _is_same_on_rank_0(str(error), rank, store)
                raise
    except BaseException as error:
        _leave(device, error)
        raise
    _leave(device)


def _allow_for_deadline(device: torch.device, timeout: float) -> None:
    """Let NCCL's watchdog, which aborts this process, wait longer than `DistContext.deadline`, which has a message."""
    with contextlib.suppress(AttributeError):  # torch has no public function for one of the backends
        backend = dist.group.WORLD._get_backend(device)  # type: ignore[union-attr]
        backend._set_default_timeout(timedelta(seconds=timeout + _WATCHDOG_SECONDS))


def _leave(device: torch.device, error: BaseException | None = None) -> None:
    """Leave the process group, unless that could wait for ever.

    After a failure on GPUs, NCCL's communicators may wait for kernels that wait for a rank that is gone, also while
    Python deletes the group at its end. So the process exits as soon as the error has been printed.

    Args:
        device: of this rank.
        error: the exception that ends the process.
    """
    if device.type == "cuda" and error is not None and not isinstance(error, RunStoppedError):
        status = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "status", 1)
        atexit.register(_exit_now, status)
        return
    # The group's destructor holds the GIL while it waits for gloo's threads, which need the GIL to free their last
    # tensors (pytorch issue 56297). The pause lets them do so before.
    time.sleep(0.1)
    dist.destroy_process_group()


def _exit_now(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def _is_same_on_rank_0(message: str, rank: int, store: Store) -> bool:
    """Whether rank 0 ends with the same error message. Then only rank 0 needs to print it."""
    try:
        if rank == 0:
            store.set(_ERROR_OF_RANK_0, message)
            return True
        store.wait([_ERROR_OF_RANK_0], timedelta(seconds=_ERROR_SECONDS))
        return bool(store.get(_ERROR_OF_RANK_0).decode() == message)
    except dist.DistNetworkError:  # rank 0 held the store, and has ended
        return True
    except RuntimeError:  # it has no error so far
        return False


def read_ranks() -> tuple[int, int, int]:
    """Read torchrun's environment variables: rank, number of ranks, and rank on this machine.

    Raises:
        GPT2LabError: they are not valid.
    """
    rank, world_size, local_rank = _read_number("RANK", 0), _read_number("WORLD_SIZE", 1), _read_number("LOCAL_RANK", 0)
    if rank >= world_size:
        raise GPT2LabError(f"RANK is {rank}, but WORLD_SIZE is {world_size}: ranks count from 0; start with torchrun")
    return rank, world_size, local_rank


def _read_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise GPT2LabError(f"{name} is {text!r}; it must be a number, as torchrun sets it")
    return int(text)
