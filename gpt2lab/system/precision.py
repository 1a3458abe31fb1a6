"""In which type the matrix products run. The weights, their gradients and the optimizer are always fp32."""

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

from gpt2lab.system import device as devices


@dataclass(frozen=True)
class Precision:
    """A resolved policy: use `autocast()` around a forward pass."""

    name: Literal["fp32", "bf16"]
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 matrix products (reductions such as the loss stay fp32), or nothing for fp32."""
        if self.name == "bf16":
            return torch.autocast(self.device_type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def choose(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Resolve `system.precision`: auto is bf16 where the hardware multiplies it natively, else fp32.

    Without native instructions bf16 is emulated and slower than fp32, so auto does not take it there.
    """
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
        else:
            native = device.type == "cpu" and bool(devices.cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
        name = "bf16" if native else "fp32"
    return Precision(name, device.type)
