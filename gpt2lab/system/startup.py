"""Environment variables that libraries below torch read once, when they are loaded. No torch in here."""

import os


def prepare() -> None:
    """Set them, unless the user has. To be called before torch is imported; afterwards it does nothing.

    GOMP_SPINCOUNT: how often a thread that waits for the others of a parallel loop looks before it goes to sleep. GNU
    OpenMP's own answer, some milliseconds' worth, takes a core away from the very thread that is waited for as soon as
    another program wants one too. 2,000 is enough where the cores are free (docs/performance.md).

    PYTORCH_ALLOC_CONF: CUDA memory in segments that can grow, so that blocks of changing size leave fewer holes.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name before torch 2.9
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
