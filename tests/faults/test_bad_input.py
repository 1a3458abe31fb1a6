"""Bad input: one line that names the key or file, exit status 2, no traceback, no file changed."""

import pytest

from tests.faults import bad_input
from tests.faults.bad_input_cases import CASES, REAL_COMMANDS


@pytest.fixture(scope="session")
def good_state(tmp_path_factory):
    """A folder with shards, a recipe and a run. Do not write to it."""
    return bad_input.make_good_state(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_changes_nothing(case, good_state, tmp_path):
    assert bad_input.find_problems(case, good_state, tmp_path / "case") == []


@pytest.mark.parametrize("name", REAL_COMMANDS[:3])
def test_bad_input_of_a_real_command(name, good_state, tmp_path):
    assert bad_input.find_problems(CASES[name], good_state, tmp_path / "case", real_command=True) == []
