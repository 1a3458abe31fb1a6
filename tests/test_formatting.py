"""Formatting of numbers."""

import pytest

from gpt2lab import formatting


@pytest.mark.parametrize(
    ("number", "word", "text"),
    [(0, "step", "0 steps"), (1, "step", "1 step"), (2000, "step", "2,000 steps"), (2, "process", "2 processes")],
)
def test_one_of_something_is_singular(number, word, text):
    assert formatting.plural(number, word) == text
