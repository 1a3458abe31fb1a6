"""Which of torch's attention kernels is the fastest on this card: asked of the card itself.

torch picks one by rules. For GPT-2's heads of 64 on a Hopper card cuDNN's is reported to take about half the time of
flash attention; on others it is the other way round. A measurement of some milliseconds settles it.
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
_TIMES = 10


def measure(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    kernels: Sequence[SDPBackend] = KERNELS,
) -> dict[str, float]:
    """Seconds of a causal forward and backward pass by each kernel that can do it, the fastest first.

    Args:
        shape: (B, H, T, D).
    """
    heads, length = shape[1], shape[2]
    # strided as the model's are: one tensor (B, T, 3, H, D) seen three times
    whole = torch.randn(shape[0], length, 3, heads, shape[3], device=device, dtype=dtype, requires_grad=True)
    found = {}
    for kernel in kernels:
        seconds = []
        with contextlib.suppress(RuntimeError), sdpa_kernel(kernel):  # "no available kernel" is one
            for _ in range(3 + _TIMES):
                devices.synchronize(device)
                began = time.perf_counter()
                q, k, v = whole.permute(2, 0, 3, 1, 4)
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(y, whole, torch.ones_like(y))
                devices.synchronize(device)
                seconds.append(time.perf_counter() - began)
            found[kernel.name] = statistics.median(seconds[3:])
    return dict(sorted(found.items(), key=lambda item: item[1]))


@contextlib.contextmanager
def preferring(names: Sequence[str]) -> Iterator[None]:
    """In here torch takes the first of these kernels that can do a case, and has all others to fall back on."""
    order = [SDPBackend.__members__[name] for name in names]
    order += [kernel for kernel in (*KERNELS, SDPBackend.MATH) if kernel not in order]
    with sdpa_kernel(order, set_priority=True):
        yield
