"""Measure which of torch's attention kernels is the fastest on this GPU, and prefer it.

torch chooses a kernel by fixed rules. For GPT-2's heads of 64, cuDNN's kernel is reported to take about half the time
of flash attention on a Hopper GPU; on other GPUs it is the other way round. A measurement takes some milliseconds.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2lab.system import device as devices

KERNELS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
_WARMUP, _REPEATS = 3, 10


def measure(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    kernels: Sequence[SDPBackend] = KERNELS,
) -> dict[str, float]:
    """Measure a causal forward and backward pass by each kernel.

    Args:
        shape: (B, H, T, D).
        dtype: of queries, keys and values.
        device: to measure on.
        kernels: to compare.

    Returns:
        Median seconds by name of the kernel, the fastest first, without kernels that do not support the case.
    """
    B, H, T, D = shape
    qkv = torch.randn(B, T, 3, H, D, device=device, dtype=dtype, requires_grad=True)  # strided as in the model
    medians = {}
    for kernel in kernels:
        seconds = []
        with contextlib.suppress(RuntimeError), sdpa_kernel(kernel):  # RuntimeError: no available kernel
            for _ in range(_WARMUP + _REPEATS):
                devices.synchronize(device)
                start = time.perf_counter()
                q, k, v = qkv.permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(y, qkv, torch.ones_like(y))
                devices.synchronize(device)
                seconds.append(time.perf_counter() - start)
            medians[kernel.name] = statistics.median(seconds[_WARMUP:])
    return dict(sorted(medians.items(), key=lambda item: item[1]))


@contextlib.contextmanager
def preferring(names: Sequence[str]) -> Iterator[None]:
    """Make torch use the first of these kernels that supports a case, and the remaining ones if none does.

    Args:
        names: of kernels, as `measure` returns them.
    """
    order = [SDPBackend.__members__[name] for name in names]
    order += [kernel for kernel in (*KERNELS, SDPBackend.MATH) if kernel not in order]
    with sdpa_kernel(order, set_priority=True):
        yield
