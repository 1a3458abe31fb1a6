"""Runs functions in a process that has a simulated GPU."""

import concurrent.futures
import hashlib
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

SOURCE = Path(__file__).parent / "device_guard.cpp"


def _build_device_guard(folder: Path) -> Path:
    """Compile `device_guard.cpp` for this torch, unless that was done before."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no compiler for the simulated GPU's device guard")
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode() + torch.__file__.encode()).hexdigest()[:16]
    library = folder / f"device_guard_{key}.so"
    if not library.exists():
        home = Path(torch.__file__).parent
        temporary = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib"]
        command = [compiler, *flags, str(SOURCE), "-o", str(temporary), "-lc10", "-ltorch_cpu"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            pytest.skip(f"no compiler that builds the simulated GPU's device guard: {built.stderr.strip()[-200:]}")
        temporary.replace(library)
    return library


@pytest.fixture(scope="session")
def on_gpu(pytestconfig: pytest.Config) -> Iterator[Callable[..., Any]]:
    """Call a function of a test module in a process with the device guard, which has to be loaded before torch."""
    if torch.cuda.is_available():
        pytest.skip("no GPU may be present: its own device guard is registered")
    library = _build_device_guard(pytestconfig.cache.mkdir("simulated_cuda"))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        with mock.patch.dict(os.environ, {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}):
            pool.submit(os.getpid).result()  # starts the process
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
