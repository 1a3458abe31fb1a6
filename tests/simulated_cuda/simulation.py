"""A GPU that is not there: fake CUDA tensors whose memory is counted, and the host's waits for them.

Tensors have shapes, dtypes and a device, but no values. `SimulatedGPU` sees every operation below autograd. It counts
the bytes of live storages as torch's allocator does, raises torch.OutOfMemoryError above the capacity, and counts how
often the host waits for the device. Numbers that the host reads are `SimulatedGPU.scalar`.

Needs the device guard of `device_guard.cpp` in the process (`conftest.py`).
"""

import contextlib
import math
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
_BLOCK = 512  # bytes; torch's allocator rounds up to it
_aten = torch.ops.aten


class SimulatedGPU(TorchDispatchMode):
    """One GPU.

    Args:
        gib: its free memory.
        capability: of the hardware, such as (9, 0) for Hopper.
        name: as `torch.cuda.get_device_name` returns it.
    """

    def __init__(
        self, gib: float = math.inf, capability: tuple[int, int] = (9, 0), name: str = "NVIDIA H100 80GB HBM3"
    ):
        super().__init__()
        self.capacity, self.capability, self.name = gib * GIB, capability, name
        self.allocated = self.peak = 0
        self.scalar = 1.0  # the value of every number that the host reads
        self.waits: list[str] = []  # operations by which the host waited for the device
        self.operations: list[str] = []  # on the device, while `records_operations`
        self.records_operations = False
        self._storages: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default:
            if args[0].device.type != "cuda" and not isinstance(args[0], torch._subclasses.FakeTensor):
                return func(*args, **kwargs)
            self.wait("item")
            return self.scalar
        result = func(*args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if self.records_operations and any(t.device.type == "cuda" for t in (*inputs, *outputs)):
            self.operations.append(str(func))
        for tensor in outputs:
            if tensor.device.type == "cuda":
                self._count(tensor)
        leaves_device = any(t.device.type == "cuda" for t in inputs) and any(t.device.type == "cpu" for t in outputs)
        if leaves_device and func in (_aten._to_copy.default, _aten.copy_.default):
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if not asynchronous:
                self.wait(str(func))
        return result

    def wait(self, operation: str) -> None:
        """Count a synchronization of the host with the device; one right after another costs nothing."""
        if self.records_operations:
            self.operations.append(f"wait: {operation}")
        self.waits.append(operation)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        if self.allocated + size > self.capacity:
            raise torch.OutOfMemoryError(f"simulated: {size / GIB:.2f} GiB more than {self.allocated / GIB:.2f}")
        self._storages[storage] = size
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.allocated -= size

    def reset_peak(self) -> None:
        """Begin to measure the peak anew, as `torch.cuda.reset_peak_memory_stats` does."""
        self.peak = self.allocated

    def answers(self) -> dict[str, Any]:
        """Functions of `torch.cuda`, by name."""

        def total() -> int:
            return int(min(self.capacity, 2**60))

        def properties(device: object = None) -> SimpleNamespace:
            major, minor = self.capability
            return SimpleNamespace(
                name=self.name, total_memory=total(), major=major, minor=minor, multi_processor_count=132
            )

        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: self.wait("synchronize"),
            "empty_cache": lambda: None,
            "get_device_capability": lambda device=None: self.capability,
            "get_device_name": lambda device=None: self.name,
            "get_device_properties": properties,
            "memory_allocated": lambda device=None: self.allocated,
            "memory_reserved": lambda device=None: self.allocated,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: self.reset_peak(),
            "mem_get_info": lambda device=None: (int(total() - self.allocated), total()),
            "is_bf16_supported": lambda *args, **kwargs: self.capability >= (8, 0),
            "is_current_stream_capturing": lambda: False,
            "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: None,
            "_lazy_init": lambda: None,
        }


def _attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """Attention by the kernel that a GPU would use: flash in 16 bits without a mask, else the memory-efficient one."""
    if q.dtype.itemsize == 2 and attn_mask is None:
        return _aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]  # type: ignore[no-any-return]
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -math.inf)
        bias = bias.expand(*q.shape[:3], k.shape[2])
    kernel = _aten._scaled_dot_product_efficient_attention
    return kernel(q, k, v, bias, q.requires_grad, dropout_p, is_causal)[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def simulated(gpu: SimulatedGPU, *, fake: bool = True) -> Iterator[SimulatedGPU]:
    """Context in which torch has this GPU.

    Args:
        gpu: the GPU.
        fake: tensors are fake and counted; False: only `torch.cuda` answers, and attention has a GPU's kernels.
    """
    with contextlib.ExitStack() as stack:
        for name, function in gpu.answers().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch.accelerator, "synchronize", gpu.answers()["synchronize"]))
        never = mock.Mock(return_value=False)
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", never))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attend))
        if fake:
            # Otherwise a fake tensor asks whether the build has CUDA.
            stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(gpu)
        yield gpu
