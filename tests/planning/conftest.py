"""A finished run for the tests of plans that start from weights."""

from tests.runs import finished_run

__all__ = ["finished_run"]
