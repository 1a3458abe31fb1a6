"""How much sooner one run reaches the final loss of another, in tokens and in training time."""

from collections.abc import Sequence

import numpy as np

from gpt2lab.config import GPT2_VOCAB_SIZE
from gpt2lab.tracking.records import Run


def describe(runs: Sequence[Run]) -> list[str]:
    """Say which runs reach the final validation loss of another one with fewer tokens.

    Between two evaluations, the loss is taken to fall linearly. Runs on different text are not compared, nor runs
    whose texts were divided into other tokens.

    Args:
        runs: any number.

    Returns:
        A sentence for each pair, such as "b reaches the final validation loss of a, 4.869, with 2.5 times fewer tokens
        and in 2.1 times less training time."
    """
    sentences = []
    for other in runs:
        for run in runs:
            step = _step_of_loss(run, other)
            if run is other or step is None:
                continue
            tokens = other.last_step * other.tokens_per_step / (step * run.tokens_per_step)
            if tokens < 1.05:  # the same, or more
                continue
            loss = other.curve("val/loss").values[-1]
            sentence = (
                f"{run.name} reaches the final validation loss of {other.name}, {loss:.3f}, "
                f"with {tokens:.1f} times fewer tokens"
            )
            minutes, other_minutes = minutes_of_training(run), minutes_of_training(other)
            if minutes is not None and other_minutes is not None and run.hardware == other.hardware:
                ratio = other_minutes[-1] / np.interp(step, np.arange(len(minutes)), minutes)
                change = f"{ratio:.1f} times less" if ratio >= 1.05 else f"{1 / ratio:.1f} times the"
                sentence += f" and in {'the same' if 0.95 < ratio < 1.05 else change} training time"
            sentences.append(f"{sentence}.")
    return sentences


def minutes_of_training(run: Run) -> np.ndarray | None:
    """Return the minutes of training up to each step, without evaluations and checkpoints.

    Args:
        run: the run.

    Returns:
        float64 (steps + 1,), from step 0 on; None if the time of a step is not in the records.
    """
    steps, milliseconds = run.curve("perf/step_ms")
    if len(steps) == 0 or not np.array_equal(steps, np.arange(1, len(steps) + 1)):
        return None
    return np.append(0.0, np.cumsum(milliseconds) / 60e3)


def _step_of_loss(run: Run, other: Run) -> float | None:
    """The step, a fraction, where a run reaches the final validation loss of another one; None if it does not."""
    (steps, losses), final = run.curve("val/loss"), other.curve("val/loss").values
    # Rows of the vocabulary that only pad it do not change the tokens.
    same_tokens = len({min(each.settings.model.vocab_size, GPT2_VOCAB_SIZE) for each in (run, other)}) == 1
    same_text = run.source == other.source and same_tokens
    if not same_text or len(final) < 2 or not (losses <= final[-1]).any():
        return None
    first = int(np.argmax(losses <= final[-1]))
    if first == 0:
        return None
    before = first - 1
    return float(np.interp(final[-1], [losses[first], losses[before]], [steps[first], steps[before]]))
