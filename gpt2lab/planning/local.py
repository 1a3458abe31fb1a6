"""The device of this process as an entry of the table of GPUs, with what was measured on it."""

from dataclasses import dataclass

import torch

from gpt2lab.planning import calibration
from gpt2lab.planning.calibration import Calibration
from gpt2lab.planning.memory import GIB
from gpt2lab.planning.speed import Stack, default_stack
from gpt2lab.system import cpu, gpus
from gpt2lab.system.gpus import GPU

_TABLE_CORES = 2  # of the entry `cpu` of the table


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
            Both, as measured on this device, or else those of the table; None if it was not measured and the table does
            not have it in this precision.
        """
        measured = self.find_calibration(precision, compiled)
        if self.gpu is None or precision not in self.gpu.tflops:
            return None
        return measured.apply(self.gpu, gpus) if measured else (self.gpu, default_stack(self.gpu))


def describe(device: torch.device) -> LocalDevice:
    """Describe the device of this process.

    Args:
        device: as chosen by `system.device`.
    """
    if device.type == "cpu":
        threads, entry = torch.get_num_threads(), gpus.load()["cpu"]
        scaled = {name: peak * threads / _TABLE_CORES for name, peak in entry.tflops.items()}
        return LocalDevice(cpu.name(), threads, entry.model_copy(update={"tflops": scaled}))
    if device.type != "cuda":
        return LocalDevice(device.type, 0, None)
    name = torch.cuda.get_device_name(device)
    memory = torch.cuda.get_device_properties(device).total_memory / GIB
    if (known := gpus.recognize(name)) is None:
        return LocalDevice(name, 0, None)
    return LocalDevice(name, 0, known.model_copy(update={"memory_gib": memory, "price_per_hour": None}))
