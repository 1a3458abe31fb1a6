"""What environment.json of a run records: versions, hardware, commit and command."""

import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2lab import __version__
from gpt2lab.system.device import describe
from gpt2lab.system.distributed import DistContext


def collect(dist: DistContext) -> dict[str, Any]:
    """Collect versions, hardware, commit and command.

    Args:
        dist: the ranks.
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpt2lab": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: version(package) for package in ("torch", "numpy", "safetensors", "tiktoken")},
        "world_size": dist.world_size,
        "hardware": describe(dist.device),
        "command": " ".join(sys.argv),
    }


def commit() -> str | None:
    """Return the commit of the checkout the package runs from, with `-dirty` if files differ; None outside one."""
    checkout = Path(__file__).resolve().parents[2]  # named, since the package may be installed into another checkout
    command = ["git", f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}", "describe"]
    try:
        options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
