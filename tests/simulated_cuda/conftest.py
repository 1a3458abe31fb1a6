"""Runs functions in a process that has a simulated GPU."""

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from tests.simulated_cuda import device_guard


@pytest.fixture(scope="session")
def on_gpu(pytestconfig: pytest.Config) -> Iterator[Callable[..., Any]]:
    """Call a function of a test module in a process with the device guard, which has to be loaded before torch."""
    if sys.platform != "linux":
        pytest.skip("no Linux: the device guard is loaded with LD_PRELOAD")
    if torch.cuda.is_available():
        pytest.skip("no GPU may be present: its own device guard is registered")
    try:
        library = device_guard.build(pytestconfig.cache.mkdir("simulated_cuda"))
    except device_guard.NoCompilerError as error:
        pytest.skip(str(error))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        with mock.patch.dict(os.environ, {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}):
            pool.submit(os.getpid).result()  # starts the process
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()
