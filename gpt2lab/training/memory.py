"""A micro-step on made-up tokens before the first step: does the compiled model run, and does the batch fit?

A batch that is too large, or a compiler that fails, shows itself in a run's first step. Found here, where no gradient
crosses ranks yet, all ranks can agree on something smaller, or on going without the compiler.
"""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt2lab.system import device as devices
from gpt2lab.system.distributed import DistContext
from gpt2lab.system.precision import Precision
from gpt2lab.training.trainer import smaller_micro_batch

_SHARE_OF_MEMORY = 0.9  # of what is free, for `auto`: evaluations and fragmentation want some as well


def micro_step(model: nn.Module, size: int, block_size: int, dist: DistContext, precision: Precision) -> None:
    """Forward and backward of `size` sequences; the gradients are dropped.

    Raises:
        torch.OutOfMemoryError: they do not fit. Anything else: the model does not run.
    """
    tokens = torch.zeros(size, block_size, dtype=torch.int64, device=dist.device)
    try:
        with dist.gradient_sync(model, last=False):
            with precision.autocast():
                loss: Tensor = model(tokens, tokens)[1]
            torch.autograd.backward(loss)
        devices.synchronize(dist.device)
    finally:
        model.zero_grad(set_to_none=True)


class Broken(Exception):
    """The model does not run, for another reason than memory, on one of the ranks."""


def fitting(
    try_it: Callable[[int], None], size: int, share: int, reserve: int, dist: DistContext, say: Callable[[str], None]
) -> int:
    """The largest micro batch up to `size` that fits on every rank: `size` is halved until it does.

    Args:
        try_it: runs a micro-step of so many sequences, without the other ranks.
        share: sequences of a step a rank; the result divides it.
        reserve: bytes that will be wanted beside it.

    Raises:
        GPT2LabError: not even one sequence fits.
        Broken: it does not run at all.
    """
    while True:
        outcome, why, held = 0, "on another rank", torch.empty(0)
        try:
            held = torch.empty(reserve, dtype=torch.uint8, device=dist.device)
            try_it(size)
        except torch.OutOfMemoryError:
            outcome = 1
        except Exception as error:
            outcome, why = 2, f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        del held  # however the attempt went
        gc.collect()
        devices.release_memory(dist.device)
        outcome = dist.all_reduce_max(outcome)
        if outcome == 0:
            return size
        if outcome == 2:
            raise Broken(why)
        size, was = smaller_micro_batch(size, share), size
        say(f"micro_batch_size {was} does not fit into memory; trying {size}")


def estimate(try_it: Callable[[int], None], share: int, reserve: int, dist: DistContext) -> int:
    """The largest divisor of `share` that should fit a card: memory grows by the same amount with each sequence."""
    sizes = [n for n in range(1, share + 1) if share % n == 0][:2]
    peaks = []
    try:
        for size in sizes:
            devices.release_memory(dist.device)
            torch.cuda.reset_peak_memory_stats(dist.device)
            try_it(size)
            peaks.append(torch.cuda.max_memory_allocated(dist.device))
    except torch.OutOfMemoryError:
        pass
    if dist.all_reduce_max(int(len(peaks) < 2)):
        return 1
    each = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    free, _ = torch.cuda.mem_get_info(dist.device)
    room = _SHARE_OF_MEMORY * (free + torch.cuda.memory_reserved(dist.device)) - reserve - peaks[0]
    most = 1 + int(max(0.0, room) / max(each, 1.0))
    size = max(n for n in range(1, min(share, most) + 1) if share % n == 0)
    return -dist.all_reduce_max(-size)  # the smallest of the ranks' answers
