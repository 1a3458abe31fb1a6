"""Builds `device_guard.cpp` for this torch. A process loads it with LD_PRELOAD, before torch."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "device_guard.cpp"


class NoCompilerError(Exception):
    """The device guard cannot be built here."""


def build(folder: Path) -> Path:
    """Compile the device guard, unless that was done before.

    Args:
        folder: of the library.

    Returns:
        The library.

    Raises:
        NoCompilerError: there is no C++ compiler, or it fails.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoCompilerError("no compiler for the simulated GPU's device guard")
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode() + torch.__file__.encode()).hexdigest()[:16]
    library = folder / f"device_guard_{key}.so"
    if not library.exists():
        home = Path(torch.__file__).parent
        temporary = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib"]
        command = [compiler, *flags, str(SOURCE), "-o", str(temporary), "-lc10", "-ltorch_cpu"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            reason = built.stderr.strip()[-200:]
            raise NoCompilerError(f"no compiler that builds the simulated GPU's device guard: {reason}")
        temporary.replace(library)
    return library
