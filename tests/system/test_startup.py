"""Environment variables of native libraries are set before torch is imported, unless the user has set them."""

import os
import subprocess
import sys

import pytest

PROBE = (
    "import sys, os; os.getloadavg = lambda: ({load}, 0, 0); "
    "from gpt2lab.cli import main; main(['settings', '--schema']); "
    "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('PYTORCH_ALLOC_CONF'), 'torch' in sys.modules)"
)


@pytest.mark.parametrize(
    ("given", "load", "expected"),
    [
        ({}, 1.2, "2000 expandable_segments:True False"),
        ({}, 0.1, "None expandable_segments:True False"),
        ({"GOMP_SPINCOUNT": "7", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, 1.2, "7 max_split_size_mb:64 False"),
        ({"OMP_WAIT_POLICY": "active", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, 1.2, "None None False"),
    ],
)
def test_variables_are_set_unless_the_user_has_set_them(given, load, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    probe = [sys.executable, "-c", PROBE.format(load=load)]
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
