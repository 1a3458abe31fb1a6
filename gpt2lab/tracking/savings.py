"""How much sooner one run reaches the final loss of another, in tokens and in time."""

from typing import NamedTuple

import numpy as np

from gpt2lab.tracking.records import Run


class Savings(NamedTuple):
    """A run that reaches the final validation loss of another one with fewer tokens.

    Attributes:
        loss: the final validation loss of the other run, in nats.
        tokens: how many times fewer tokens it takes; at least 1.
        time: how many times less training time, without evaluations; None if a step has no time in the records.
    """

    loss: float
    tokens: float
    time: float | None


def compare(run: Run, other: Run) -> Savings | None:
    """Find where a run reaches the final validation loss of another one.

    Between two evaluations the loss is taken to fall linearly.

    Args:
        run: the run that may be better.
        other: the run whose final loss is the mark.

    Returns:
        The savings; None if the runs were trained on different text or tokens, if one has no evaluations, or if `run`
        does not reach the loss with fewer tokens.
    """
    curve, others = run.curve("val/loss"), other.curve("val/loss")
    same_text = run.source == other.source and run.settings.model.vocab_size == other.settings.model.vocab_size
    if not same_text or len(others.steps) < 2 or not (curve.values <= others.values[-1]).any():
        return None
    mark, last = float(others.values[-1]), float(others.steps[-1])
    first = int(np.argmax(curve.values <= mark))
    if first == 0:
        return None
    falls = np.interp(mark, curve.values[[first, first - 1]], curve.steps[[first, first - 1]])
    batch, others_batch = run.settings.train.total_batch_size, other.settings.train.total_batch_size
    tokens = last * others_batch / (float(falls) * batch)
    if tokens < 1:
        return None
    seconds, others_seconds = training_seconds(run, float(falls)), training_seconds(other, last)
    return Savings(mark, tokens, others_seconds / seconds if seconds and others_seconds else None)


def training_seconds(run: Run, step: float) -> float | None:
    """Return the time that a run took to train up to a step, without evaluations and checkpoints.

    Args:
        run: the run.
        step: counted from 1; a fraction counts proportionally.

    Returns:
        Seconds; None if a step up to it has no time in the records.
    """
    steps, milliseconds = run.curve("perf/step_ms")
    if len(steps) < step or not np.array_equal(steps[: int(np.ceil(step))], np.arange(1, int(np.ceil(step)) + 1)):
        return None
    return float(np.interp(step, np.append(0, steps), np.append(0, np.cumsum(milliseconds)))) / 1e3
