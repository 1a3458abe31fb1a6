"""The device that a process computes on: selection, memory, peak FLOP/s and description."""

import contextlib
import ctypes
import os
import resource
import sys
from typing import Any

import torch

from gpt2lab.errors import GPT2LabError
from gpt2lab.system import cpu, gpus, nvidia


def choose(name: str, local_rank: int = 0) -> torch.device:
    """Resolve `system.device` to a device.

    Args:
        name: auto, cpu, cuda or mps.
        local_rank: index of the GPU.

    Raises:
        GPT2LabError: this machine, or this build of torch, has no such device, or fewer GPUs than ranks; or the name is
            auto and there is an NVIDIA GPU that torch cannot use.
    """
    if name in ("auto", "cuda") and not torch.cuda.is_available() and (reason := nvidia.explain_unusable_gpu()):
        raise GPT2LabError(reason)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise GPT2LabError("system.device cuda: torch finds no CUDA device here; use auto or cpu")
        if local_rank >= torch.cuda.device_count():
            raise GPT2LabError(
                f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}; "
                "start torchrun with --nproc_per_node no larger than that"
            )
        if torch.version.cuda and (reason := nvidia.explain_unsupported_gpu(local_rank)):
            raise GPT2LabError(reason)
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    if name == "mps" and not torch.backends.mps.is_available():
        raise GPT2LabError("system.device mps: torch finds no Apple GPU here; use auto or cpu")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Free the blocks that torch's allocator caches, so that blocks of other sizes fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure the peak memory of a GPU anew. The peak of a process on a CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU since `reset_peak_memory`, or resident in this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks that were freed; other C libraries are not changed.

    By default glibc maps every block above 32 MiB anew and unmaps it when it is freed, which costs page faults for the
    logits of each micro-step.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    _mallopt(mmap_max, 0)
    _mallopt(trim_threshold, 2**31 - 1)


def share_one_heap() -> None:
    """Make glibc allocate for all threads from one heap; to be called before threads are started.

    By default glibc has up to eight heaps a core, and free memory of one is not used by the others: a server with many
    threads then grows for hours (docs/results/app.md).
    """
    arena_max = -8  # M_ARENA_MAX of malloc.h
    _mallopt(arena_max, 1)


def _mallopt(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(parameter, value)


def micro_batch_tokens(device: torch.device) -> int:
    """Default number of tokens in a micro batch, by device type and memory.

    On a CPU more tokens are not faster (docs/performance.md), and the logits of so many take 200 MB in bf16. GPT-2 124M
    is known to train with 16 sequences of 1,024 in 40 GB of GPU memory; other sizes are in proportion to it.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory / 40e9 * 16384)
    return 4096 if device.type == "mps" else 2048


def peak_flops(device: torch.device) -> float | None:
    """Dense peak of a GPU in FLOP/s, in bf16, or in fp16 where it has no bf16; None for CPUs and unknown GPUs."""
    gpu = gpus.recognize(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.mixed_precision_flops() if gpu else None


def cpu_flags() -> frozenset[str]:
    """Names of the instruction sets of the CPU (Linux; empty elsewhere)."""
    info = cpu.info()
    return frozenset(info.get("flags", info.get("Features", "")).split())


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware, as in environment.json."""
    hardware: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu.name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        hardware |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_count": torch.cuda.device_count(),
            "gpu_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        }
    return hardware
