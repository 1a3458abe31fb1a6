"""Environment variables that native libraries read once, when they are loaded. No torch is imported here."""

import os


def prepare() -> None:
    """Set the variables, unless the user has. Must be called before torch is imported; later it has no effect.

    GOMP_SPINCOUNT: how often an OpenMP thread polls for the other threads of a parallel loop before it sleeps. GNU
    OpenMP's default, some milliseconds, is the fastest on idle cores. When another program needs a core, polling takes
    it from the thread that is waited for; then the count is 2,000 (docs/performance.md).

    PYTORCH_ALLOC_CONF: CUDA memory in segments that can grow, which fragments less when block sizes change.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _machine_is_busy():
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name before torch 2.9
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def _machine_is_busy() -> bool:
    """Whether the cores had work in the last minute, before this process began."""
    try:
        return os.getloadavg()[0] > 0.5
    except (OSError, AttributeError):  # not available on every system
        return False
