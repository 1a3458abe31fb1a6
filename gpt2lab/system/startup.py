"""Environment variables that libraries below torch read once, when they are loaded. No torch in here."""

import os


def prepare() -> None:
    """Set them, unless the user has. To be called before torch is imported; afterwards it does nothing.

    GOMP_SPINCOUNT: how often a thread that waits for the others of a parallel loop looks before it goes to sleep. GNU
    OpenMP's own answer, some milliseconds' worth, is the fastest where the cores are free. Where another program wants
    one too, the waiting takes it from the very thread that is waited for; so then it is 2,000 (docs/performance.md).

    PYTORCH_ALLOC_CONF: CUDA memory in segments that can grow, so that blocks of changing size leave fewer holes.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _others_compute():
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name before torch 2.9
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def _others_compute() -> bool:
    """Whether the cores had work in the last minute, before ours has begun."""
    try:
        return os.getloadavg()[0] > 0.5
    except (OSError, AttributeError):  # not every system counts
        return False
