"""Errors with a meaning for the user, and their exit statuses."""

import difflib
from collections.abc import Iterable


class GPT2LabError(ValueError):
    """An error that the user can correct: one line that names the file or the key, and what to do.

    The command line prints the message without a traceback and exits with `status`. Any other exception is a bug and
    keeps its traceback.
    """

    status = 2

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # one line, even if it contains a library's message


class LostRankError(GPT2LabError):
    """Another process of a distributed run is gone; this process has no error of its own."""

    status = 3


class RunStoppedError(Exception):
    """A signal stopped the run after it was saved. The command line exits with `status`, 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.status = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    Args:
        name: the unknown name.
        known: names that exist.

    Returns:
        `; did you mean X?` with the closest known name; empty if none is close.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
