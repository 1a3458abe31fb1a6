"""The device a process computes on, and what can be asked of it."""

import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gpt2lab.errors import GPT2LabError

# Dense bf16 peak of one card in FLOP/s, from NVIDIA's data sheets.
PEAK_FLOPS = {
    "A100": 312e12,
    "A10G": 70e12,
    "A40": 149.7e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
}


def choose(name: str, local_rank: int = 0) -> torch.device:
    """Resolve `system.device` (auto, cpu, cuda or mps) to a device; `local_rank` picks the card.

    Raises:
        GPT2LabError: this machine, or this build of torch, has no such device, or fewer cards than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise GPT2LabError("system.device cuda: torch finds no CUDA device here; use auto or cpu")
        if local_rank >= torch.cuda.device_count():
            raise GPT2LabError(
                f"process {local_rank} has no card: this machine has {torch.cuda.device_count()}; "
                "start torchrun with --nproc_per_node no larger than that"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    if name == "mps" and not torch.backends.mps.is_available():
        raise GPT2LabError("system.device mps: torch finds no Apple GPU here; use auto or cpu")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on the device is done, so that a clock read afterwards means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for later allocations, so that blocks of another size fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def peak_memory_gib(device: torch.device) -> float:
    """The most memory used so far, in GiB: allocated on the card, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that were freed, for the next step to use again (glibc; else nothing).

    By default glibc maps every block above 32 MiB afresh and unmaps it when freed, so that each micro-step's logits
    are paid for in page faults.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    _mallopt({mmap_max: 0, trim_threshold: 2**31 - 1})


def share_one_heap() -> None:
    """Let all threads take memory from one heap (glibc; else nothing), before any are started.

    By default glibc gives threads heaps of their own, eight a core, and what one leaves in pieces the others cannot
    use: a server of many threads then grows for hours (docs/results/app.md).
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    _mallopt({arena_max: 1})


def _mallopt(settings: Mapping[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in settings.items():
        mallopt(parameter, value)


def micro_batch_tokens(device: torch.device) -> int:
    """How many tokens a micro batch may have when nobody says: a guess by kind of device and memory.

    On a CPU the time a token takes falls no further beyond this (docs/performance.md), and the logits of so many take
    200 MB in bf16. On a card 16 sequences of 1,024 of GPT-2 124M are known to train in 40 GB; the guess goes by that.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory / 40e9 * 16384)
    return 4096 if device.type == "mps" else 2048


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of the card in FLOP/s, or None where no data sheet is listed (CPUs, unknown cards)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    # Whole words, and none of the variants that share a name but not a peak.
    known = [key for key in PEAK_FLOPS if re.search(rf"\b{key}\b(?! (Ti|SUPER|Laptop|Mobile))", name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def cpu_flags() -> frozenset[str]:
    """Instruction sets that the CPU names for itself (Linux; empty elsewhere)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware as it goes into environment.json."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware: dict[str, Any] = {"device": device.type, "cpu": _cpu_name(), "cores": cores}
    hardware["threads"] = torch.get_num_threads()
    if device.type == "cuda":
        hardware |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_count": torch.cuda.device_count(),
            "gpu_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        }
    return hardware
