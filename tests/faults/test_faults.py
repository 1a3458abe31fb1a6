"""The short form of every experiment; `make faults` runs the full one."""

import pytest

from tests.faults.experiments import EXPERIMENTS
from tests.faults.runs import make_data


@pytest.mark.parametrize("name", [name for name, experiment in EXPERIMENTS.items() if experiment.short])
def test_experiment(name, tmp_path):
    short = EXPERIMENTS[name].short
    assert short is not None
    outcome = short(tmp_path / "runs", make_data(tmp_path / "data"))
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert outcome.good > 0
