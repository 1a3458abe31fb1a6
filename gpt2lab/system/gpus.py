"""The table of GPUs (gpus.yaml, and the user's file): peak FLOP/s by precision, memory, bandwidths and price.

The planner finds a GPU by the name that the user gives; training and `bench`, for MFU, by that of the driver.
Imports no torch.
"""

import datetime
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from gpt2lab.config import yaml_format
from gpt2lab.errors import GPT2LabError, did_you_mean

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8"]

_TABLE = Path(__file__).with_name("gpus.yaml")


class GPU(BaseModel):
    """One kind of GPU, in the units of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """As in the table."""
    generation: str
    """Architecture, by which the efficiencies are chosen: ampere, hopper, …"""
    memory_gib: Annotated[float, Field(ge=0)]
    """Total memory in GiB as the driver reports it; 0: the main memory of this machine."""
    tflops: Mapping[Precision, Positive]
    """Dense peak in TFLOP/s by precision."""
    bandwidth: Positive
    """Of the memory, GB/s."""
    link: Positive
    """Between two GPUs of a machine, one direction, GB/s."""
    network: Positive
    """Of all network adapters of a machine together, one direction, GB/s."""
    per_machine: PositiveInt = 8
    """GPUs of a machine."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """US dollars for one GPU."""
    price_date: str | int | datetime.date | None = None
    """When the price was read."""
    price_source: str | None = None
    """Where the price was read."""
    aliases: tuple[str, ...] = ()
    """Other names."""
    reported: tuple[str, ...] = ()
    """Names by which torch reports it, without the vendor."""
    source: str | None = None
    """Where peaks, memory and bandwidth are from."""

    @property
    def is_cpu(self) -> bool:
        """Whether this stands for a machine without a GPU."""
        return self.generation == "cpu"

    def peak_flops(self, precision: str) -> float:
        """Peak FLOP/s of matrix products.

        Args:
            precision: fp32, tf32, bf16, fp16 or fp8.

        Raises:
            GPT2LabError: the table has no peak for it.
        """
        peaks = {str(name): peak for name, peak in self.tflops.items()}
        if precision not in peaks:
            raise GPT2LabError(f"{self.name} has no peak for {precision} in the table (it has {', '.join(peaks)})")
        return peaks[precision] * 1e12

    def mixed_precision_flops(self) -> float:
        """Peak FLOP/s of the precision that `system.precision` auto chooses, to which MFU relates."""
        return self.peak_flops(self.choose_precision("auto"))

    def attention_flops(self, precision: str) -> float:
        """Peak FLOP/s of attention, which is computed in bf16 where the other products are in fp8."""
        return self.peak_flops("bf16" if precision == "fp8" else precision)

    def choose_precision(self, name: str) -> str:
        """Resolve `system.precision` as training does: auto is bf16 where the GPU has it, else fp16, else fp32.

        Args:
            name: the setting.
        """
        return name if name != "auto" else next(each for each in ("bf16", "fp16", "fp32") if each in self.tflops)


def load(extra: str | Path | None = None) -> dict[str, GPU]:
    """Read the table.

    Args:
        extra: a YAML file of the same form, whose entries replace those of the table.

    Returns:
        The GPUs by name and alias.

    Raises:
        GPT2LabError: a file cannot be read, or an entry is not valid.
    """
    table: dict[str, GPU] = {}
    for file in [_TABLE, *([Path(extra)] if extra else [])]:
        for name, entry in yaml_format.read(file).items():
            gpu = _parse(file, str(name), entry)
            table |= {_normalize(known): gpu for known in (gpu.name, *gpu.aliases)}
    return table


def find(name: str, table: Mapping[str, GPU]) -> GPU:
    """Find a GPU by name or alias; case, `_` and spaces do not matter.

    Args:
        name: such as `a100-40gb`.
        table: as returned by `load`.

    Raises:
        GPT2LabError: the table does not have it.
    """
    if (gpu := table.get(_normalize(name))) is not None:
        return gpu
    names = sorted({gpu.name for gpu in table.values()})
    guess = did_you_mean(_normalize(name), table)
    advice = guess or f" (it has {', '.join(names)})"
    raise GPT2LabError(f"--gpu {name}: not in the table{advice}; add yours with --gpus-file of gpt2lab plan")


# Words in the name of a GPU that is another one than the GPU without the word, or a part of one.
_VARIANTS = re.compile(r"(?<!\w)(Ti|SUPER|Laptop|Mobile|Max-Q|MIG|NVL|PCIE|HBM2e|Ada|D|LE)(?!\w)", re.IGNORECASE)


@functools.cache
def recognize(device_name: str) -> GPU | None:
    """Find a GPU of the shipped table by the name that the driver reports.

    Args:
        device_name: such as `NVIDIA A100-SXM4-80GB`, from `torch.cuda.get_device_name`.

    Returns:
        The GPU; None if the table does not have it, or has only another variant of it.
    """
    best, rest = None, device_name
    for gpu in {gpu.name: gpu for gpu in load().values()}.values():
        for name in gpu.reported:
            found = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", device_name, re.IGNORECASE)
            if found and len(device_name) - len(name) < len(rest):
                best, rest = gpu, device_name[: found.start()] + device_name[found.end() :]
    return None if _VARIANTS.search(rest) else best


def _normalize(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _parse(file: Path, name: str, entry: Any) -> GPU:
    if not isinstance(entry, Mapping):
        raise GPT2LabError(f"{file}: {name} must hold generation, memory_gib, tflops, bandwidth, link and network")
    try:
        return GPU.model_validate({"name": name, **entry})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise GPT2LabError(f"{file}: {name}: {key}: {first['msg']}") from None
