"""The short form of every experiment. `make faults` runs the full form."""

import sys

import pytest

from tests.faults.experiments import EXPERIMENTS
from tests.faults.runs import make_data

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no Linux: the experiments read /proc")
QUICK = ("gradients", "canaries")  # the others kill processes, or a quick test elsewhere has the same property


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, experiment in EXPERIMENTS.items()
        if experiment.short
    ],
)
def test_experiment(name, tmp_path):
    short = EXPERIMENTS[name].short
    assert short is not None
    outcome = short(tmp_path / "runs", make_data(tmp_path / "data"))
    assert outcome is not None
    assert not outcome.problems, "\n".join(outcome.problems)
    assert outcome.passed > 0
