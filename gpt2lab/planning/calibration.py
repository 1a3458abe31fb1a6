"""Measured speeds of devices, as `gpt2lab plan --calibrate` keeps them. Imports no torch.

calibrate.measure ──▶ Calibration ──save──▶ calibration.json in the cache directory ──find──▶ GPU and Stack for a plan
"""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt2lab import files, resources
from gpt2lab.formatting import plural
from gpt2lab.planning.speed import Constants, Efficiency, Stack
from gpt2lab.system.gpus import GPU, Positive

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Calibration(BaseModel):
    """What was measured on a device with one version of torch, in one precision."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str
    """Name as the driver or the operating system reports it."""
    threads: Annotated[int, Field(ge=0)]
    """Of a CPU; 0 on a GPU."""
    gpu: str
    """Entry of the table of GPUs; empty if it has none."""
    torch: str
    """Version."""
    precision: str
    """Of matrix products."""
    compiled: bool
    """Whether the step was compiled."""
    date: str
    """When it was measured: 2026-01-31T12:00:00Z."""
    matmul_tflops: Positive
    """Of wide matrix products, forward and backward."""
    width: NonNegative
    """Channels at which products reach half of that."""
    attention_tflops: Positive
    """Of the operations of causal attention, forward and backward."""
    bandwidth: Positive
    """Of the memory, GB/s."""
    factor: Positive
    """Speed of training steps divided by the speed that the figures above give."""
    spread: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Of the factor between the steps: the range of an estimate is factor / spread to factor * spread."""
    link: NonNegative = 0.0
    """GB/s that an all-reduce reaches between ranks; 0: not measured."""
    ranks: Annotated[int, Field(ge=1)] = 1
    """Number of ranks that measured it."""

    @property
    def key(self) -> str:
        """What a calibration holds for: a new one replaces the old one of the same key."""
        parts = (
            self.device,
            plural(self.threads, "thread") if self.threads else "",
            f"torch {self.torch}",
            self.precision,
        )
        return ", ".join(part for part in (*parts, "compiled" * self.compiled) if part)

    def apply(self, gpu: GPU, gpus: int) -> tuple[GPU, Stack]:
        """The GPU with the measured bandwidths, and the stack factor with the measured efficiencies.

        Args:
            gpu: the device as the table has it.
            gpus: number of ranks; the measured link counts for as many as measured it.
        """
        changed = {"bandwidth": self.bandwidth}
        efficiency = Efficiency(
            self.matmul_tflops * 1e12 / gpu.peak_flops(self.precision),
            self.attention_tflops * 1e12 / gpu.attention_flops(self.precision),
            self.width,
        )
        constants = Constants({gpu.generation: efficiency}, link=Stack().constants.link)
        if self.link and 1 < gpus <= self.ranks:
            constants, changed["link"] = replace(constants, link=1.0), self.link
        source = f"measured on {self.device}, {self.date[:10]}"
        return gpu.model_copy(update=changed), Stack(self.factor, self.spread, source, constants)


def torch_version() -> str:
    """The version of torch that is installed, without importing it; empty if there is none."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def file() -> Path:
    """The file that keeps the calibrations."""
    return resources.cache_folder() / "calibration.json"


def save(measured: Calibration) -> Path:
    """Keep a calibration, in place of an earlier one of the same key.

    Args:
        measured: the calibration.

    Returns:
        The file.

    Raises:
        GPT2LabError: the file cannot be written.
    """
    kept = {each.key: each for each in _read()} | {measured.key: measured}
    with files.atomic_write(file()) as temporary:
        temporary.write_text(json.dumps({key: each.model_dump() for key, each in kept.items()}, indent=2) + "\n")
    return file()


def find(
    precision: str, compiled: bool, *, gpu: str = "", device: str = "", threads: int | None = None
) -> Calibration | None:
    """Find the newest calibration with the installed version of torch.

    Args:
        precision: of matrix products.
        compiled: whether the step is compiled.
        gpu: name in the table of GPUs; empty: any.
        device: its own name; empty: any.
        threads: of a CPU; None: any number.

    Returns:
        The calibration; None if there is none.
    """
    found = [
        each
        for each in _read()
        if (each.torch, each.precision, each.compiled) == (torch_version(), precision, compiled)
        and each.gpu == (gpu or each.gpu)
        and each.device == (device or each.device)
        and each.threads == (each.threads if threads is None else threads)
    ]
    return max(found, key=lambda each: each.date, default=None)


def _read() -> list[Calibration]:
    """The calibrations of the file. A cache may be damaged: what is not valid is as if it had not been measured."""
    try:
        content = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    values = content.values() if isinstance(content, dict) else ()
    return [found for value in values if (found := _parse(value)) is not None]


def _parse(value: Any) -> Calibration | None:
    try:
        return Calibration.model_validate(value)
    except ValidationError:
        return None
