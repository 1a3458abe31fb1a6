"""Errors with a meaning for the user, and their exit statuses."""

import difflib
import os
import re
from collections.abc import Iterable

# The end of an error message about text of the command line that is not valid UTF-8.
UTF8_ADVICE = "; type it in a UTF-8 locale (LC_ALL=C.UTF-8)"


class GPT2LabError(ValueError):
    """An error that the user can correct: one line that names the file or the key, and what to do.

    The command line prints the message without a traceback and exits with `status`. Any other exception is a bug and
    keeps its traceback.

    Attributes:
        details: lines that the command line prints below the message, such as a corrected file.
        same_on_rank_0: whether rank 0 has the same error and reports it; None if that is not known.
    """

    status = 2
    same_on_rank_0: bool | None = None

    def __init__(self, message: str, details: str = ""):
        self.details = details
        super().__init__(" ".join(message.split()))  # one line, even if it contains a library's message


class UnreadableError(GPT2LabError):
    """The system refuses to read something, for its mode or an error of the disk: that does not mean it is damaged."""


class LostRankError(GPT2LabError):
    """Another process of a distributed run is gone; this process has no error of its own."""

    status = 3


class RunStoppedError(Exception):
    """A signal stopped the run after it was saved. The command line exits with `status`, 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.status = 128 + signal_number


def describe(error: GPT2LabError | OSError) -> str:
    """The message about an error, without Python's `[Errno 13]`.

    Args:
        error: of gpt2lab, or of the system.
    """
    if not isinstance(error, OSError) or not isinstance(error.filename, str | os.PathLike) or error.strerror is None:
        return str(error)
    advice = "; check its owner and mode" if isinstance(error, PermissionError) else ""
    return f"cannot access {error.filename}: {error.strerror}{advice}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    Args:
        name: the unknown name.
        known: names that exist.

    Returns:
        `; did you mean X?` with the most similar known name; empty if none is similar.
    """
    guess = find_similar(name, known)
    return f"; did you mean {guess}?" if guess else ""


def find_similar(name: str, known: Iterable[str]) -> str | None:
    """Find the name that was probably meant: by its spelling, or because one name has all words of the other.

    Args:
        name: the unknown name.
        known: names that exist.

    Returns:
        The most similar known name (the first of several); None if none is similar.
    """
    scores = {candidate: _similarity(name, candidate) for candidate in known}
    best = max(scores, key=lambda candidate: scores[candidate], default=None)
    return best if best is not None and scores[best] >= 0.6 else None


def _similarity(name: str, candidate: str) -> float:
    """From 0 to 1: the share of equal letters; at least 0.75 for `warmup` and `warmup_steps`, or `out` and `output`."""
    words, candidate_words = (re.findall(r"[a-z0-9]+", text.lower()) for text in (name, candidate))
    ratio = difflib.SequenceMatcher(None, " ".join(words), " ".join(candidate_words)).ratio()
    shorter, longer = sorted((words, candidate_words), key=lambda these: len(" ".join(these)))
    has_all_words = bool(shorter) and all(any(other.startswith(word) for other in longer) for word in shorter)
    return max(ratio, 0.75 + ratio / 8) if has_all_words and len(" ".join(shorter)) > 2 else ratio
