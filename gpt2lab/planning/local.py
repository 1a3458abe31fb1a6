"""The device of this process as an entry of the table of GPUs, with what was measured on it."""

import time
from dataclasses import dataclass, replace

import torch

from gpt2lab.model import ops
from gpt2lab.planning import calibration
from gpt2lab.planning.calibration import Calibration
from gpt2lab.planning.memory import GIB
from gpt2lab.planning.speed import SHIPPED, Stack, default_stack
from gpt2lab.system import cpu, gpus
from gpt2lab.system.gpus import GPU

_PROBE = (512, 768, 3072)  # rows, channels in and out of the product that is timed on a CPU: 2.4e9 operations


@dataclass(frozen=True)
class LocalDevice:
    """A device of this machine."""

    name: str  # as the driver or the operating system reports it
    threads: int  # of a CPU; 0 on a GPU
    gpu: GPU | None  # without a price; None: not in the table

    def find_calibration(self, precision: str, compiled: bool) -> Calibration | None:
        """What `gpt2lab plan --calibrate` measured on this device.

        Args:
            precision: of matrix products.
            compiled: whether the step is compiled.
        """
        return calibration.find(precision, compiled, device=self.name, threads=self.threads)

    def resolve(self, precision: str, compiled: bool, gpus: int) -> tuple[GPU, Stack] | None:
        """The GPU and the stack factor for a plan.

        Args:
            precision: of matrix products.
            compiled: whether the step is compiled.
            gpus: number of ranks.

        Returns:
            Both, as measured on this device, or else those of the table, for a CPU with the speed of a matrix product,
            measured now; None if it was not measured and the table does not have it in this precision.
        """
        measured = self.find_calibration(precision, compiled)
        if self.gpu is None or precision not in self.gpu.tflops:
            return None
        if measured:
            return measured.apply(self.gpu, gpus)
        stack = default_stack(self.gpu)
        if not self.gpu.is_cpu:
            return self.gpu, stack
        peak = _probe(precision) / SHIPPED.of("cpu").matmul / 1e12
        gpu = self.gpu.model_copy(update={"tflops": {precision: peak}})
        return gpu, replace(stack, source="a matrix product, measured at the start")


def describe(device: torch.device) -> LocalDevice:
    """Describe the device of this process.

    Args:
        device: as chosen by `system.device`.
    """
    if device.type == "cpu":
        return LocalDevice(cpu.name(), torch.get_num_threads(), gpus.load()["cpu"])
    if device.type != "cuda":
        return LocalDevice(device.type, 0, None)
    name = torch.cuda.get_device_name(device)
    memory = torch.cuda.get_device_properties(device).total_memory / GIB
    if (known := gpus.recognize(name)) is None:
        return LocalDevice(name, 0, None)
    return LocalDevice(name, 0, known.model_copy(update={"memory_gib": memory, "price_per_hour": None}))


@torch.no_grad()
def _probe(precision: str) -> float:
    """FLOP/s of one matrix product on this CPU: by instructions and cores, CPUs differ up to tenfold."""
    rows, n_in, n_out = _PROBE
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, weight = torch.ones(rows, n_in, dtype=dtype), torch.ones(n_out, n_in, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first one starts the threads
        start = time.perf_counter()
        ops.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return 2 * rows * n_in * n_out / min(seconds)
