"""`x W^T + b` by whichever of torch's libraries is fast on this processor.

On a CPU torch hands float32 products to Intel's MKL, which holds AMD processors to half of their AVX-512. torch's other
library, oneDNN, does not, but float32 reaches it only as a convolution; and a linear layer is a convolution of one
pixel. The rearranging is a change of strides: nothing is copied. Measured on two cores of an AMD EPYC (Turin), torch
2.13: 230 GFLOP/s as a linear layer, 530 as a convolution, forward; 230 and 450 backward.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_WORTHWHILE_ROWS = 16  # below, as when one token is decoded at a time, the product is bound by reading the weights
_IMAGES = 16  # of as many fewer pixels: with one thread torch takes oneDNN only for so many


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in) to (..., out) with `weight` (out, in) and `bias` (out,); the same as `F.linear`, to rounding."""
    rows = x.numel() // x.shape[-1]
    if not (x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and rows >= _WORTHWHILE_ROWS):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not _mkl_is_slow():
        return F.linear(x, weight, bias)
    n = _IMAGES if rows % _IMAGES == 0 else 1
    pixels = x.reshape(n, rows // n, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (n, in, rows/n, 1), channels last
    y = F.conv2d(pixels, weight[:, :, None, None], bias)  # (n, out, rows/n, 1), channels last
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


@functools.cache
def _mkl_is_slow() -> bool:
    """An AMD processor with AVX-512, and a torch that has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text() and (
            torch.backends.cpu.get_cpu_capability() == "AVX512"
        )
    except OSError:
        return False
