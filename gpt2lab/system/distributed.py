"""One process or many: a DistContext is made once, handed around, and hides which it is.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK ─▶ start() ─▶ DistContext ─▶ loader slice, gradient and loss means

Without torchrun every method does the obvious thing for a world of one.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device as devices

T = TypeVar("T")


@dataclass(frozen=True)
class DistContext:
    """This process's place among the ones that train together, and its device."""

    rank: int
    world_size: int
    device: torch.device

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

    def gradient_sync(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around forward and backward of a micro-step: only the `last` one sends gradients across ranks."""
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


@contextlib.contextmanager
def start(device_name: str) -> Iterator[DistContext]:
    """Join the world that torchrun's environment variables describe, or be alone; leave it on the way out.

    NCCL between CUDA devices, gloo otherwise.
    """
    try:
        world_size, local_rank = (
            int(os.environ.get(name, one)) for name, one in (("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
    except ValueError as error:
        raise GPT2LabError(f"WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them: {error}") from error
    device = devices.choose(device_name, local_rank)
    if world_size == 1:
        yield DistContext(rank=0, world_size=1, device=device)
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except ValueError as error:
        raise GPT2LabError(f"cannot join the other processes: {error}; start with torchrun") from error
    try:
        yield DistContext(rank=dist.get_rank(), world_size=world_size, device=device)
    finally:
        dist.destroy_process_group()
