"""The processor as the operating system describes it. Imports no torch."""

import platform
from pathlib import Path


def info() -> dict[str, str]:
    """The entries of /proc/cpuinfo for the first core (Linux; empty elsewhere)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def name() -> str:
    """The name of the processor, such as `AMD EPYC 9V74 80-Core Processor`."""
    return info().get("model name") or platform.processor() or platform.machine()
