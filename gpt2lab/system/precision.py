"""The dtype of matrix products. Weights, gradients and the optimizer are always fp32."""

import contextlib
import logging
from dataclasses import dataclass
from typing import Literal

import torch

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import device as devices

logger = logging.getLogger(__name__)

Name = Literal["fp32", "tf32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A precision that this device has: `autocast()` is for forward passes, `scaler()` for backward passes.

    Args:
        name: fp32, tf32, bf16 or fp16.
        device_type: such as `cpu`.
    """

    name: Name
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the operands of matrix products; with tf32 they are float32."""
        return _AUTOCAST.get(self.name, torch.float32)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Context of bf16 or fp16 matrix products (reductions such as the loss stay fp32); empty for fp32 and tf32."""
        if self.name in _AUTOCAST:
            return torch.autocast(self.device_type, dtype=_AUTOCAST[self.name])
        return contextlib.nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """A scaler of the loss, so that small fp16 gradients do not underflow; disabled for other precisions."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def choose(name: Literal["auto"] | Name, device: torch.device) -> Precision:
    """Resolve `system.precision`.

    On CUDA this also sets whether fp32 products may use tf32, which they do unless the precision is fp32.

    Args:
        name: a precision; auto is bf16 where the hardware has instructions for it, fp16 on other CUDA devices, and else
            fp32, which is faster there.
        device: where the products run.

    Raises:
        GPT2LabError: the hardware does not have this precision.
    """
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        native = device.type == "cpu" and bool(devices.cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
        name = "bf16" if native or ampere else "fp16" if device.type == "cuda" else "fp32"
        if name == "fp16":
            logger.info(
                f"precision auto is fp16, in training with loss scaling: {torch.cuda.get_device_name(device)} is older "
                "than the Ampere generation and has no bf16"
            )
    if name == "tf32" and not ampere:
        raise GPT2LabError("system.precision tf32 needs a CUDA device of the Ampere generation or later; use auto")
    if name == "fp16" and device.type == "mps":
        raise GPT2LabError("system.precision fp16 is for CUDA devices (and, slowly, CPUs); use auto or fp32")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    return Precision(name, device.type)
