"""Why torch cannot use an NVIDIA GPU: it was built without CUDA, or for a newer driver or newer GPUs."""

import os
import re
from pathlib import Path

import torch

DRIVER_VERSION = Path("/proc/driver/nvidia/version")  # of the kernel's module, also in a container without a GPU
CONTROL_DEVICE = Path("/dev/nvidiactl")  # present where the GPU can be opened
# The oldest driver of each CUDA release family (docs.nvidia.com/deploy/cuda-compatibility, "minor version
# compatibility").
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
OLDER_WHEELS = "https://download.pytorch.org/whl/cu126"  # CUDA 12.6; published for torch 2.11 to 2.14


def explain_unusable_gpu() -> str | None:
    """Explain why torch does not see the GPU of this machine, and what to do.

    Returns:
        One line; None if there is no NVIDIA driver with a device here, or CUDA_VISIBLE_DEVICES hides the GPUs.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None
    try:
        text = DRIVER_VERSION.read_text() if CONTROL_DEVICE.exists() else ""
    except OSError:
        return None
    found = re.search(r"\b(\d{3,})\.\d+(\.\d+)?\b", text)
    if found is None:
        return None
    driver, major = found[0], int(found[1])
    cuda = torch.version.cuda
    built = f"torch {torch.__version__} (built for CUDA {cuda})" if cuda else f"torch {torch.__version__} (a CPU build)"
    insist = "to use the CPU all the same: --system.device cpu (in other commands --device cpu)"
    needed = OLDEST_DRIVER.get(int(cuda.partition(".")[0]), 0) if cuda else 0
    if major < needed:
        other = f"a newer driver, or a torch for this one: pip install torch --index-url {OLDER_WHEELS}"
        other = other if major >= OLDEST_DRIVER[12] else "a newer driver"
        return (
            f"{built} needs NVIDIA driver {needed} or newer, and this machine has {driver}; install {other}; {insist}"
        )
    if not cuda:
        index = f" --index-url {OLDER_WHEELS}" if major < OLDEST_DRIVER[13] else ""
        return (
            f"{built} cannot use the NVIDIA GPU of this machine (driver {driver}); install a CUDA build: "
            f"pip install --force-reinstall torch{index}; {insist}"
        )
    return f"{built} cannot use the NVIDIA GPU of this machine (driver {driver}); nvidia-smi may tell why; {insist}"


def explain_unsupported_gpu(index: int) -> str | None:
    """Explain that torch has no kernels for a GPU that it sees, and what to do.

    Args:
        index: of the GPU.

    Returns:
        One line; None if the GPU is not older than all GPUs that torch was built for.
    """
    built_for = [int(number) for name in torch.cuda.get_arch_list() for number in re.findall(r"^sm_(\d+)", name)]
    major, minor = torch.cuda.get_device_capability(index)
    if 10 * major + minor >= min(built_for, default=0):
        return None
    oldest = min(built_for)
    return (
        f"torch {torch.__version__} has no kernels for this GPU (compute capability {major}.{minor}; it needs "
        f"{oldest // 10}.{oldest % 10} or above); install another build: "
        f"pip install --force-reinstall torch --index-url {OLDER_WHEELS}; to use the CPU: --system.device cpu"
    )
