"""The fixtures that all tests of training share."""

from tests.runs import finished_run

__all__ = ["finished_run"]
